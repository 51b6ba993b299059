"""`check_vector_env`: whether a vector environment keeps Gymnasium's promises about vectors.

Gymnasium has a checker of single environments (`gymnasium.utils.env_checker`), but none of these.
"""

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rollout.envs.checks.check_report import (
    Check,
    CheckReport,
    Result,
    Step,
    failed,
    not_applicable,
    passed,
    run_checks,
    warning,
)
from rollout.envs.checks.nested_arrays import are_alike, difference, have_one_form, kind_of, misfit
from rollout.envs.checks.vector_trial import Taken, VectorTrial

FEW = 4  # environments, or endings, that do not all look alike by chance


def check_vector_env(vector_env: VectorEnv, *, seed: int = 0, num_steps: int = 200) -> CheckReport:
    """Try a vector environment, Gymnasium's own or any other, and close it.

    Actions are drawn from its action space; where its infos have an `action_mask`, only what that
    allows. What it does wrong is reported, not raised.
    """
    trial = VectorTrial(vector_env, seed, num_steps)
    checks = [found for found in run_checks(CHECKS, trial) if isinstance(found, Check)]
    return CheckReport(repr(vector_env), tuple(checks))


def check_spaces(trial: VectorTrial) -> Result:
    """Its spaces are those of one environment, batched, and it says how it resets."""
    envs = trial.envs
    if not isinstance(envs, VectorEnv):
        return failed(f"it is {kind_of(envs)}, wanted a gymnasium.vector.VectorEnv")
    count = getattr(envs, "num_envs", None)
    if not (isinstance(count, int | np.integer) and count > 0):
        return failed(f"num_envs is {count!r}, wanted a positive integer")
    for kind in ("observation", "action"):
        single = getattr(envs, f"single_{kind}_space", None)
        batched = getattr(envs, f"{kind}_space", None)
        if not isinstance(single, Space):
            return failed(f"single_{kind}_space is {single!r}, wanted a gymnasium.Space")
        wanted = batch_space(single, int(count))
        # of observations the bounds may differ from one environment to the next
        fits = batched == wanted or (kind == "observation" and have_one_form(batched, wanted))
        if not fits:
            return failed(f"{kind}_space is {batched!r}, wanted {wanted!r} of {count} environments")
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        modes = ", ".join(str(one) for one in AutoresetMode)
        return failed(f"metadata['autoreset_mode'] is {mode!r}, wanted one of {modes}")
    return passed(f"batched of {count}; {mode.name}", num_envs=int(count), autoreset_mode=mode.name)


def check_reset(trial: VectorTrial) -> Result:
    """`reset` gives observations in their space, and infos."""
    observations, trial.first_infos = trial.pair(trial.envs.reset(seed=trial.seed))
    problem = misfit(trial.envs.observation_space, observations, "observations")
    return failed(f"reset: {problem}") if problem else passed("observations in their space, infos")


def check_step(trial: VectorTrial) -> Result:
    """`step` gives what it should, in shapes and dtypes, every time."""
    endings = 0
    for t, taken in enumerate(trial.play()):
        problem = _step_problem(trial, taken)
        if problem:
            return failed(f"step {t}: {problem}")
        trial.steps.append(deepcopy(taken))
        endings += int(taken.ended.sum())
    count = len(trial.steps)
    return passed(f"{count:,} steps, {endings:,} endings", steps=count, endings=endings)


def _step_problem(trial: VectorTrial, taken: Taken) -> str | None:
    shape = (trial.envs.num_envs,)
    for name, array, kind, wanted in (
        ("rewards are", taken.rewards, "f", "floats"),
        ("terminations are", taken.terminated, "b", "bool"),
        ("truncations are", taken.truncated, "b", "bool"),
    ):
        is_array = isinstance(array, np.ndarray)
        if not (is_array and array.shape == shape and array.dtype.kind == kind):
            return f"{name} {kind_of(array)}, wanted {wanted} {list(shape)}"
    if not np.isfinite(taken.rewards).all():
        i = int(np.argmin(np.isfinite(taken.rewards)))
        return f"rewards[{i}] is {taken.rewards[i]}"
    if not isinstance(taken.infos, dict):
        return f"infos are {kind_of(taken.infos)}, wanted a dict"
    return misfit(trial.envs.observation_space, taken.observations, "observations")


def check_seeding(trial: VectorTrial) -> Result:
    """A seed says how episodes begin, and every environment has its own."""
    envs, count = trial.envs, trial.envs.num_envs
    other_seed = trial.seed + count
    first, again, other = (
        deepcopy(envs.reset(seed=seed)[0]) for seed in (trial.seed, trial.seed, other_seed)
    )
    found = difference(first, again, "observations")
    if found:
        return failed(f"reset with seed {trial.seed}, twice: {found}")
    if difference(first, other, "") is None:
        unseeded = [deepcopy(envs.reset()[0]) for _ in range(FEW)]
        if any(difference(first, one, "") for one in unseeded):
            seeds = f"the seeds {trial.seed} and {other_seed}"
            return warning(f"episodes begin alike under {seeds}, otherwise without: is it used?")
        return not_applicable("all episodes begin alike, as far as they show it")
    if count >= FEW and all(are_alike(trial.rows(one)) for one in (first, other)):
        return failed("all environments begin alike under one seed; give each its own")
    return passed("the same seed, the same beginnings; another, others")


def check_determinism(trial: VectorTrial) -> Result:
    """The same seed and the same actions give the same steps."""
    return _replayed(trial, "two runs differ") or passed(f"{len(trial.steps):,} steps, twice")


def _replayed(trial: VectorTrial, what: str, **how: bool) -> Result | None:
    """Play again; what to say if it is not as it was."""
    for t, (before, now) in enumerate(zip(trial.steps, trial.play(**how), strict=False)):
        found = difference(before.outcome(), now.outcome(), "")
        if found:
            return failed(f"{what}: step {t}: {found}")
    return None


def check_autoreset(trial: VectorTrial) -> Result:
    """Episodes that have ended are reset as its autoreset_mode says."""
    check = {
        AutoresetMode.NEXT_STEP: _check_next_step,
        AutoresetMode.SAME_STEP: _check_same_step,
        AutoresetMode.DISABLED: _check_disabled,
    }[trial.mode]
    problem = check(trial)
    if problem:
        return failed(f"{trial.mode.name}: {problem}")
    num_endings = sum(int(taken.ended.sum()) for taken in trial.steps)
    if not num_endings:
        return not_applicable(f"no episode ended in {len(trial.steps):,} steps")
    return passed(f"{trial.mode.name}, {num_endings:,} endings", endings=num_endings)


def _tells(shown_again: list[bool], trial: VectorTrial) -> bool:
    """Whether so many observations that came twice mean that nothing was reset.

    Not so where all observations are the same anyway, as those of a bandit.
    """
    if len(shown_again) < FEW or not all(shown_again):
        return False
    first, *rest = (trial.rows(taken.observations)[0] for taken in trial.steps)
    return not all(are_alike([first, row]) for row in rest)


def _check_next_step(trial: VectorTrial) -> str | None:
    shown_again = []
    for t, (last, taken) in enumerate(zip(trial.steps, trial.steps[1:], strict=False), start=1):
        for i in np.flatnonzero(taken.waiting):
            if taken.rewards[i] != 0 or taken.ended[i]:
                return (
                    f"step {t} resets environment {i}, but its reward is {taken.rewards[i]} and "
                    f"ended {bool(taken.ended[i])}, wanted 0 and False"
                )
            rows = (trial.rows(one.observations)[i] for one in (last, taken))
            shown_again.append(are_alike(list(rows)))
    if _tells(shown_again, trial):
        return "the step after an end shows the last observation again, wanted a new episode's"
    replayed = _replayed(
        trial,
        "the step after an end depends on its action",
        with_other_actions_while_waiting=True,
    )
    return replayed.finding if replayed else None


def _check_same_step(trial: VectorTrial) -> str | None:
    shown_again = []
    count = trial.envs.num_envs
    for t, taken in enumerate(trial.steps):
        finals = taken.infos.get("final_obs")
        has_final = np.asarray(taken.infos.get("_final_obs", np.zeros(count, np.bool_)))
        if has_final.shape != (count,) or (has_final != taken.ended).any():
            return (
                f"step {t}: ended are {taken.ended.tolist()}, but infos['_final_obs'] is "
                f"{has_final.tolist()}"
            )
        for i in np.flatnonzero(taken.ended):
            if not (isinstance(finals, np.ndarray) and len(finals) == count):
                return f"step {t}: infos['final_obs'] is {kind_of(finals)}, wanted an array"
            if not trial.envs.single_observation_space.contains(finals[i]):
                return f"step {t}: infos['final_obs'][{i}] is not in single_observation_space"
            shown_again.append(are_alike([finals[i], trial.rows(taken.observations)[i]]))
    if _tells(shown_again, trial):
        return "observations after an end are the last ones, wanted the new episodes' first"
    return None


def _check_disabled(trial: VectorTrial) -> str | None:
    shown_again = []
    for t, taken in enumerate(trial.steps):
        if taken.reset is None:
            continue
        chosen, before, after = taken.reset
        problem = misfit(trial.envs.observation_space, after, "observations")
        if problem:
            return f"reset with a reset_mask before step {t}: {problem}"
        pairs = zip(trial.rows(before), trial.rows(after), strict=True)
        for i, pair in enumerate(pairs):
            is_same = are_alike(list(pair))
            if chosen[i]:
                shown_again.append(is_same)
            elif not is_same:
                return f"reset before step {t} has changed environment {i}, not in its reset_mask"
    if _tells(shown_again, trial):
        return "reset with a reset_mask changes nothing"
    return None


def check_buffers(trial: VectorTrial) -> Result:
    """What a step gave is not overwritten by the next, unless it says so."""
    last: Taken | None = None
    kept: dict[str, Any] = {}
    for t, taken in enumerate(trial.play()):
        if last is not None:
            found = difference(kept, last.outcome(), "")
            if found:
                said = f"step {t} overwrites what the one before gave: {found}"
                if getattr(trial.envs.unwrapped, "copy", True):
                    return failed(f"{said}; copy it, or say so with an attribute copy = False")
                return passed("overwritten by the next step, as copy = False says")
        last, kept = taken, deepcopy(taken.outcome())
    return passed("what a step gave stays as it was")


def check_infos(trial: VectorTrial) -> Result:
    """Infos are arrays of all environments, each with a mask of those that have it."""
    names: set[str] = set()
    found = [("reset", trial.first_infos)]
    found += [(f"step {t}", taken.infos) for t, taken in enumerate(trial.steps)]
    for when, infos in found:
        problem = _info_problem(infos, trial.envs.num_envs, "infos", needs_masks=True)
        if problem:
            return failed(f"{when}: {problem}")
        names |= {name for name in infos if not name.startswith("_")}
    return passed(", ".join(sorted(names)) or "they are empty")


def _info_problem(infos: dict[str, Any], count: int, place: str, needs_masks: bool) -> str | None:
    for name, value in infos.items():
        if name.startswith("_") and name[1:] in infos:
            if not _is_mask(value, count):
                return f"{place}[{name!r}] is {kind_of(value)}, wanted bool [{count}]"
            continue
        if name.startswith("_"):
            return f"{place}[{name!r}] is a mask of nothing: {name[1:]!r} is missing"
        mask = infos.get(f"_{name}")
        if mask is None and needs_masks:
            return f"{place}[{name!r}] has no mask {place}['_{name}']"
        if isinstance(value, dict):
            problem = _info_problem(value, count, f"{place}[{name!r}]", needs_masks=False)
            if problem:
                return problem
            continue
        if not (isinstance(value, np.ndarray) and value.shape[:1] == (count,)):
            return f"{place}[{name!r}] is {kind_of(value)}, wanted an array of {count}"
        if value.dtype == object and mask is not None and _is_mask(mask, count):
            is_there = np.array([one is not None for one in value])
            if (is_there != mask).any():
                there = is_there.tolist()
                return f"{place}[{name!r}] is there for {there}, but its mask is {mask.tolist()}"
    return None


def _is_mask(value: Any, count: int) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.shape == (count,)


def check_close(trial: VectorTrial) -> Result:
    """It closes, and closing it twice does no harm."""
    trial.envs.close()
    trial.envs.close()
    return passed("closes, twice too")


CHECKS: tuple[Step, ...] = (
    ("spaces", check_spaces, ()),
    ("reset", check_reset, ("spaces",)),
    ("step", check_step, ("reset",)),
    ("seeding", check_seeding, ("reset",)),
    ("determinism", check_determinism, ("step", "seeding")),
    ("autoreset", check_autoreset, ("step", "determinism")),
    ("buffers", check_buffers, ("step",)),
    ("infos", check_infos, ("step",)),
    ("close", check_close, ("spaces",)),
)
