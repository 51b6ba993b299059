"""Checks of what must be the same bits, however an environment is run; a function each."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rollout.envs.authoring.author_lines import AuthorLines
from rollout.envs.batch import Envs, record_dtype
from rollout.envs.checks.check_report import Result, failed, not_applicable, passed, warning
from rollout.envs.checks.explanations import described
from rollout.envs.checks.fresh_process import ProcessFailed, in_fresh_process
from rollout.envs.checks.random_play import (
    Player,
    compare,
    differences_of,
    place,
    record_differences,
)
from rollout.envs.checks.trial import HIDDEN, LIMIT_S, NUM_ENVS, Trial, counted
from rollout.envs.compiled_env import CompiledEnv

SPLIT = (3, 1, 4)  # NUM_ENVS environments, over several `Envs`
PROCESS_STEPS, PROCESS_BYTES = 50, 2**22  # of what another process sends back
SILENCE_S = 300.0  # that process may have to compile
PLAIN_STEPS, PLAIN_ENVS = 300, 4  # in plain Python, which takes a thousand times as long
GARBAGE = 0x5A

SUGGESTION = (
    "something outside `state` decides, another generator than `draw`, say; keep it in `state`, or "
    "set has_hidden_state = True"
)
HABITS = "compiled `x ** 2` is `x * x`, and integers wrap around at 64 bits"


def check_determinism(trial: Trial) -> Result:
    """The same seed and the same actions give the same bits."""
    if trial.env.has_hidden_state:
        return not_applicable(HIDDEN)
    found = compare(trial.player(), trial.player(), trial.num_steps, LIMIT_S)
    if found.difference:
        return failed(f"two runs differ: {found.difference}; {SUGGESTION}")
    return passed(f"{counted(found.steps)}, twice: the same bits", steps=found.steps)


def check_partition(trial: Trial) -> Result:
    """It does not matter with how many others an environment lies in one `Envs`."""
    if trial.env.has_hidden_state:
        return not_applicable(HIDDEN)
    firsts = np.cumsum((0, *SPLIT))[:-1].tolist()
    parts = [trial.envs(n, first_env=first) for n, first in zip(SPLIT, firsts, strict=True)]
    found = compare(trial.player(), trial.player(*parts), trial.num_steps, LIMIT_S)
    split = " + ".join(map(str, SPLIT))
    if found.difference:
        return failed(f"{NUM_ENVS} environments, and {split}, differ: {found.difference}")
    return passed(f"{NUM_ENVS} environments, and {split}: the same bits", steps=found.steps)


class Littering(Player):
    """Leaves garbage in the arrays that the next step is to write."""

    def step(self) -> None:
        for array in self.outcomes[0].arrays:
            array.view(np.uint8)[:] = GARBAGE if array.dtype != np.bool_ else True
        super().step()


def check_buffers(trial: Trial) -> Result:
    """What lay in the arrays of an outcome before a step does not matter."""
    if trial.env.has_hidden_state:
        return not_applicable(HIDDEN)
    littering = Littering([trial.envs()], trial.seed)
    found = compare(trial.player(), littering, trial.num_steps, LIMIT_S)
    if found.difference:
        return failed(f"what lay in its arrays before a step shows: {found.difference}")
    return passed("arrays full of garbage are written whole", steps=found.steps)


def check_snapshot(trial: Trial) -> Result:
    """What was saved in mid-episode goes on as if nothing had been, in any process."""
    played = trial.player()
    trial.play(played, max(1, trial.num_steps // 2), LIMIT_S / 2)
    envs, t = played.parts[0], played.t
    kept, clocks = envs.snapshot(), envs.records["clock"].copy()
    restored = _restored(trial, kept)
    if trial.env.has_hidden_state:
        return _check_begun_anew(clocks, restored.records["clock"])
    one, other = trial.player(envs, t=t), trial.player(restored, t=t)
    found = compare(one, other, trial.num_steps, LIMIT_S / 2)
    if found.difference:
        return failed(f"a restored snapshot goes on otherwise: {found.difference}; {SUGGESTION}")
    try:
        difference = _difference_in_process(trial, kept, t)
    except ProcessFailed as error:
        return failed(f"another process cannot go on with it: {error}")
    if difference:
        return failed(
            f"another process goes on with it otherwise: {difference}; a global that is not the "
            "same in every process, drawn at import, say?"
        )
    return passed(
        f"saved in mid-episode, {len(kept):,} bytes go on the same here and in another process",
        steps=found.steps,
        snapshot_bytes=len(kept),
    )


def _restored(trial: Trial, snapshot: bytes) -> Envs:
    envs = trial.envs(begin=False)
    envs.restore(snapshot)
    return envs


def _check_begun_anew(saved: np.ndarray, restored: np.ndarray) -> Result:
    """Of episodes with hidden state that were under way, the next begin."""
    wanted = saved["episode"] + (saved["t"] > 0)
    if (restored["episode"] != wanted).any() or restored["t"].any():
        return failed("restored, an episode that was under way did not give way to the next")
    return passed("restored, episodes that were under way give way to the next (hidden state)")


def _difference_in_process(trial: Trial, snapshot: bytes, t: int) -> str | None:
    """What another process does otherwise, from a snapshot and step t on."""
    player = trial.player(_restored(trial, snapshot), t=t)
    num_steps = min(PROCESS_STEPS, trial.num_steps, max(1, PROCESS_BYTES // len(snapshot)))
    arguments = (trial.env, trial.params, trial.seed, snapshot.hex(), t, num_steps)
    with contextlib.closing(in_fresh_process(go_on, *arguments, silence_s=SILENCE_S)) as steps:
        for there in steps:
            clocks = player.records()["clock"]
            player.step()
            other = np.frombuffer(bytes.fromhex(there), record_dtype(trial.env))
            for difference in record_differences(player.records(), other):
                return f"{difference}; {place(clocks[difference.row])}"
    return None


def go_on(
    env: type[CompiledEnv],
    params: Mapping[str, Any] | None,
    seed: int,
    snapshot: str,
    t: int,
    num_steps: int,
) -> Iterator[str]:
    """In another process: the records after each step, as hexadecimal text."""
    trial = Trial(env, params, seed, num_steps)
    player = trial.player(_restored(trial, bytes.fromhex(snapshot)), t=t)
    for _ in range(num_steps):
        player.step()
        yield player.records().tobytes().hex()


def check_plain_python(trial: Trial) -> Result:
    """Plain Python does what compiled code does, each step from the same state."""
    if trial.env.has_hidden_state:
        return not_applicable(HIDDEN)
    found = Parity(trial)
    try:
        with np.errstate(all="ignore"):  # as in compiled code
            found.play()
    except Exception as error:
        line = AuthorLines(trial.env).of_error(error)
        return failed(
            f"plain Python fails: {described(error, line)}; {found.place}; compiled code goes on "
            "there"
        )
    if found.difference:
        return failed(f"compiled, and in plain Python, {found.difference}; {found.place}; {HABITS}")
    steps = counted(found.steps, PLAIN_ENVS)
    if found.rounding:
        return warning(
            f"{steps}: rounded otherwise, compiled and in plain Python {found.rounding}; no harm "
            "to training, which runs compiled code alone",
            steps=found.steps,
        )
    return passed(f"{steps}: the same bits as compiled", steps=found.steps)


class Parity:
    """Environments stepped in compiled code and in plain Python, each step from the same state.

    place: of the step under way. difference: the first that is not rounding; rounding: the first
    that is.
    """

    def __init__(self, trial: Trial) -> None:
        self.steps = 0
        self.place = ""
        self.difference: str | None = None
        self.rounding: str | None = None
        self._trial = trial

    def play(self) -> None:
        end = time.monotonic() + LIMIT_S
        pairs = []
        for i in range(PLAIN_ENVS):
            self.place = f"environment {i}, episode 0, reset"
            both = (self._trial.envs(1, first_env=i, jit=jit) for jit in (True, False))
            pairs.append([Player([envs], self._trial.seed + i) for envs in both])
            self._compare(*pairs[-1])
            if self.difference:
                return
        num_steps = min(PLAIN_STEPS, self._trial.num_steps)
        while self.steps < num_steps and (time.monotonic() < end or not self.steps):
            for compiled, plain in pairs:
                self.place = place(compiled.records()["clock"][0])
                compiled.step()
                plain.step()
                self._compare(compiled, plain)
                if self.difference:
                    return
            self.steps += 1

    def _compare(self, compiled: Player, plain: Player) -> None:
        """Compare what a step, or a reset, has made; afterwards their states are the same."""
        for found in differences_of(compiled, plain):
            if not found.is_rounding:
                self.difference = str(found)
                return
            if not found.name.startswith("draw."):  # the kit's sum of rewards, which differ then
                self.rounding = self.rounding or f"{found}; {self.place}"
        plain.parts[0].records[:] = compiled.parts[0].records
