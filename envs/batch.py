"""N environments as one array of records, stepped by compiled loops."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollout.envs import philox
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.layouts import ActionLayout, ObservationLayout, action_layout, observation_layout
from rollout.envs.records import RecordView, as_author_sees

if TYPE_CHECKING:
    from rollout.envs.registry import AnyEnv

TEMPLATE = Path(__file__).parent / "batch_kernel.py"


def record_dtype(env: type[CompiledEnv]) -> np.dtype:
    """The record of one environment: its clock (philox.CLOCK) and its own state."""
    return np.dtype([("clock", philox.CLOCK), ("state", env.state)])


def state_bytes(env: AnyEnv) -> int:
    """Length of one environment's part of a snapshot."""
    if not isinstance(env, type):
        return env.state_bytes
    return philox.CLOCK.itemsize if env.has_hidden_state else record_dtype(env).itemsize


def state_fields(env: AnyEnv) -> str:
    """What a snapshot holds of an environment besides its clock, in NumPy's words."""
    if env.has_hidden_state:
        return "hidden"
    return str(env.state) if isinstance(env, type) else f"{env.state_bytes} bytes that it saves"


def env_bindings(env: type[CompiledEnv], jit: bool) -> dict[str, Any]:
    """What batch_kernel.py needs to know of an environment."""
    shown = observation_layout(env.observation_space)
    has_mask = hasattr(env, "action_mask")
    functions = {"env_reset": env.reset, "env_step": env.step, "env_observe": env.observe}
    if has_mask:
        functions["env_mask"] = env.action_mask
    if not jit:
        functions = {name: _in_plain_python(function) for name, function in functions.items()}
    return functions | {
        "ENV_RECORD": record_dtype(env),
        "PARAMS_RECORD": env.params_dtype(),
        "OBSERVATION_RECORD": shown.record,
        "OBSERVATION_SIZE": shown.size,
        "HAS_MASK": has_mask,
        "MAX_EPISODE_STEPS": env.max_episode_steps or 0,
        "STATE_OFFSET": philox.CLOCK.itemsize,
        "RECORD_SIZE": record_dtype(env).itemsize,
        "STEP_DRAWS": _uses_parameter(env.step, 3),
        "HAS_HIDDEN_STATE": env.has_hidden_state,
        "RESET_STREAM": philox.RESET,
        "STEP_STREAM": philox.STEP,
    }


def _in_plain_python(function: Any) -> Any:
    """An author's function that gets views: NumPy's numbers wrap where compiled code's do not."""
    from rollout.envs.function_copies import undecorated  # loads Numba

    names = tuple(inspect.signature(function).parameters)
    written = undecorated(function)

    def plain(*arguments: Any) -> Any:
        return written(*map(as_author_sees, arguments, names))

    return plain


def _uses_parameter(function: Any, position: int) -> bool:
    name = function.__code__.co_varnames[position]
    # Python 3.13 loads two variables with one instruction, whose argval is both names.
    loads = (instruction.argval for instruction in dis.get_instructions(function))
    return any(name in loaded if isinstance(loaded, tuple) else name == loaded for loaded in loads)


class Envs:
    """Environments first_env, …, first_env + num_envs - 1 of a run, all at the start of episode 0.

    Holds everything about them in `records`, [N] of `record_dtype(env)`. Owned by one process.
    jit=False runs the same functions as plain Python, for a debugger. checked=True raises EnvError
    that names place and value (see checks/checked.py) where an index lies outside its array, an
    observation outside its space, or a reward is not finite; much slower.
    """

    def __init__(
        self,
        env: type[CompiledEnv],
        num_envs: int,
        seed: int,
        *,
        first_env: int = 0,
        params: Mapping[str, Any] | None = None,
        jit: bool = True,
        checked: bool = False,
        begin: bool = True,
    ) -> None:
        """begin: reset all of them; without, their records are zero until `restore`."""
        if not (isinstance(env, type) and issubclass(env, CompiledEnv)):
            raise EnvError(f"environment {env!r}, wanted a subclass of rollout.envs.CompiledEnv")
        _check_range("num_envs", num_envs, 1, 2**31)
        _check_range("seed", seed, 0, 2**32)
        _check_range("first_env", first_env, 0, 2**32 - num_envs + 1)
        self.env = env
        self.num_envs = num_envs
        self.records = np.zeros(num_envs, record_dtype(env))
        self.record_bytes = self.records.view(np.uint8)
        self.params = env.make_params(params)
        self.params_bytes = self.params.view(np.uint8)
        self.jit = jit
        self._action_shape = (num_envs, *action_layout(env.action_space).shape)
        self._outcome_shape = (num_envs, *observation_layout(env.observation_space).shape)
        self._kernels = load_env_kernels(env, jit, checked)
        self._step_all = self._kernels.step_all
        if begin:
            self._kernels.begin_all(*self.kernel_arguments(), np.uint32(seed), np.uint32(first_env))

    def __repr__(self) -> str:
        return f"Envs({self.env.__name__}, num_envs={self.num_envs}, jit={self.jit})"

    @property
    def clocks(self) -> np.ndarray:
        """Where each environment is: [N] of philox.CLOCK, a view."""
        return self.records["clock"]

    def kernel_arguments(self) -> tuple[np.ndarray, np.ndarray]:
        """(env_bytes, params_bytes) as the kernels take them."""
        return self.record_bytes, self.params_bytes

    def snapshot(self) -> bytes:
        """All that is known of what the environments will do, state_bytes(env) of each in turn.

        Their records, or, of environments with hidden state, their clocks.
        """
        return self._states().tobytes()

    def restore(
        self,
        snapshot: bytes | memoryview,
        position: np.ndarray | None = None,
        stride: int = 1,
    ) -> None:
        """Put back what `snapshot` returned, here or in another process.

        position: int64 [1], becomes i * stride before environment i is reset, if it is.

        Where an episode had only begun, its clock is enough. Environments with hidden state begin
        the next episode where one was under way.
        """
        states = self._states()
        if len(snapshot) != states.size:
            raise EnvError(
                f"snapshot of {len(snapshot)} bytes; {self.num_envs} environments "
                f"{self.env.__qualname__} have {states.size}"
            )
        states[:] = np.frombuffer(snapshot, np.uint8).reshape(states.shape)
        if position is None:
            position = np.zeros(1, np.int64)
        self._kernels.go_on_all(*self.kernel_arguments(), position, np.int64(stride))

    def _states(self) -> np.ndarray:
        """The known part of the records: uint8 [N, state_bytes(env)], a view."""
        return self.record_bytes.reshape(self.num_envs, -1)[:, : state_bytes(self.env)]

    def observation(self) -> np.ndarray:
        """What the environments show now: [N, *layout.shape] of `observation_layout`."""
        observation = _rows(observation_layout(self.env.observation_space), self.num_envs)
        self._kernels.observe_all(*self.kernel_arguments(), observation)
        return observation

    def action_mask(self) -> np.ndarray:
        """What is allowed now: bool [N, mask_size], all of it where the author has no mask."""
        size = action_layout(self.env.action_space).mask_size
        mask = np.ones((self.num_envs, size), np.bool_)
        self._kernels.mask_all(*self.kernel_arguments(), mask)
        return mask

    def render(self, i: int = 0) -> np.ndarray:
        """Environment i as a picture, uint8 [height, width, 3]."""
        _check_range("i", i, 0, self.num_envs)
        render = getattr(self.env, "render", None)
        if render is None:
            raise EnvError(f"{self.env.__qualname__} has no render(state, params)")
        state = RecordView(self.records["state"][i : i + 1], "state")
        return render(state, RecordView(self.params, "params"))

    def step(self, action: np.ndarray, outcome: Outcome) -> None:
        """Step all environments once and write `outcome`.

        action: [N, *layout.shape] of `action_layout`: int32 [N] for Discrete, [N, n] else.
        """
        try:
            # The kernel knows dtypes and contiguity by its types, but not lengths.
            if action.shape != self._action_shape or outcome.shape != self._outcome_shape:
                raise TypeError
            outcome.num_finals, outcome.num_episodes = self._step_all(
                self.record_bytes, self.params_bytes, action, *outcome.arrays
            )
        except (TypeError, AttributeError) as error:
            if self._fit(action, outcome):
                raise  # the author's own
            raise EnvError(self._step_problem(action, outcome)) from error

    def close(self) -> None:
        """Nothing has to be let go of, as it has with other environments."""

    def _fit(self, action: Any, outcome: Any) -> bool:
        """Whether `step` can take these."""
        layout = action_layout(self.env.action_space)
        return (
            isinstance(action, np.ndarray)
            and (action.shape, action.dtype) == (self._action_shape, layout.dtype)
            and action.flags.c_contiguous
            and isinstance(outcome, Outcome)
            and outcome.shape == self._outcome_shape
        )

    def _step_problem(self, action: Any, outcome: Outcome) -> str:
        if not isinstance(outcome, Outcome) or outcome.shape != self._outcome_shape:
            return f"{self!r} stepped with {outcome!r}"
        found = type(action).__name__
        if isinstance(action, np.ndarray):
            found = f"{action.dtype} {list(action.shape)}"
            found += "" if action.flags.c_contiguous else ", not contiguous"
        layout = action_layout(self.env.action_space)
        wanted = f"{layout.dtype} {[self.num_envs, *layout.shape]}"
        return f"{self.env.__qualname__} got actions {found}, wanted {wanted}"


class Outcome:
    """What one step of N environments answers; written by `Envs.step`, reused from step to step.

    observation: [N, …] of the layout, of the next episode where one ended (SAME_STEP autoreset).
    reward: [N] float32. terminated, truncated: [N] bool.
    final_env, final_observation: the first `num_finals` rows tell which environments were truncated
        and what they showed last.
    episode_env, episode_return, episode_length: the first `num_episodes` rows, one per episode that
        finished.
    """

    def __init__(self, env: AnyEnv, num_envs: int) -> None:
        self.env = env
        self.num_envs = num_envs
        self.observation = _rows(observation_layout(env.observation_space), num_envs)
        self.shape = self.observation.shape
        self.reward = np.zeros(num_envs, np.float32)
        self.terminated = np.zeros(num_envs, np.bool_)
        self.truncated = np.zeros(num_envs, np.bool_)
        self.final_env = np.zeros(num_envs, np.int32)
        self.final_observation = np.zeros_like(self.observation)
        self.episode_env = np.zeros(num_envs, np.int32)
        self.episode_return = np.zeros(num_envs, np.float64)
        self.episode_length = np.zeros(num_envs, np.int32)
        self.num_finals = 0
        self.num_episodes = 0
        self.arrays = (  # in the order `step_all` takes them
            self.observation,
            self.reward,
            self.terminated,
            self.truncated,
            self.final_env,
            self.final_observation,
            self.episode_env,
            self.episode_return,
            self.episode_length,
        )

    def __repr__(self) -> str:
        return f"Outcome({self.env.__name__}, num_envs={self.num_envs})"


def _check_range(name: str, value: Any, low: int, stop: int) -> None:
    if not (isinstance(value, int | np.integer) and low <= value < stop):
        raise EnvError(f"{name}={value!r}, wanted an integer from {low} to {stop - 1}")


def _rows(layout: ObservationLayout | ActionLayout, num_envs: int) -> np.ndarray:
    """Zeros for a row per environment."""
    return np.zeros((num_envs, *layout.shape), layout.dtype)


def load_env_kernels(env: type[CompiledEnv], jit: bool = True, checked: bool = False) -> Any:
    """The functions of batch_kernel.py for one environment; loaded once per process."""
    return _load_env_kernels(env, jit, checked)


@functools.cache
def _load_env_kernels(env: type[CompiledEnv], jit: bool, checked: bool) -> Any:
    from rollout.envs import kernels  # loads Numba, which who only names environments can spare

    outcome = Outcome(env, 2)
    head = (np.zeros(1, np.uint8), np.zeros(1, np.uint8))
    examples = {
        "begin_all": (*head, np.uint32(0), np.uint32(0)),
        "go_on_all": (*head, np.zeros(1, np.int64), np.int64(1)),
        "observe_all": (*head, outcome.observation),
        "mask_all": (*head, np.zeros((2, 1), np.bool_)),
        "step_all": (*head, _rows(action_layout(env.action_space), 2), *outcome.arrays),
    }
    loaded = kernels.load_kernels(
        TEMPLATE,
        env_bindings(env, jit),
        examples,
        jit,
        authored=_authored_functions(env),
        checked=checked,
    )
    if not checked:
        return loaded
    from rollout.envs.checks.checked import CheckedKernels

    return CheckedKernels(env, loaded)


def _authored_functions(env: type[CompiledEnv]):
    """What kernels.py must know of an environment to blame the right line of it."""
    import numba

    from rollout.envs.kernels import Authored

    shown, taken = observation_layout(env.observation_space), action_layout(env.action_space)
    state, params, draw = (
        numba.typeof(np.zeros(1, dtype)[0])
        for dtype in (env.state, env.params_dtype(), philox.CLOCK)
    )
    action = numba.typeof(_rows(taken, 1)[0])
    observation = numba.typeof(_rows(shown, 1)[0])
    if shown.record is not None:
        observation = numba.typeof(np.zeros(1, shown.record)[0])
    mask = {}
    if hasattr(env, "action_mask"):
        mask["env_mask"] = (state, params, numba.typeof(np.zeros(1, np.bool_)))
    return Authored(
        owner=env.__qualname__,
        types={
            "env_reset": (state, params, draw),
            "env_step": (state, params, action, draw),
            "env_observe": (state, params, observation),
            **mask,
        },
        may_hide_state=env.has_hidden_state,
    )
