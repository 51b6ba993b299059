"""Environments whose `close` fails, and those that fail while others like them are open."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from rollout.envs import EnvError
from rollout.envs.foreign import closing
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.looped_envs import LoopedEnvs
from rollout.envs.foreign.trying_out import try_out


class Counted(gymnasium.Env):
    """Counts those that are open. fails_at: the number of the one that fails to be made or reset.

    how: whether in "make" or "reset"; noisy: whether `close` raises.
    """

    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)
    made, is_open = 0, 0
    noisy: ClassVar[type[BaseException] | None] = None
    fails_at, how = 0, ""

    def __init__(self) -> None:
        Counted.made += 1
        self.number = Counted.made
        if self.how == "make" and self.number == self.fails_at:
            raise RuntimeError("no licence left")
        Counted.is_open += 1

    def reset(self, *, seed=None, options=None):
        if self.how == "reset" and self.number == self.fails_at:
            raise RuntimeError("no licence left")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def close(self) -> None:
        Counted.is_open -= 1
        if self.noisy:
            raise self.noisy("the window is gone")


@pytest.fixture
def counted(monkeypatch):
    for name, value in {"made": 0, "is_open": 0}.items():
        monkeypatch.setattr(Counted, name, value)
    monkeypatch.setattr(closing, "_told", set())
    return Counted


@pytest.mark.parametrize("how", ["make", "reset"])
def test_environments_are_closed_when_one_of_them_cannot_begin(counted, monkeypatch, how):
    env = ForeignEnv("Counted", counted)
    monkeypatch.setattr(counted, "how", how)
    monkeypatch.setattr(counted, "fails_at", counted.made + 3)
    monkeypatch.setattr(counted, "noisy", ValueError)
    with pytest.raises((EnvError, RuntimeError), match="no licence left"):
        LoopedEnvs(env, 5, 0)
    assert counted.made > 2 and counted.is_open == 0


@pytest.mark.parametrize("noisy", [OSError, SystemExit])
def test_close_that_raises_is_told_once_and_ends_nothing(counted, monkeypatch, caplog, noisy):
    monkeypatch.setattr(counted, "noisy", noisy)
    env = ForeignEnv("Counted", counted)
    try_out(env, 0)
    envs = LoopedEnvs(env, 3, 0)
    envs.close()
    assert counted.is_open == 0
    (record,) = caplog.records
    wanted = f"environment 'Counted': close fails at {__file__}:"
    assert wanted in record.getMessage() and "the window is gone" in record.getMessage()
