"""Checks of what an environment does, a function each; equality_checks.py has more."""

import time
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from rollout.envs.authoring.author_lines import AuthorLines
from rollout.envs.batch import Envs, load_env_kernels, record_dtype
from rollout.envs.checks.check_report import Result, failed, not_applicable, passed, warning
from rollout.envs.checks.check_vector_env import check_vector_env
from rollout.envs.checks.checked import Kind
from rollout.envs.checks.checked_run import CheckedRun
from rollout.envs.checks.explanations import described
from rollout.envs.checks.trial import HIDDEN, LIMIT_S, NUM_ENVS, Trial, counted
from rollout.envs.checks.wrapped_integers import wrapped_integer
from rollout.envs.compiled_env import SIGNATURES
from rollout.envs.errors import EnvError
from rollout.envs.interfaces.vector_env import VectorEnv

NUM_BEGINNINGS = 256  # first states that are compared
NUM_PLAYING = 64  # environments that play until they end
MAX_EPISODE = 100_000  # steps after which an episode that has not ended is thought to be endless
FEWEST_AT_LIMIT = 8  # episodes that say something about how others end at the time limit
SHORT_EPISODE = 10  # steps, where many endings are wanted
PLAIN_STEPS = 100
BATCHES = (64, 1024)  # environments, for their speed
SPEED_S = 0.3


def check_compiles(trial: Trial) -> Result:
    """Numba compiles the author's functions."""
    began = time.monotonic()
    try:
        for checked in (True, False):
            load_env_kernels(trial.env, checked=checked)
    except EnvError as error:
        return failed(str(error))
    names = [name for name in SIGNATURES if name != "render" and hasattr(trial.env, name)]
    seconds = time.monotonic() - began
    return passed(f"{', '.join(names)} ({seconds:.1f} s)", seconds=seconds)


def check_runs(trial: Trial) -> Result:
    """No index lies outside its array, and the author's functions return without an error."""
    trial.run = CheckedRun(trial.env, trial.params, NUM_ENVS, trial.seed, trial.watch)
    trial.run.play(trial.num_steps, LIMIT_S)
    if Kind.FAILURE in trial.run.faults:
        return failed(trial.run.faults[Kind.FAILURE])
    steps = trial.run.steps
    return passed(f"{counted(steps)}: no index outside its array, no error", steps=steps)


def check_action_mask(trial: Trial) -> Result:
    """A mask allows something of each choice."""
    if not hasattr(trial.env, "action_mask"):
        return not_applicable("it has none: every action is allowed")
    if Kind.ACTION_MASK in trial.run.faults:
        return failed(trial.run.faults[Kind.ACTION_MASK])
    share = trial.run.allowed_share
    return passed(f"it always allows something, on average {share:.0%}", allowed_share=share)


def check_observations(trial: Trial) -> Result:
    """Observations lie in their space as they were meant, and showing them changes nothing."""
    if Kind.OBSERVATION in trial.run.faults:
        return failed(trial.run.faults[Kind.OBSERVATION])
    if trial.run.side_effect:
        return failed(f"observe or action_mask changes what it shows: {trial.run.side_effect}")
    wrapped = wrapped_integer(trial, LIMIT_S)
    if wrapped:
        return failed(wrapped)
    return passed("all lie in observation_space, and showing them changes nothing")


def check_rewards(trial: Trial) -> Result:
    """Rewards are finite, and `terminated` is a bool."""
    if Kind.REWARD in trial.run.faults:
        return failed(trial.run.faults[Kind.REWARD])
    terminated = _terminated_that_is_no_bool(trial)
    if terminated is not None:
        code = trial.env.step.__code__
        line = f"{code.co_filename}:{code.co_firstlineno}"
        return failed(f"step returns terminated = {terminated!r}, wanted True or False ({line})")
    low, high = trial.run.lowest_reward, trial.run.highest_reward
    return passed(f"{low:g} to {high:g}; terminated is a bool", lowest=low, highest=high)


def _terminated_that_is_no_bool(trial: Trial) -> Any:
    """What `step` returns for `terminated` that says neither yes nor no; None if it always does."""
    seen, written = [], trial.env.step  # by a name of its own, plain Python finds its helpers

    def step(state, params, action, draw):
        reward, terminated = written(state, params, action, draw)
        seen.append(terminated)
        return reward, terminated

    spied: Any = type(trial.env.__name__, (trial.env,), {"step": step})
    try:
        envs = Envs(spied, 1, trial.seed, params=trial.params, jit=False)
        with np.errstate(all="ignore"):
            trial.play(trial.player(envs), PLAIN_STEPS, LIMIT_S / 2)
    except Exception:  # check_plain_python will say so
        pass
    return next((one for one in seen if one not in (True, False)), None)


def check_params(trial: Trial) -> Result:
    """Nothing writes into `params`."""
    changed = trial.run.changed_param()
    if changed:
        return failed(f"{changed}: params never change; what does belongs into `state`")
    if not trial.env.params:
        return not_applicable("it has none")
    return passed("none changes")


def check_seeding(trial: Trial) -> Result:
    """Where `reset` draws, other environments and other seeds begin otherwise."""
    num_envs = trial.as_many_as_fit(NUM_BEGINNINGS)
    envs = trial.envs(num_envs)
    if not envs.records["clock"]["k"].any():
        return not_applicable("reset draws nothing")
    beginnings = len({one.tobytes() for one in envs.records["state"]})
    other_seed = (trial.seed + 1) % 2**32
    other = trial.envs(num_envs, seed=other_seed)
    cure = "what `reset` draws must show in `state`"
    if beginnings == 1:
        return failed(f"reset draws, but {num_envs} environments begin alike: {cure}")
    if other.records["state"].tobytes() == envs.records["state"].tobytes():
        seeds = f"seeds {trial.seed} and {other_seed}"
        return failed(f"reset draws, but under {seeds} environments begin alike: {cure}")
    return passed(
        f"{beginnings} beginnings of {num_envs} environments, others under another seed",
        beginnings=beginnings,
    )


def check_episodes(trial: Trial) -> Result:
    """Episodes end: time truncates them, and only what happens in them terminates them."""
    limit = trial.env.max_episode_steps
    lengths, terminated = _endings(trial)
    details = {"terminated": int(terminated.sum()), "truncated": int((~terminated).sum())}
    if not lengths.size and limit is None:
        return warning(
            "no episode ended at random play, and max_episode_steps is None: set it, or no return "
            "may ever be seen"
        )
    at_limit = terminated[lengths == limit]
    if at_limit.size >= FEWEST_AT_LIMIT and at_limit.all():
        return failed(
            f"all {at_limit.size:,} episodes that came to max_episode_steps = {limit:,} were "
            "terminated there too: leave time to max_episode_steps, which truncates"
        )
    if limit is not None and _is_terminated_by_the_clock(trial, limit):
        return failed(
            "`step` terminates by draw.t: leave time to max_episode_steps, which truncates"
        )
    time_limit = "no time limit" if limit is None else f"time limit {limit:,}"
    if not lengths.size:
        return passed(f"none ended at random play; {time_limit}", **details)
    shortest, longest = int(lengths.min()), int(lengths.max())
    steps = f"{shortest:,} steps" if shortest == longest else f"{shortest:,} to {longest:,} steps"
    return passed(
        f"{lengths.size:,} of {steps} at random play, {details['terminated']:,} terminated, "
        f"{details['truncated']:,} truncated; {time_limit}",
        shortest=shortest,
        longest=longest,
        **details,
    )


def _endings(trial: Trial) -> tuple[np.ndarray, np.ndarray]:
    """(length, whether terminated) of the episodes that ended at random play."""
    player = trial.player(trial.envs(trial.as_many_as_fit(NUM_PLAYING)))
    outcome = player.outcomes[0]
    limit = min(trial.env.max_episode_steps or MAX_EPISODE, MAX_EPISODE)
    end = time.monotonic() + LIMIT_S
    lengths, terminated = [np.zeros(0, np.int32)], [np.zeros(0, np.bool_)]
    while player.steps < limit and time.monotonic() < end:
        player.step()
        ended = outcome.num_episodes
        if ended:
            lengths.append(outcome.episode_length[:ended].copy())
            terminated.append(outcome.terminated[outcome.episode_env[:ended]])
    return np.concatenate(lengths), np.concatenate(terminated)


def _is_terminated_by_the_clock(trial: Trial, limit: int) -> bool:
    """Whether all episodes are terminated if their clock is put forward, and few otherwise."""
    num_envs = trial.as_many_as_fit(NUM_PLAYING)
    now, late = (trial.player(trial.envs(num_envs)) for _ in range(2))
    late.parts[0].records["clock"]["t"] = limit - 1
    now.step()
    late.step()
    return bool(late.seen()["terminated"].all() and now.seen()["terminated"].mean() < 0.5)


def check_autoreset(trial: Trial) -> Result:
    """As a Gymnasium vector environment it begins episodes anew in all three ways."""
    if trial.env.has_hidden_state:
        return not_applicable(HIDDEN)
    problems = []
    for mode in AutoresetMode:
        report = check_vector_env(
            VectorEnv(
                trial.env,
                NUM_ENVS,
                params=trial.params,
                autoreset_mode=mode,
                max_episode_steps=SHORT_EPISODE,
            ),
            seed=trial.seed,
            num_steps=min(trial.num_steps, 5 * SHORT_EPISODE),
        )
        problems += [
            check.finding if check.name == "autoreset" else f"{mode.name}, {check.finding}"
            for check in report.failures
        ]
    if problems:
        return failed("; ".join(problems))
    return passed(", ".join(mode.name for mode in AutoresetMode))


def check_render(trial: Trial) -> Result:
    """`render` gives a picture and changes nothing."""
    if not hasattr(trial.env, "render"):
        return not_applicable("it has none, so there is no video of it")
    envs = trial.envs()
    trial.play(trial.player(envs), SHORT_EPISODE, LIMIT_S)
    before = envs.snapshot()
    try:
        picture = envs.render(0)
    except Exception as error:
        return failed(f"it fails: {described(error, AuthorLines(trial.env).of_error(error))}")
    if envs.snapshot() != before:
        return failed("it changes the state; it should only look")
    found = type(picture).__name__
    if isinstance(picture, np.ndarray):
        found = f"{picture.dtype} {list(picture.shape)}"
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
            return passed(found, shape=list(picture.shape))
    return failed(f"it returns {found}, wanted uint8 [height, width, 3]")


def check_speed(trial: Trial) -> Result:
    """How fast it is, on one core."""
    texts, details = [], {}
    for num_envs in sorted({trial.as_many_as_fit(wanted) for wanted in BATCHES}):
        step_s = _seconds_per_step(trial, num_envs)
        rate = num_envs / step_s
        texts.append(f"{_short(rate)} steps/s of {num_envs:,} at once ({step_s * 1e6:,.1f} µs)")
        details[f"env_steps_per_s_{num_envs}"] = rate
        details[f"step_us_{num_envs}"] = step_s * 1e6
        if step_s > LIMIT_S / 10:
            break
    size = record_dtype(trial.env).itemsize
    texts.append(f"{size:,} bytes of state each")
    return passed(", ".join(texts), state_bytes=size, **details)


def _short(rate: float) -> str:
    return f"{rate / 1e6:.1f} million" if rate >= 1e6 else f"{rate:,.0f}"


def _seconds_per_step(trial: Trial, num_envs: int) -> float:
    """Of N environments, without choosing their actions; the median."""
    player = trial.player(trial.envs(num_envs))
    envs, outcome = player.parts[0], player.outcomes[0]
    times = []
    end = time.monotonic() + SPEED_S
    while not times or time.monotonic() < end:
        action = player.action()
        began = time.perf_counter()
        envs.step(action, outcome)
        times.append(time.perf_counter() - began)
        player.t += 1
    return float(np.median(times))
