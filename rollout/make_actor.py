"""Environments of either kind with a policy that acts in them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from rollout.acting import UnrollActor, load_acting_kernels
from rollout.envs.batch import Envs
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.making import make_envs
from rollout.envs.registry import AnyEnv
from rollout.learners.network import ModuleSpec, Network, NetworkSpec
from rollout.learners.unroll import UnrollSchema
from rollout.modules import make_module
from rollout.stepping_actor import SteppingActor, load_choosing_kernels

if TYPE_CHECKING:
    from rollout.module_actor import ModuleActor

Actor = Union[UnrollActor, SteppingActor, "ModuleActor"]


def make_actor(
    env: AnyEnv,
    num_envs: int,
    seed: int,
    network: Network,
    schema: UnrollSchema,
    *,
    given_network: Any = None,
    params: Mapping[str, Any] | None = None,
    first_env: int = 0,
    begin: bool = True,
    pictures: bool = False,
    position: np.ndarray | None = None,
    jit: bool = True,
) -> Actor:
    """Environments first_env, …, first_env + num_envs - 1 of a run, with a policy.

    given_network: see find_module. params: of a compiled environment; one of Gymnasium's has its
    own. begin: reset all of them now; else `actor.envs.restore` has to. pictures: whether
    `actor.envs.render` will be called. position: see UnrollActor. jit=False: plain Python steps a
    compiled environment.
    """
    if isinstance(env, ForeignEnv):
        foreign = make_envs(
            env,
            num_envs,
            seed,
            first_env=first_env,
            begin=begin,
            pictures=pictures,
            state_bytes=schema.env_state_bytes,
        )
        if isinstance(network, NetworkSpec):
            return SteppingActor(foreign, network, schema, position)
        from rollout.module_actor import ModuleSteppingActor

        return ModuleSteppingActor(foreign, make_module(network, given_network), schema, position)
    envs = Envs(env, num_envs, seed, first_env=first_env, params=params, begin=begin, jit=jit)
    if isinstance(network, NetworkSpec):
        return UnrollActor(envs, network, schema, position)
    from rollout.module_actor import ModuleActor  # with torch: slow to import, and large

    return ModuleActor(envs, make_module(network, given_network), schema, position)


def load_kernels(env: AnyEnv, network: Network, schema: UnrollSchema, jit: bool = True) -> Any:
    """What `make_actor` will use, compiled, or loaded from disk; of layers it has `evaluate`.

    Raises EnvError where the network does not fit the environment.
    """
    if isinstance(network, ModuleSpec):
        from rollout.module_actor import load_module_kernels

        return load_module_kernels(env, network, schema, jit)
    if isinstance(env, ForeignEnv):
        return load_choosing_kernels(env, network, schema)
    return load_acting_kernels(env, network, schema, jit)
