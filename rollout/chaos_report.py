"""What `rollout chaos` says: how far it is, and in the end what became of the runs."""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollout.chaos import Event, Outcome
from rollout.chaos_faults import Kind

LINE_EVERY_S = 2.0


class Teller:
    """Tells on standard error how far a run is: a line now and then."""

    def __init__(self) -> None:
        self._said_s = 0.0

    def line(self, text: str) -> None:
        self._said_s = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def progress(self, num_updates: int, num_faults: int) -> Callable[[int, int], None]:
        """A function to call with updates and faults so far."""
        of_updates = f" of {num_updates:,}" if num_updates else ""

        def tell(update: int, faults: int) -> None:
            if time.monotonic() >= self._said_s + LINE_EVERY_S:
                done = f", fault {faults} of {num_faults}" if num_faults else ""
                self.line(f"  update {update:,}{of_updates}{done}")

        return tell


def make_report(
    mode: str,
    seed: int,
    undisturbed: Outcome | None,
    disturbed: Outcome,
    has_hidden_state: bool = False,
) -> dict[str, Any]:
    """All there is to tell, as JSON can hold it; `failures` is empty if all went well.

    has_hidden_state: of the environment, whose episodes begin anew where an actor dies.
    """
    summary = disturbed.summary or {}
    events = disturbed.events
    report = {
        "mode": mode,
        "has_hidden_state": has_hidden_state,
        "seed": seed,
        "planned": disturbed.planned,
        "done": len(events),
        "faults": {kind.value: _of_kind(disturbed, kind) for kind in Kind if _any(events, kind)},
        "updates": disturbed.updates,
        "env_steps_per_s": disturbed.env_steps_per_s,
        "undisturbed_env_steps_per_s": undisturbed and undisturbed.env_steps_per_s,
        "throughput_lost": _lost(undisturbed, disturbed),
        "deaths": disturbed.deaths,
        "ledger": summary.get("ledger"),
        "params_digest": summary.get("params_digest"),
        "undisturbed_params_digest": _digest(undisturbed),
        "equal": None,
        "left": disturbed.left + (undisturbed.left if undisturbed else []),
        "events": [event.as_dict() for event in events],
    }
    if mode == "lockstep" and undisturbed is not None and not has_hidden_state:
        report["equal"] = report["params_digest"] == report["undisturbed_params_digest"]
    return report | {"failures": _failures(report, disturbed)}


def _failures(report: dict[str, Any], disturbed: Outcome) -> list[str]:
    failures = []
    if disturbed.summary is None or disturbed.status:
        failures.append(f"the disturbed run failed: {disturbed.error or 'it left no summary.json'}")
    elif not _is_balanced(report["ledger"]):
        failures.append("the ledger does not balance")
    if report["equal"] is False:
        failures.append("the parameters differ from those of the undisturbed run")
    lost = [event for event in disturbed.events if event.is_failed]
    failures += [f"nobody came back from {e.kind} of {e.role} {e.pid} at {e.update}" for e in lost]
    if report["left"]:
        failures.append(f"left behind: {', '.join(report['left'])}")
    return failures


def _is_balanced(ledger: dict[str, Any]) -> bool:
    accounts = (ledger, ledger["steps"], *ledger["actors"])
    return all(account["balance"] == 0 for account in accounts)


def _any(events: list[Event], kind: Kind) -> bool:
    return any(event.kind == kind for event in events)


def _of_kind(disturbed: Outcome, kind: Kind) -> dict[str, Any]:
    events = [event for event in disturbed.events if event.kind == kind]
    seconds = [event.recovery_s for event in events if event.recovery_s is not None]
    return {
        "count": len(events),
        "recovered": len(seconds),
        "recovery_median_s": statistics.median(seconds) if seconds else None,
        "recovery_worst_s": max(seconds, default=None),
    }


def _lost(undisturbed: Outcome | None, disturbed: Outcome) -> float | None:
    if undisturbed is None or not undisturbed.env_steps_per_s:
        return None
    return 1.0 - disturbed.env_steps_per_s / undisturbed.env_steps_per_s


def _digest(outcome: Outcome | None) -> str | None:
    return None if outcome is None or outcome.summary is None else outcome.summary["params_digest"]


def print_report(place: Path, report: dict[str, Any]) -> None:
    """Show people what `make_report` has found; place: where the runs are."""
    rows = [
        (
            kind,
            str(one["count"]),
            str(one["recovered"]),
            _seconds(one["recovery_median_s"]),
            _seconds(one["recovery_worst_s"]),
        )
        for kind, one in report["faults"].items()
    ]
    _print_table(("fault", "done", "recovered", "median", "worst"), rows)
    for name, text in _lines(report):
        print(f"{name:12}{text}")
    for failure in report["failures"]:
        print(f"FAILED      {failure}")
    print(f"{'runs':12}{place}")


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    for row in (head, *rows):
        print(f"{row[0]:10}" + "".join(f"{cell:>12}" for cell in row[1:]))


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    done, planned = report["done"], report["planned"]
    early = "" if done == planned else f" of {planned}: the run ended before the others"
    seen = sum(one["recovered"] for one in report["faults"].values())
    unseen = f"; {done - seen} recoveries not seen before the end" if seen < done else ""
    lines = [("faults", f"{done}{early}{unseen}")]
    deaths = ", ".join(f"{n} {name}" for name, n in report["deaths"].items())
    lines.append(("deaths", f"{deaths} (actors that died with their host or learner not counted)"))
    if report["throughput_lost"] is not None:
        lines.append(
            (
                "throughput",
                f"{report['env_steps_per_s']:,.0f} steps per second, undisturbed "
                f"{report['undisturbed_env_steps_per_s']:,.0f}: "
                f"{100 * report['throughput_lost']:.1f} % lost",
            )
        )
    ledger = report["ledger"]
    if ledger is not None:
        dropped = ", ".join(f"{n} {reason}" for reason, n in ledger["dropped"].items()) or "none"
        lines.append(
            (
                "ledger",
                f"{ledger['produced']} unrolls produced = {ledger['trained']} trained + "
                f"{ledger['in_flight']} in flight + dropped ({dropped}); "
                f"balance {ledger['balance']}",
            )
        )
    if report["equal"] is not None:
        lines.append(("parameters", "equal" if report["equal"] else "DIFFERENT"))
    elif report["has_hidden_state"]:
        hides = "not compared: the environment hides its state, so episodes begin anew after deaths"
        lines.append(("parameters", hides))
    lines.append(("left behind", ", ".join(report["left"]) or "nothing"))
    return lines


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"
