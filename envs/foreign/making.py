"""Foreign environments, by whichever way they are stepped."""

from rollout.envs import philox
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.foreign_envs import ForeignEnvs
from rollout.envs.foreign.looped_envs import LoopedEnvs
from rollout.envs.foreign.vector_envs import VectorEnvs


def make_envs(
    env: ForeignEnv,
    num_envs: int,
    seed: int,
    *,
    first_env: int = 0,
    begin: bool = True,
    pictures: bool = False,
    state_bytes: int = philox.CLOCK.itemsize,
) -> ForeignEnvs:
    """The arguments are those of LoopedEnvs."""
    if env.is_vector:
        return VectorEnvs(env, num_envs, seed, first_env=first_env, begin=begin)
    return LoopedEnvs(
        env,
        num_envs,
        seed,
        first_env=first_env,
        begin=begin,
        pictures=pictures,
        state_bytes=state_bytes,
    )
