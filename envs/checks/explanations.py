"""What went wrong in compiled code, explained by doing the same again in plain Python."""

from typing import Any

import numpy as np

from rollout.envs.authoring.author_lines import AuthorLines, Line, Traced
from rollout.envs.batch import load_env_kernels, record_dtype
from rollout.envs.checks.elements import Outside, not_finite, observation_leaves
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.layouts import action_layout, observation_layout
from rollout.envs.records import records


class Moment:
    """One environment at one moment, from which plain Python goes on.

    record: uint8, its bytes; copied.
    """

    def __init__(self, env: type[CompiledEnv], record: np.ndarray, params: np.ndarray) -> None:
        self._env = env
        self._record = record.copy()
        self._params = params.copy()
        self._lines = AuthorLines(env)
        self._plain = load_env_kernels(env, jit=False)

    def place(self, function: str | None = "step") -> str:
        """`environment 3, episode 0, step 17`, where one of its functions is at work."""
        clock = self._record.view(record_dtype(self._env))["clock"][0]
        counted = {"reset": "reset", "step": f"step {clock['t']}"}
        what = counted.get(function or "step", f"observation {clock['t']}")
        return f"environment {clock['env']}, episode {clock['episode']}, {what}"

    def explain(self, error: Exception, kernel: str, *arguments: Any) -> str:
        """What a compiled kernel raised, called with this environment and `arguments`; where."""
        place = self.place()
        found = self.error_of(kernel, *arguments)
        if found is None:
            return f"{described(error)}; {place}; plain Python finds nothing wrong there"
        text = self.described(found)
        if not isinstance(found, type(error)):
            text += f"; compiled code goes on there, and ends in {described(error)}"
        return f"{text}; {self.place(self._lines.function_of_error(found))}"

    def error_of(self, kernel: str, *arguments: Any) -> Exception | None:
        """What plain Python raises when a kernel of this name goes on from here."""
        try:
            self._go_on(kernel, *arguments)
        except Exception as error:
            return error
        return None

    def line_of_hang(self, wait_s: float, kernel: str, *arguments: Any) -> Line | None:
        """Where plain Python is after a while; None if it is done by then."""
        return self._lines.where_it_hangs(lambda: self._go_on(kernel, *arguments), wait_s)

    def _go_on(self, kernel: str, *arguments: Any) -> None:
        copies = [one.copy() if isinstance(one, np.ndarray) else one for one in arguments]
        with np.errstate(all="ignore"):  # as in compiled code
            getattr(self._plain, kernel)(self._record, self._params, *copies)

    def described(self, error: Exception) -> str:
        """An error with the author's line."""
        return described(error, self._lines.of_error(error))

    def step(self, action: np.ndarray) -> Traced:
        """Step, without autoreset, and see after which line the state is not finite."""
        envs = records(self._record, record_dtype(self._env))
        params = records(self._params, self._env.params_dtype())
        with np.errstate(all="ignore"):
            return self._lines.trace(
                lambda: self._plain.step_one(envs, params, 0, action),
                lambda: self.not_finite() is not None,
            )

    def not_finite(self) -> str | None:
        """A number of the state that is not finite: `state.v is nan`."""
        return not_finite(self._record.view(record_dtype(self._env))["state"], "state")

    def line_that_writes(self, wrong: Outside) -> Line | None:
        """Where `observe` writes a number; None if it leaves it as it was."""
        layout = observation_layout(self._env.observation_space)
        rows = np.zeros((1, *layout.shape), layout.dtype)
        leaf, _ = list(observation_leaves(self._env.observation_space, rows))[wrong.leaf]
        number = leaf.array[(slice(0, 1), *wrong.index)]  # a view

        def observe() -> None:
            self._plain.observe_all(self._record, self._params, rows)

        if self._lines.trace(observe, lambda: False).error:
            return None
        written = number.tobytes()
        rows[:] = 0
        return self._lines.trace(observe, lambda: number.tobytes() == written).became_bad

    def line_that_forbids(self, choice: slice) -> Line | None:
        """After which line of `action_mask` nothing of a choice is allowed; choice: its columns."""
        mask = np.ones((1, action_layout(self._env.action_space).mask_size), np.bool_)
        return self._lines.trace(
            lambda: self._plain.mask_all(self._record, self._params, mask),
            lambda: not mask[:, choice].any(),
        ).became_bad


def described(error: Exception, line: Line | None = None) -> str:
    """An error on one line; an IndexError of ours names the place itself."""
    said = str(error).partition("\n")[0]
    text = said if isinstance(error, IndexError) else f"{type(error).__name__}: {said}"
    return f"{text} ({line})" if line else text
