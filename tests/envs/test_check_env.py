"""check_env: every check is seen passing and failing, and says where and what."""

import json
import re
import threading

import numpy as np
import pytest

from rollout.envs import (
    BUNDLED,
    CheckReport,
    EnvError,
    Envs,
    VectorEnv,
    check_env,
)
from rollout.envs.batch import record_dtype
from rollout.envs.checks import env_checks, equality_checks, trial
from rollout.envs.checks.all_checks import CHECKS
from rollout.envs.checks.check_report import Check, Status, run_checks
from rollout.envs.checks.trial import Trial
from rollout.envs.diagnostic.counting import Counting
from tests.envs import broken_envs as broken
from tests.envs.broken_envs import Broken, Good
from tests.some_fast import slow_unless

NAMES = [name for name, *_ in CHECKS]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Checks in this process, with little time for each."""
    monkeypatch.setattr(env_checks, "SPEED_S", 0.01)
    monkeypatch.setattr(env_checks, "LIMIT_S", 1.0)
    monkeypatch.setattr(
        equality_checks, "in_fresh_process", lambda function, *arguments, **_: function(*arguments)
    )


def checked(env, num_steps: int = 120, **params) -> CheckReport:
    trial = Trial(env, params, 0, num_steps)
    return CheckReport(
        env.__name__, tuple(c for c in run_checks(CHECKS, trial) if isinstance(c, Check))
    )


def by_status(report: CheckReport, status: Status) -> list[str]:
    return [check.name for check in report.checks if check.status == status]


def test_good_environment_passes_every_check():
    report = checked(Broken)
    assert [check.name for check in report.checks] == NAMES
    assert by_status(report, Status.PASSED) == NAMES
    assert report.has_passed and not report.failures
    assert "90%" in report["action_mask"].finding
    assert report["speed"].details["state_bytes"] == 32 + Broken.state.itemsize


@pytest.mark.parametrize(
    ("how", "fails", "said"),
    [
        (broken.WRITE, ["runs"], "state.board[2, 0] lies outside (2, 3)"),
        (broken.READ, ["runs"], "state.board[0, -4] lies outside (2, 3)"),
        (broken.RAISE, ["runs"], "ValueError: it went wrong"),
        (broken.WIDE, ["runs"], "observation[:] = array([1., 1., 1., 1.]): could not broadcast"),
        (broken.FAR, ["observations"], "observation[1] is 11.0, wanted -10.0 to 10.0"),
        (broken.NAN, ["observations"], "observation[1] is nan"),
        (
            broken.LOOK,
            ["observations", "snapshot"],
            "changes what it shows: state.looks is 0 and 1",
        ),
        (broken.INFINITE, ["rewards"], "reward is inf"),
        (
            broken.PARAM,
            ["params", "partition", "snapshot", "autoreset"],
            "params.wind was 0.5 and is ",
        ),
        (broken.ALIKE, ["seeding"], "256 environments begin alike"),
        (broken.BY_NUMBER, ["seeding"], "under seeds 0 and 1 environments begin alike"),
        (broken.MASK, ["action_mask"], "action_mask allows no value of action choice 1"),
        (broken.DIVISION, ["plain_python"], "ZeroDivisionError: float division by zero"),
        (broken.WRAP, ["plain_python"], "state.speed is "),
        (broken.LATE, ["episodes"], "64 episodes that came to max_episode_steps = 20 were"),
        (broken.BY_CLOCK, ["episodes"], "`step` terminates by draw.t"),
        (broken.SHAPE, ["render"], "returns uint8 [4, 5, 1], wanted uint8 [height, width, 3]"),
        (broken.PAINTS, ["render"], "it changes the state"),
        (broken.FAILS, ["render"], "it fails: ValueError: no picture ("),
    ],
)
def test_broken_promise_fails_its_checks_and_no_other(how, fails, said):
    report = checked(Broken, how=how)
    assert by_status(report, Status.FAILED) == fails
    assert said in report[fails[0]].finding


@pytest.mark.parametrize(
    ("how", "check", "where"),
    [
        (broken.WRITE, "runs", "step 6"),
        (broken.RAISE, "runs", "step 6"),
        (broken.WIDE, "runs", "observation 7"),
        (broken.NAN, "observations", "observation 7"),
        (broken.INFINITE, "rewards", "step 6"),
        (broken.MASK, "action_mask", "observation 7"),
        (broken.DIVISION, "plain_python", "step 6"),
    ],
)
def test_place_is_named(how, check, where):
    finding = checked(Broken, how=how)[check].finding
    assert re.search(rf"; environment 2, episode \d+, {where}(;|$)", finding)
    if how != broken.MASK:
        assert re.search(r"broken_envs\.py:\d+, in (step|observe)\b", finding)


@pytest.mark.parametrize(
    ("param", "by", "said"),
    [
        ("level", 1, "observation.level[1] is 256, wanted 0 to 255 of uint8, which keeps 0"),
        ("depth", 3, "inner.depth[1, 0] is -131, wanted -128 to 127 of int8, which keeps 125"),
        ("flag", 255, "observation.flags[0] is 256, wanted -128 to 127 of int8, which keeps 0"),
        ("kind", 256, "observation.kinds[1] is 258, wanted -128 to 127 of int8, which keeps 2"),
    ],
)
def test_integer_that_wraps_in_an_observation_is_named(param, by, said):
    report = checked(broken.Narrow, **{param: by})
    assert by_status(report, Status.FAILED) == ["observations"]
    assert said in report["observations"].finding
    assert re.search(
        r"\(\S+broken_envs\.py:\d+, in observe\); environment 0, episode 0, observation 7",
        report["observations"].finding,
    )


def test_integers_that_fit_pass():
    assert checked(broken.Narrow)["observations"].status == Status.PASSED


def test_what_plain_python_computes_otherwise_is_not_said_to_wrap():
    report = checked(broken.Otherwise)
    assert report["observations"].status == Status.PASSED
    assert report["plain_python"].status == Status.FAILED


def test_what_needs_what_failed_is_not_tried():
    report = checked(Broken, how=broken.WRITE)
    assert by_status(report, Status.PASSED) == ["compiles"]
    assert by_status(report, Status.NOT_TRIED) == NAMES[2:]
    assert report["speed"].finding == "runs failed"
    report = checked(broken.Hidden)
    assert by_status(report, Status.FAILED) == ["determinism"]
    assert "set has_hidden_state = True" in report["determinism"].finding
    not_tried = ["partition", "snapshot", "buffers", "plain_python", "autoreset"]
    assert by_status(report, Status.NOT_TRIED) == not_tried


def test_other_rounding_in_plain_python_is_a_warning():
    report = checked(Broken, how=broken.ROUND)
    assert by_status(report, Status.WARNING) == ["plain_python"]
    assert report.has_passed
    assert "rounded otherwise" in report["plain_python"].finding
    assert "no harm to training, which runs compiled code alone" in report["plain_python"].finding


@pytest.mark.slow
def test_endless_episodes_are_a_warning_that_names_the_time_limit():
    report = checked(broken.NoLimit)
    assert by_status(report, Status.WARNING) == ["episodes"]
    assert "max_episode_steps is None: set it" in report["episodes"].finding


def test_returning_objects_is_said_in_the_authors_terms():
    report = checked(broken.Texts)
    assert by_status(report, Status.FAILED) == ["compiles"]
    assert "broken_envs.py:" in report["compiles"].finding
    assert "cure: " in report["compiles"].finding


@pytest.mark.parametrize(
    "env", slow_unless([broken.Halfway], [broken.Halfway, broken.HalfwayDecorated])
)
def test_terminated_that_is_no_bool_fails(env):
    report = checked(env)
    assert by_status(report, Status.FAILED) == ["rewards"]
    assert "step returns terminated = 2, wanted True or False" in report["rewards"].finding


def test_environment_that_says_it_hides_state_is_not_compared():
    report = checked(broken.SaysHidden)
    assert report.has_passed
    compared = ["determinism", "partition", "buffers", "plain_python", "autoreset"]
    assert set(compared) <= set(by_status(report, Status.NOT_APPLICABLE))
    assert "give way to the next" in report["snapshot"].finding


def test_large_states_are_tried_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(trial, "AT_ONCE_BYTES", 7 * record_dtype(Good).itemsize)
    report = checked(Good)
    assert report.has_passed
    assert report["seeding"].finding.startswith("7 beginnings of 7 environments")
    assert report["episodes"].details["truncated"] == 7
    assert [name for name in report["speed"].details if name.startswith("step_us")] == ["step_us_7"]


def test_counting_draws_nothing_and_has_nothing_to_seed():
    report = checked(Counting)
    assert report["seeding"].status == Status.NOT_APPLICABLE
    assert report["seeding"].finding == "reset draws nothing"


# Rules that an environment alone cannot break: the kit is broken here instead.


def test_step_that_leaves_garbage_fails_buffers(monkeypatch):
    step = Envs.step

    def lazy(self, action, outcome):
        reward = outcome.reward.copy()
        step(self, action, outcome)
        outcome.reward[3:4] = reward[3:4]  # what lay there

    monkeypatch.setattr(Envs, "step", lazy)
    report = checked(Broken)
    assert "buffers" in by_status(report, Status.FAILED)
    assert "reward is " in report["buffers"].finding


def test_snapshot_that_forgets_a_field_fails(monkeypatch):
    restore = Envs.restore

    def forgetful(self, snapshot, *others):
        restore(self, snapshot, *others)
        self.records["state"]["speed"] = 0.25

    monkeypatch.setattr(Envs, "restore", forgetful)
    report = checked(Broken)
    assert by_status(report, Status.FAILED) == ["snapshot"]
    assert "goes on otherwise: state.speed is 0.0 and 0.25" in report["snapshot"].finding


def test_episode_that_hides_state_and_goes_on_fails(monkeypatch):
    monkeypatch.setattr(equality_checks, "_restored", lambda trial, snapshot: went_on)
    trial = Trial(broken.SaysHidden, None, 0, 20)
    went_on = trial.envs()
    trial.play(trial.player(went_on), 3)
    result = equality_checks.check_snapshot(trial)
    assert result.status == Status.FAILED
    assert "did not give way to the next" in result.finding


def test_vector_environment_that_does_not_keep_its_promises_fails_autoreset(monkeypatch):
    class Deaf(VectorEnv):
        """Ends episodes, and never says that they were truncated."""

        def step(self, actions):
            observations, rewards, terminated, truncated, infos = super().step(actions)
            return observations, rewards, terminated, np.zeros_like(truncated), infos

    monkeypatch.setattr(env_checks, "VectorEnv", Deaf)
    report = checked(Good)
    assert by_status(report, Status.FAILED) == ["autoreset"]
    assert "SAME_STEP: step 9" in report["autoreset"].finding


# In a process of its own.


def test_check_env_tells_as_it_goes_and_gives_what_json_holds():
    told = []
    report = check_env(Good, num_steps=20, on_progress=told.append)
    assert report.has_passed
    assert [one for one in told if isinstance(one, str)] == NAMES
    assert tuple(one for one in told if isinstance(one, Check)) == report.checks
    assert json.loads(json.dumps(report.as_dict()))["checks"][0]["name"] == "compiles"
    assert re.fullmatch(r"CheckReport\(Good: \d+ passed, \d+ not applicable\)", repr(report))
    with pytest.raises(KeyError):
        report["nothing"]


@pytest.mark.parametrize(
    ("how", "where"),
    [
        (broken.HANG, r"step; environment 2, episode \d+, step 6"),
        (broken.HANG_IN_RESET, r"reset; environment \d, episode 1, step 0"),
    ],
)
def test_function_that_never_returns_is_named(how, where):
    report = check_env(Broken, {"how": how}, num_steps=60, hang_s=1.0)
    assert by_status(report, Status.FAILED) == ["runs"]
    assert re.search(
        rf"^(\w+) has not returned for 1 s: \S+broken_envs.py:\d+, in (?=\1){where}",
        report["runs"].finding,
    )
    assert report["speed"].finding == "runs failed"
    assert [check.name for check in report.checks] == NAMES


def test_environment_that_takes_its_process_with_it_is_survived():
    report = check_env(broken.Crashes, num_steps=20)
    assert by_status(report, Status.FAILED) == ["runs"]
    assert report["runs"].finding == "the process was killed by SIGSEGV"
    assert [check.name for check in report.checks] == NAMES


@pytest.mark.slow
def test_global_that_differs_from_process_to_process_fails_snapshot():
    report = check_env(broken.Differing, num_steps=20)
    assert by_status(report, Status.FAILED) == ["snapshot"]
    assert "another process goes on with it otherwise: state.x is " in report["snapshot"].finding


@pytest.mark.slow
def test_environment_of_no_module_is_checked_all_the_same():
    class Local(Good):
        max_episode_steps = 7

    report = check_env(Local, num_steps=20)
    assert report.has_passed
    assert report.subject.endswith("<locals>.Local")
    assert "of 7 steps at random play, 0 terminated, 64 truncated" in report["episodes"].finding


def test_environment_that_cannot_be_sent_is_a_finding():
    class Holding(Good):
        held = threading.Lock()

    report = check_env(Holding, num_steps=20)
    assert by_status(report, Status.FAILED) == ["process"]
    assert "cannot be sent to another process" in report["process"].finding


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"params": {"hwo": 1}}, "no param 'hwo'; did you mean how?"),
        ({"seed": -1}, "seed=-1, wanted an integer from 0 to 4294967295"),
        ({"num_steps": 0}, "num_steps=0, wanted an integer from 1"),
    ],
)
def test_wrong_arguments_are_raised(arguments, said):
    with pytest.raises(EnvError, match=re.escape(said)):
        check_env(Broken, **arguments)


QUICK = ("CartPole-v1",)


@pytest.mark.parametrize("env_id", slow_unless(QUICK, BUNDLED))
def test_bundled_environment_passes(env_id):
    report = check_env(env_id, num_steps=1000 if env_id not in QUICK else 100)
    assert report.has_passed, report.failures
    assert not by_status(report, Status.WARNING)
