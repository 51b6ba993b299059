"""Environments: how to write one, the compiled loops around it, and those that come bundled."""

from rollout.envs.batch import Envs, Outcome
from rollout.envs.checks.check_env import check_env
from rollout.envs.checks.check_report import Check, CheckReport
from rollout.envs.checks.check_vector_env import check_vector_env
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.interfaces.gymnasium_registration import register
from rollout.envs.interfaces.single_env import SingleEnv
from rollout.envs.interfaces.vector_env import VectorEnv
from rollout.envs.philox import integers, normal, uniform
from rollout.envs.registry import BUNDLED, find_env

__all__ = [
    "BUNDLED",
    "Check",
    "CheckReport",
    "CompiledEnv",
    "EnvError",
    "Envs",
    "Outcome",
    "SingleEnv",
    "VectorEnv",
    "check_env",
    "check_vector_env",
    "find_env",
    "integers",
    "normal",
    "register",
    "uniform",
]
