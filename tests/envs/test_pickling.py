"""Environments of any module or none reach another process, with what messages say of them."""

import functools
import linecache
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rollout.envs import CompiledEnv, EnvError, Envs
from rollout.envs.checks.fresh_process import in_fresh_process
from rollout.envs.pickling import pickled, pickled_env, unpickled
from tests.envs import mistakes, test_compile_errors
from tests.some_fast import slow_unless


def run_cell(text: str, name: str) -> dict[str, Any]:
    """What code in a notebook's cell defines: its text is known to this process alone."""
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    module = types.ModuleType("__main__")
    exec(compile(text, name, "exec"), module.__dict__)
    return module.__dict__


@pytest.fixture(scope="module")
def cell() -> dict[str, Any]:
    files = mistakes.__file__, test_compile_errors.__file__
    return run_cell("".join(Path(file).read_text() for file in files), "<ipython-input-7-test>")


def messages(envs: list[type[CompiledEnv]]) -> Iterator[str]:
    for env in envs:
        with pytest.raises(EnvError) as caught:
            Envs(env, 1, seed=0)
        yield str(caught.value)


FAST = ("step_adds_text", "step_calls_a_method_of_its_class")


@pytest.mark.parametrize("count", slow_unless(["few"], ["few", "all"]))
def test_mistakes_in_a_cell_are_answered_alike_in_another_process(
    cell, count, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", str(tmp_path))
    envs = [cell["Gaining"]]
    for mistake in cell["MISTAKES"]:
        name = mistake.function.__name__
        if count == "all" or name in FAST:
            binding = name.partition("_")[0].replace("mask", "action_mask")
            envs.append(cell["define"](binding, mistake.function, **mistake.spaces))
    here = list(messages(envs))
    assert len(here) == (len(cell["MISTAKES"]) + 1 if count == "all" else 3)
    assert "<ipython-input-7-test>" in here[0] and "GAIN is an attribute of the class" in here[0]
    assert list(in_fresh_process(messages, envs)) == here


SELF_NAMING = """
import functools
import numpy as np
from gymnasium.spaces import Box, Discrete
from rollout.envs import CompiledEnv

class Mine(CompiledEnv):
    state = np.dtype([("x", "f8")])
    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)
    limit = 7

    def reset(state, params, draw): pass
    def step(state, params, action, draw): return 0.0, False
    def observe(state, params, observation): pass
    def render(state, params): return Mine.limit + Mine.step(state, params, 0, 0)[0] + twice(1)

@functools.lru_cache(maxsize=5)
def twice(x):
    return 2 * x if x else twice(0)
"""


def there_and_back(value: Any) -> Any:
    return unpickled(pickled(value))


def test_class_that_names_itself_is_one_class_there():
    mine = run_cell(SELF_NAMING, "<cell>")["Mine"]
    sent = there_and_back(mine)
    assert sent is not mine and sent.__qualname__ == "Mine"
    assert sent.render.__globals__["Mine"] is sent
    assert sent.render(None, None) == 9.0
    assert sent.render.__globals__["twice"].cache_parameters()["maxsize"] == 5


def test_later_imports_look_where_the_sender_would_last(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/two", ""])
    sent = pickled(3)
    monkeypatch.setattr(sys, "path", ["/one", "/two"])
    assert unpickled(sent) == 3
    assert sys.path == ["/one", "/two", str(tmp_path), ""]


LOCK = threading.Lock()


class Walk(gymnasium.Env):
    lock: Any = None


def make_walk(lock: Any) -> Any:
    def make() -> Walk:
        return Walk(lock)  # pyright: ignore[reportCallIssue]

    return make


def make_any(**kwargs: Any) -> Walk:
    return Walk(**kwargs)


def local(**members: Any) -> type:
    """A class that goes whole."""
    return type("Local", (Walk,), members)


def of_main(function: Any) -> Any:
    """A function that goes whole."""
    function.__module__ = "__main__"
    return function


class Config:
    def __init__(self) -> None:
        self.parts = {"first": [1, {"handle": LOCK}]}


CONFIG = Config()


def locked_walk() -> type:
    """A class of a function's, whose first method fails only by the class itself."""

    class Locked(Walk):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)

        def step(self, action):
            with LOCK:
                return super().step(action)

    Locked.__module__ = Locked.reset.__module__ = Locked.step.__module__ = "__main__"
    return Locked


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (local(lock=LOCK), "Local.lock is a _thread.lock (cannot pickle '_thread.lock' object)"),
        (local(parts=[1, (i for i in "ab")]), "Local.parts[1] is a generator (cannot pickle"),
        (make_walk(LOCK), "lock, which make uses, is a _thread.lock"),
        (functools.partial(make_any, lock=LOCK), "an argument of make_any is a _thread.lock"),
        (of_main(lambda x=LOCK: Walk()), "a default of <lambda> is a _thread.lock"),
        (
            of_main(lambda: [CONFIG for _ in "a"]),
            "CONFIG.parts['first'][1]['handle'], which <lambda> uses, is a _thread.lock",
        ),
        (local(x=property(of_main(lambda self: LOCK))), "LOCK, which Local.x uses, is a _thread.l"),
        (local(x=staticmethod(of_main(lambda: LOCK))), "LOCK, which Local.x uses, is a _thread.l"),
        (locked_walk(), "LOCK, which Local.step uses, is a _thread.lock"),
        (type("Inner", (local(lock=LOCK),), {}), "Local.lock is a _thread.lock"),
    ],
)
def test_what_cannot_be_pickled_is_named(env, said):
    with pytest.raises(EnvError) as caught:
        pickled_env(env, "object:Local" if isinstance(env, type) else f"object:{name_of(env)}")
    message = str(caught.value)
    assert said in message and message.endswith("so that each process has its own")


def name_of(env: Any) -> str:
    return env.func.__name__ if isinstance(env, functools.partial) else env.__name__
