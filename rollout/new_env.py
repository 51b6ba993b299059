"""`rollout new-env`: a small environment that works, and its test, for an author to change.

ENV and TEST are what is written, with the names of class and module put in.
"""

import importlib.machinery
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rollout.errors import OperatorError

ENV = '''\
"""A puck on a track."""

import numpy as np
from gymnasium.spaces import Box, Discrete
from rollout.envs import CompiledEnv, uniform

TIME_STEP = 0.1  # seconds between two steps
EDGE = 1.0  # the track goes from -EDGE to EDGE, in metres


class CLASS(CompiledEnv):
    """Push a puck left (0), not at all (1) or right (2), to keep it in the middle."""

    # All that an environment remembers; zero before each `reset`.
    state = np.dtype([("x", "f8"), ("velocity", "f8"), ("mass", "f8")])
    # Numbers that never change, until `env.params` of an experiment sets others.
    params = {"force": 1.0, "min_mass": 0.5, "max_mass": 2.0}
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(3)
    max_episode_steps = 100

    # These functions are compiled: numbers, arrays, loops and `math`, but no `self`.

    def reset(state, params, draw):
        """Begin an episode."""
        state.x = uniform(draw, -0.5, 0.5)
        # Each episode has a mass of its own, which the policy does not see.
        state.mass = uniform(draw, params.min_mass, params.max_mass)

    def step(state, params, action, draw):
        """Do one step; returns (reward, terminated)."""
        state.velocity += params.force * (action - 1) / state.mass * TIME_STEP
        state.x += state.velocity * TIME_STEP
        return 1.0 - abs(state.x), abs(state.x) > EDGE

    def observe(state, params, observation):
        """Write what the policy sees."""
        observation[0] = state.x
        observation[1] = state.velocity

    def render(state, params):
        """Draw it, as uint8 [height, width, 3]; this one is plain Python."""
        picture = np.full((40, 220, 3), 255, np.uint8)
        picture[20, 10:210] = 0
        column = 110 + int(100 * min(max(state.x, -EDGE), EDGE))
        half = 2 + int(2 * state.mass)
        picture[20 - half : 20 + half, column - half : column + half] = (200, 120, 60)
        return picture
'''

TEST = '''\
"""What CLASS keeps to, and what it does."""

import numpy as np
from rollout.envs import Envs, Outcome, check_env

from MODULE import CLASS

NUM_ENVS = 8


def test_keeps_to_the_contract():
    assert check_env(CLASS).failures == ()


def test_light_pucks_are_pushed_further():
    envs, outcome = Envs(CLASS, NUM_ENVS, seed=0), Outcome(CLASS, NUM_ENVS)
    envs.records["state"]["x"] = 0.0
    for _ in range(3):
        envs.step(np.full(NUM_ENVS, 2, np.int32), outcome)  # all of them to the right
    mass, x = envs.records["state"]["mass"], outcome.observation[:, 0]
    assert len(np.unique(mass)) == NUM_ENVS, "each episode has a mass of its own"
    assert (x > 0).all()
    assert (np.argsort(mass) == np.argsort(-x)).all()
'''

# What the class must not hide from the module that it is in
TAKEN = set(re.findall(r"\b[A-Za-z]\w+\b", "np Box Discrete CompiledEnv uniform TIME_STEP EDGE"))


@dataclass(frozen=True)
class NewEnv:
    """What was written. id: `module:Class`, as an experiment names it."""

    file: Path
    test: Path
    id: str


def write_new_env(file: Path, name: str | None = None) -> NewEnv:
    """Write an environment, class `name` or one named after the file, and its test beside it.

    Raises OperatorError, before anything is written, if a name cannot be or a file is there.
    """
    module = _checked_module(file)
    name = _checked_class(name, module)
    test = file.with_name(f"test_{file.name}")
    if not file.parent.is_dir():
        raise OperatorError(f"{file}: there is no folder {file.parent}; make it first")
    for path in (file, test):
        if path.exists() or path.is_symlink():
            raise OperatorError(f"{path} exists, nothing was written; choose another name")
    names = {"CLASS": name, "MODULE": module}
    for path, text in ((file, ENV), (test, TEST)):
        try:
            with open(path, "x") as opened:
                opened.write(re.sub("CLASS|MODULE", lambda found: names[found[0]], text))
        except OSError as error:
            raise OperatorError(f"{path}: cannot be written: {error.strerror}") from error
    return NewEnv(file, test, f"{module}:{name}")


def _checked_module(file: Path) -> str:
    """The name that the file is imported by."""
    module = file.stem
    if file.suffix != ".py":
        raise OperatorError(f"{file}: wanted a Python file; try {_identifier(module)}.py")
    if not module.strip("_"):
        raise OperatorError(f"{file}: no name to call an environment by; try env.py")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise OperatorError(f"{file}: {module!r} cannot be imported; try {_identifier(module)}.py")
    if module.startswith("test_") or module.endswith("_test") or module == "conftest":
        raise OperatorError(
            f"{file}: pytest would take it for its own; try {_of_no_test(module)}.py"
        )
    if _is_importable(module):
        raise OperatorError(
            f"{file}: there is another module {module}, which it would hide; try {module}_env.py"
        )
    return module


def _checked_class(name: str | None, module: str) -> str:
    if name is None:
        name = "".join(word[:1].upper() + word[1:] for word in module.split("_"))
        return f"{name}Env" if name in TAKEN else name
    if not name.isidentifier() or keyword.iskeyword(name):
        raise OperatorError(f"--name {name}: wanted a name for a class, such as Walk")
    if name in TAKEN:
        raise OperatorError(f"--name {name}: the file needs {name} itself; try {name}Env")
    return name


def _identifier(text: str) -> str:
    """A name near to what somebody typed."""
    name = re.sub(r"\W+", "_", text).strip("_") or "env"
    return f"{name}_env" if keyword.iskeyword(name) else re.sub(r"^(?=\d)", "env_", name)


def _of_no_test(module: str) -> str:
    name = module.removeprefix("test_").removesuffix("_test")
    return "my_env" if name in ("", "conftest") else name


def _is_importable(module: str) -> bool:
    """Whether Python or something installed has a module of this name."""
    if module in sys.stdlib_module_names:
        return True
    here = {"", ".", str(Path.cwd())}
    found = importlib.machinery.PathFinder.find_spec(
        module, [place for place in sys.path if place not in here]
    )
    return found is not None and found.loader is not None  # a folder alone is no module
