"""Environments: how to write one, the compiled loops around it, and those that come bundled."""

from rollout.envs.batch import Envs, Outcome
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.philox import integers, normal, uniform
from rollout.envs.registry import BUNDLED, find_env

__all__ = [
    "BUNDLED",
    "CompiledEnv",
    "EnvError",
    "Envs",
    "Outcome",
    "find_env",
    "integers",
    "normal",
    "uniform",
]
