"""What checking a foreign environment says of its powers."""

from typing import Any

import pytest

from rollout.env_source import EnvSource
from rollout.envs.checks.check_foreign_env import check_foreign_env
from rollout.envs.checks.check_report import CheckReport, Status
from tests.envs import foreign_samples, gymnasium_samples

HERE, THERE = foreign_samples.__name__, gymnasium_samples.__name__


def each_slow(*case) -> Any:
    """A case that is only for `make test-slow`: each takes a process of its own."""
    return pytest.param(*case, marks=pytest.mark.slow)


def check(env_id: str, **others) -> CheckReport:
    return check_foreign_env(EnvSource(id=env_id, folder="", **others), num_steps=60)


def test_environment_that_saves_its_state_has_all_powers():
    report = check(f"{HERE}:Drift")
    assert report.has_passed and report["state"].status == Status.PASSED
    assert "recovery and resuming are exact" in report["state"].finding
    assert "goes on" in report["state"].finding and report["seeding"].status == Status.PASSED
    assert report["runs"].details["episodes"] > 8
    assert report["render"].status == Status.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("env_id", "others", "name", "status", "said"),
    [
        (f"{THERE}:Walk", {}, "state", Status.NOT_APPLICABLE, "hidden: Walk has no pair"),
        each_slow(f"{THERE}:Walk", {}, "render", Status.PASSED, "uint8 [8, 8, 3]"),
        (f"{HERE}:Unseeded", {}, "seeding", Status.WARNING, "take all randomness from self.np_r"),
        each_slow(f"{HERE}:Shared", {}, "seeding", Status.WARNING, "depends on those beside it"),
        (f"{HERE}:Outside", {}, "observations", Status.FAILED, "no run begins with it"),
        each_slow(
            f"{HERE}:Leaving", {}, "observations", Status.WARNING, "steps one lies elsewhere"
        ),
        each_slow(
            f"{HERE}:Race", {}, "made", Status.PASSED, "games of 3 agents, each an environment"
        ),
        each_slow(
            f"{HERE}:make_vector", {}, "made", Status.PASSED, "by a vector environment of its own"
        ),
        each_slow(f"{THERE}:Reach", {}, "runs", Status.PASSED, "no error"),
        (
            f"{THERE}:Walk",
            {"params": {"how": "crash", "goal": 99.0}},
            "runs",
            Status.FAILED,
            "SIGSEGV",
        ),
        (
            f"{THERE}:Walk",
            {"params": {"how": "nan", "goal": 99.0}},
            "runs",
            Status.PASSED,
            "no error",
        ),
    ],
)
def test_what_is_found_is_said(env_id, others, name, status, said):
    report = check(env_id, **others)
    assert (report[name].status, said in report[name].finding) == (status, True), report[name]
