"""An actor: waits for credit and weights, acts an unroll, sends it; again and again."""

import itertools

from rollout.acting import UnrollActor
from rollout.envs.batch import Envs
from rollout.envs.registry import find_env
from rollout.host_memory import HostPage, WeightsFiles
from rollout.outbox import Outbox, Stopwatch
from rollout.plan import HostPlan
from rollout.wire import ActorTimes


def run_actor(plan: HostPlan, page: HostPage, files: WeightsFiles, actor: int, incarnation: int):
    """Act until killed. In lockstep: unroll u with weights max(0, u - policy_lag).

    Waiting for credit or weights blocks in the kernel. The environments are this actor's share; the
    unroll is one compiled call (acting_kernel.act_unroll).
    """
    first_env, num_envs = plan.share_of(actor)
    env = find_env(plan.env_id, plan.import_path)
    envs = Envs(env, num_envs, plan.seed, first_env=first_env, params=plan.env_params)
    acting = UnrollActor(envs, plan.network, plan.schema)
    outbox = Outbox(plan, actor, incarnation)
    first_unroll = outbox.wait_welcome()
    stopwatch = Stopwatch()
    for unroll_index in itertools.count(first_unroll):
        outbox.wait_credit()
        wait_credit_us = stopwatch.lap_us()
        version = plan.weights_version_for(unroll_index)
        page.wait_version(version)
        weights = files.map(version)
        wait_weights_us = stopwatch.lap_us()
        payload = acting.act(weights)
        times = ActorTimes(stopwatch.lap_us(), wait_weights_us, wait_credit_us)
        page.produced[actor] += 1
        buffer = acting.buffer
        outbox.send(payload, unroll_index, buffer.num_finals, buffer.num_episodes, times)
