"""An actor: asks for a share of the environments and acts it, unroll by unroll, until killed."""

import itertools

from rollout.envs.registry import AnyEnv, find_any_env
from rollout.host_memory import HostPage, Slot, WeightsFiles
from rollout.make_actor import make_actor
from rollout.outbox import Assignment, Outbox, Stopwatch
from rollout.plan import HostPlan
from rollout.stepping_actor import SteppingActor
from rollout.wire import ActorTimes

LAST_WORDS_S = 1.0  # for unrolls that are sealed to leave a process whose environment has failed


def run_actor(
    plan: HostPlan,
    env: AnyEnv | None,
    page: HostPage,
    files: WeightsFiles,
    actor: int,
    slot: int,
    incarnation: int,
):
    """Act one share after the other; a share ends when the environments are cut anew.

    env: None where the template could not import it (see there).
    """
    if env is None:
        env = find_any_env(plan.env_source)
    mine = Slot(page, slot)
    outbox = Outbox(plan, actor, incarnation)
    try:
        while True:
            share = outbox.wait_assignment(mine.produced)
            act_share(plan, env, page, files, mine, outbox, share)
    finally:
        outbox.close(LAST_WORDS_S)


def act_share(
    plan: HostPlan,
    env: AnyEnv,
    page: HostPage,
    files: WeightsFiles,
    slot: Slot,
    outbox: Outbox,
    share: Assignment,
) -> None:
    """Act unroll after unroll of one share, each with the weights that the run's mode wants.

    Waiting for credit or weights blocks in the kernel. The environments go on from the states that
    came with the share; an unroll is one compiled call (acting_kernel.act_unroll), or one a step
    where Python steps them (SteppingActor).
    """
    acting = make_actor(
        env,
        share.num_envs,
        plan.seed,
        plan.network,
        plan.schema,
        params=plan.env_source.params,
        begin=False,
        position=slot.position,
    )
    if isinstance(acting, SteppingActor):
        acting.envs.episode = slot.episode
    slot.begin(page.version)  # resets may hang or fail as steps may
    acting.envs.restore(share.states, slot.position, plan.schema.unroll_length)
    slot.rest()
    stopwatch = Stopwatch()
    for unroll_index in itertools.count(share.first_unroll):
        outbox.wait_credit()
        wait_credit_us = stopwatch.lap_us()
        wanted = max(0, unroll_index - plan.policy_lag) if plan.is_lockstep else 0
        if not page.wait_version(wanted, share.cut, unroll_index):
            acting.envs.close()
            return
        version, weights = (
            (wanted, files.map(wanted)) if plan.is_lockstep else files.map_newest(page)
        )
        wait_weights_us = stopwatch.lap_us()
        slot.begin(version)
        payload = acting.act(weights)
        times = ActorTimes(stopwatch.lap_us(), wait_weights_us, wait_credit_us)
        slot.count(plan.schema.unroll_length * share.num_envs)
        buffer = acting.buffer
        outbox.send(payload, unroll_index, version, buffer.num_finals, buffer.num_episodes, times)
