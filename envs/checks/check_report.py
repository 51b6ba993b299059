"""What checking an environment finds: named checks, each with its result."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    WARNING = "warning"  # it may be meant so
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    NOT_TRIED = "not tried"  # for what another check has found


@dataclass(frozen=True)
class Check:
    """One check. details: numbers and strings for programs, as JSON has them."""

    name: str
    status: Status
    finding: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Check({self.name}: {self.status}, {self.finding})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "status": str(self.status),
            "finding": self.finding,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class CheckReport:
    """All checks of one environment, in the order in which they were made."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def has_passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == Status.FAILED)

    def __getitem__(self, name: str) -> Check:
        """A check by its name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def __repr__(self) -> str:
        counts = [(sum(c.status == status for c in self.checks), status) for status in Status]
        counted = ", ".join(f"{count} {status}" for count, status in counts if count)
        return f"CheckReport({self.subject}: {counted})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "subject": self.subject,
            "has_passed": self.has_passed,
            "checks": [check.as_dict() for check in self.checks],
        }


@dataclass(frozen=True)
class Result:
    """What a check answers: a Check that has no name yet."""

    status: Status
    finding: str
    details: Mapping[str, Any]

    def named(self, name: str) -> Check:
        return Check(name, self.status, self.finding, self.details)


def passed(finding: str, **details: Any) -> Result:
    return Result(Status.PASSED, finding, details)


def warning(finding: str, **details: Any) -> Result:
    return Result(Status.WARNING, finding, details)


def failed(finding: str, **details: Any) -> Result:
    return Result(Status.FAILED, finding, details)


def not_applicable(finding: str, **details: Any) -> Result:
    return Result(Status.NOT_APPLICABLE, finding, details)


def not_tried(failure: str) -> Result:
    """failure: the name of the check that failed."""
    return Result(Status.NOT_TRIED, f"{failure} failed", {})


# A check's name, what does it, and the names of those that must not have failed before.
Step = tuple[str, Callable[[Any], Result], tuple[str, ...]]


def run_checks(steps: Sequence[Step], trial: Any) -> Iterator[str | Check]:
    """Make the checks of one thing on trial: for each its name, and when it is done the Check.

    What a check raises makes it fail.
    """
    blocked: dict[str, str] = {}
    for name, check, needs in steps:
        yield name
        missing = next((need for need in needs if need in blocked), None)
        if missing:
            result = not_tried(blocked[missing])
            blocked[name] = blocked[missing]
        else:
            try:
                result = check(trial)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                result = failed(said, traceback=traceback.format_exc())
            if result.status == Status.FAILED:
                blocked[name] = name
        yield result.named(name)
