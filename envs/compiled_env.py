"""How an environment is written: a few plain functions over one flat record.

    class Pole(CompiledEnv):
        state = np.dtype([("x", "f8"), ("x_dot", "f8")])
        params = {"force": 10.0}
        observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        action_space = Discrete(2)
        max_episode_steps = 500

        def reset(state, params, draw): ...
        def step(state, params, action, draw): ...      # -> reward, terminated
        def observe(state, params, observation): ...    # writes one observation

The functions take no `self`: `state` and `params` are records of the dtypes above, and everything
an environment remembers is in `state`. Numba compiles them; the kit adds the batch loop, the time
limit, autoreset, episode statistics, seeding and snapshots.
"""

import difflib
import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium.spaces import Space

from rollout.envs.errors import EnvError
from rollout.envs.layouts import NUMBERS, action_layout, observation_layout

SIGNATURES = {
    "reset": ("state", "params", "draw"),
    "step": ("state", "params", "action", "draw"),
    "observe": ("state", "params", "observation"),
    "action_mask": ("state", "params", "mask"),
    "render": ("state", "params"),
}
OPTIONAL = ("action_mask", "render")
OPTIONAL_ATTRIBUTES = ("params", "max_episode_steps", "has_hidden_state", "render_fps")
NO_LIMIT = -1  # in place of a number of steps, as `gymnasium.make` has it


class CompiledEnv:
    """Base of compiled environments; a subclass is a definition and is never instantiated.

    state: dtype of the record that is an environment's whole state; zero before every `reset`.
    params: name → default of the numbers that never change in an episode (`env.params` in an
        experiment file); integers stay int64, floats float64, booleans bool.
    observation_space: a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
    action_space: a Discrete, a MultiDiscrete, or a Box of float32 [n].
    max_episode_steps: steps after which an episode is truncated, or None.
    has_hidden_state: whether an episode depends on more than `state`, on something a function of
        its own calls, say. It cannot be moved or saved then: its episodes are begun anew instead.
    render_fps: pictures per second at which `render` looks like the real thing.
    reset(state, params, draw): begins an episode.
    step(state, params, action, draw): returns (reward, terminated). action: an integer for
        Discrete, an int32 array for MultiDiscrete, a float32 array for Box, which a fleet clips to
        the space's bounds.
    observe(state, params, observation): writes one observation, which is zero before: an array in
        the space's dtype and shape ([1] for Discrete), or for a Dict a record with its names.
    action_mask(state, params, mask), optional: sets to False what is not allowed now, in a bool
        array [n] that is True before (of MultiDiscrete: the choices side by side).
    render(state, params), optional and not compiled: a uint8 array [height, width, 3].
    """

    state: ClassVar[np.dtype]
    params: ClassVar[Mapping[str, float | int | bool]] = {}
    observation_space: ClassVar[Space]
    action_space: ClassVar[Space]
    max_episode_steps: ClassVar[int | None] = None
    has_hidden_state: ClassVar[bool] = False
    render_fps: ClassVar[int] = 30
    without_limit: ClassVar["type[CompiledEnv] | None"] = None  # what with_time_limit began with
    reset: Any
    step: Any
    observe: Any
    action_mask: Any  # there only if the author wrote it; so is `render`
    render: Any

    if TYPE_CHECKING:  # a type checker takes `state` for self: let it have any field

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        problems = _problems(cls)
        if problems:
            raise EnvError(f"environment {cls.__qualname__}: " + "; ".join(problems))

    @classmethod
    def with_time_limit(cls, max_episode_steps: int) -> "type[CompiledEnv]":
        """The same environment with another time limit, or NO_LIMIT; one class for each limit."""
        return _with_time_limit(cls, max_episode_steps)

    @classmethod
    def params_dtype(cls) -> np.dtype:
        """The record that `params` becomes."""
        kinds = {bool: np.bool_, int: np.int64, float: np.float64}
        fields = [(name, kinds[type(value)]) for name, value in cls.params.items()]
        return np.dtype(fields or [("nothing", np.bool_)])  # compiled code needs a field

    @classmethod
    def make_params(cls, chosen: Mapping[str, Any] | None = None) -> np.ndarray:
        """The params record, shape [1], with `chosen` in place of the defaults."""
        if not isinstance(chosen, Mapping | None):
            raise EnvError(f"{cls.__qualname__}: params are {chosen!r}, wanted a dictionary")
        chosen = dict(chosen or {})
        problems = [_param_problem(cls.params, name, value) for name, value in chosen.items()]
        if any(problems):
            raise EnvError(f"{cls.__qualname__}: " + "; ".join(filter(None, problems)))
        record = np.zeros(1, cls.params_dtype())
        for name, value in (dict(cls.params) | chosen).items():
            record[name] = value
        return record


@functools.cache
def _with_time_limit(env: type[CompiledEnv], max_episode_steps: int) -> type[CompiledEnv]:
    limit = None if max_episode_steps == NO_LIMIT else max_episode_steps
    members = {"max_episode_steps": limit, "without_limit": env, "__doc__": env.__doc__}
    limited = type(env.__name__, (env,), members)
    limited.__module__, limited.__qualname__ = env.__module__, env.__qualname__
    return limited


def _param_problem(params: Mapping[str, Any], name: str, value: Any) -> str | None:
    if name not in params:
        near = difflib.get_close_matches(str(name), params, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(params) or 'none'}"
        return f"no param {name!r}; {hint}"
    kind = type(params[name])
    fits = {
        bool: isinstance(value, bool | np.bool_),
        int: isinstance(value, int | np.integer) and not isinstance(value, bool),
        float: isinstance(value, int | float | np.integer | np.floating)
        and not isinstance(value, bool),
    }[kind]
    if not fits:
        return f"param {name}={value!r}, wanted {_ARTICLE[kind]} like the default {params[name]!r}"
    if kind is int and not -(2**63) <= value < 2**63:
        return f"param {name}={value!r} does not fit into 64 bits"
    return None


_ARTICLE = {bool: "a bool", int: "an int", float: "a float"}


def _problems(cls: type[CompiledEnv]) -> list[str]:
    """What is wrong with a definition, all at once."""
    problems = []
    state = getattr(cls, "state", None)
    if not (isinstance(state, np.dtype) and state.names):
        problems.append(
            f"state is {state!r}, wanted a structured dtype such as np.dtype([('x', 'f8')])"
        )
    else:
        problems += _state_problems(state)
    if isinstance(cls.params, Mapping):
        for name, value in cls.params.items():
            if type(value) not in (bool, int, float):
                problems.append(f"params[{name!r}]={value!r}, wanted a bool, an int or a float")
            elif not str(name).isidentifier():
                problems.append(f"params[{name!r}] is not a name")
            elif type(value) is int and not -(2**63) <= value < 2**63:
                problems.append(f"params[{name!r}]={value!r} does not fit into 64 bits")
    else:
        problems.append(f"params is {cls.params!r}, wanted a dictionary of numbers")
    for name, layout in (
        ("observation_space", observation_layout),
        ("action_space", action_layout),
    ):
        try:
            layout(getattr(cls, name, None))
        except ValueError as error:
            problems.append(str(error))
    limit = cls.max_episode_steps
    if limit is not None and not (type(limit) is int and 0 < limit < 2**31):
        problems.append(f"max_episode_steps={limit!r}, wanted a positive integer or None")
    for name, wanted in SIGNATURES.items():
        problems += _function_problems(cls, name, wanted)
    problems += _misspelt(cls)
    if hasattr(cls, "action_mask") and not problems and not action_layout(cls.action_space).choices:
        problems.append(f"action_mask is for choices, {cls.action_space!r} has none")
    return problems


def _misspelt(cls: type[CompiledEnv]) -> list[str]:
    """What would be left out without a word: `action_masks` for `action_mask`."""
    written = vars(cls)
    missing = [name for name in OPTIONAL if not hasattr(cls, name)]
    missing += [name for name in OPTIONAL_ATTRIBUTES if name not in written]
    return [
        f"{name}: did you mean {meant}?"
        for name in written
        for meant in missing
        if not name.startswith("_") and _is_slip(name, meant)
    ]


def _is_slip(written: str, meant: str) -> bool:
    """Whether two names differ by one letter too many or too few, or by two that changed places."""
    short, long = sorted((written, meant), key=len)
    if len(long) == len(short) + 1:
        return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
    swapped = (short[:i] + short[i : i + 2][::-1] + short[i + 2 :] for i in range(len(short) - 1))
    return short != long and long in swapped


def _state_problems(dtype: np.dtype, prefix: str = "") -> list[str]:
    problems = []
    for name in dtype.names or ():
        field = dtype[name]
        if field.base.names:
            problems += _state_problems(field.base, f"{prefix}{name}.")
        elif field.base not in NUMBERS:
            problems.append(f"state.{prefix}{name} is {field}, wanted numbers or arrays of numbers")
        elif field.base == np.bool_ and field.shape:
            problems.append(
                f"state.{prefix}{name} is {field}, Numba has no arrays of bools in records: use u1"
            )
        elif 0 in field.shape:
            problems.append(f"state.{prefix}{name} is {field}, which holds nothing")
    return problems


def _function_problems(cls: type[CompiledEnv], name: str, wanted: tuple[str, ...]) -> list[str]:
    function = inspect.getattr_static(cls, name, None)
    form = f"def {name}({', '.join(wanted)})"
    if function is None:
        return [] if name in OPTIONAL else [f"{form} is missing"]
    if not inspect.isfunction(function):
        return [f"{name} is a {type(function).__name__}, wanted a plain function, {form}"]
    parameters = inspect.signature(function).parameters
    is_plain = all(one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters.values())
    is_disordered = any(
        given in wanted and given != name for given, name in zip(parameters, wanted, strict=False)
    )
    if len(parameters) != len(wanted) or not is_plain or is_disordered:
        return [f"{name} takes {inspect.signature(function)}, wanted ({', '.join(wanted)})"]
    return []
