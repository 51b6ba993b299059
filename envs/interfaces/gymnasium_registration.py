"""Compiled environments by name in Gymnasium: `gymnasium.make` and `gymnasium.make_vec`."""

import gymnasium

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.registry import BUNDLED, as_env

NAMESPACE = "rollout"

# As the definitions have them, which would all be imported to ask. Those not here have no limit.
TIME_LIMITS = {
    "CartPole-v1": 500,
    "Acrobot-v1": 500,
    "MountainCar-v0": 200,
    "MountainCarContinuous-v0": 999,
    "Pendulum-v1": 200,
    "Asterix-MinAtar": 10_000,
    "Asterix-MinAtar-full": 10_000,
    "Breakout-MinAtar": 10_000,
    "Breakout-MinAtar-full": 10_000,
    "Seaquest-MinAtar": 10_000,
    "Seaquest-MinAtar-full": 10_000,
    "SpaceInvaders-MinAtar": 10_000,
    "SpaceInvaders-MinAtar-full": 10_000,
    "Counting-v0": 5,
    "Slow-v0": 500,
}


def register(env_id: str, env: type[CompiledEnv] | str) -> None:
    """Let `gymnasium.make(env_id)` and `gymnasium.make_vec(env_id, num_envs=N)` build `env`.

    env_id: `name-v0`, or with a namespace `name/name-v0`.
    """
    env = as_env(env)
    _register(env_id, env, env.max_episode_steps)


def _register(env_id: str, env: type[CompiledEnv] | str, max_episode_steps: int | None) -> None:
    gymnasium.register(
        env_id,
        entry_point="rollout.envs.interfaces.single_env:UnlimitedEnv",
        vector_entry_point="rollout.envs.interfaces.vector_env:VectorEnv",
        max_episode_steps=max_episode_steps,  # the wrapper TimeLimit counts, or our VectorEnv
        kwargs={"env": env},
    )


for _env_id in BUNDLED:
    _register(f"{NAMESPACE}/{_env_id}", _env_id, TIME_LIMITS.get(_env_id))
