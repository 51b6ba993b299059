"""An actor: asks for a share of the environments and acts it, unroll by unroll, until killed.

Or until its memory has grown too far: then it ends by itself, and its next life goes on.
"""

import itertools
from typing import Any

import numpy as np

from rollout import control
from rollout.actor_memory import MemoryWatch
from rollout.envs.philox import CLOCK
from rollout.envs.registry import AnyEnv
from rollout.finite_check import check_finite
from rollout.host_memory import HostPage, Slot, WeightsFiles
from rollout.make_actor import Actor, make_actor
from rollout.outbox import Assignment, Outbox, Stopwatch
from rollout.plan import HostPlan
from rollout.stepping_actor import SteppingActor
from rollout.wire import ActorTimes

LAST_WORDS_S = 1.0  # for unrolls that are sealed to leave a process whose environment has failed


def run_actor(
    plan: HostPlan,
    env: AnyEnv,
    page: HostPage,
    files: WeightsFiles,
    actor: int,
    slot: int,
    incarnation: int,
    given_network: Any = None,
) -> control.ActorOutgrew:
    """Act one share after the other; a share ends when the environments are cut anew.

    given_network: see make_actor.
    """
    np.random.seed()  # else every actor forked, and each of its lives, draws the template's numbers
    memory = MemoryWatch(plan.max_actor_memory)
    mine = Slot(page, slot)
    outbox = Outbox(plan, actor, incarnation)
    try:
        while True:
            share = outbox.wait_assignment(mine.produced)
            outgrew = act_share(plan, env, page, files, mine, outbox, share, memory, given_network)
            if outgrew is not None:
                return outgrew
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
    memory: MemoryWatch,
    given_network: Any,
) -> control.ActorOutgrew | None:
    """Act unroll after unroll of one share, each with the weights that the run's mode wants.

    Waiting for credit or weights blocks in the kernel. The environments go on from the states that
    came with the share; an unroll is one compiled call (acting_kernel.act_unroll), or one a step
    where Python steps them (SteppingActor) or torch chooses (ModuleActor). Returns what there is to
    say if this life is to end.
    """
    acting = make_actor(
        env,
        share.num_envs,
        plan.seed,
        plan.network,
        plan.schema,
        given_network=given_network,
        params=plan.env_source.params,
        begin=False,
        position=slot.position,
    )
    if isinstance(acting, SteppingActor):
        acting.envs.episode = slot.episode
    slot.begin(page.version)  # resets may hang or fail as steps may
    acting.restore(share.states, slot.position, plan.schema.unroll_length)
    slot.rest()
    hides_state = plan.schema.env_state_bytes == CLOCK.itemsize
    stopwatch = Stopwatch()
    for unroll_index in itertools.count(share.first_unroll):
        outbox.wait_credit()
        wait_credit_us = stopwatch.lap_us()
        wanted = max(0, unroll_index - plan.policy_lag) if plan.is_lockstep else 0
        if not page.wait_version(wanted, share.cut, unroll_index):
            _close(acting, page, slot)
            return None
        version, weights = (
            (wanted, files.map(wanted)) if plan.is_lockstep else files.map_newest(page)
        )
        wait_weights_us = stopwatch.lap_us()
        slot.begin(version)
        payload = acting.act(weights)
        check_finite(acting, plan.network.parts, weights, slot.position)
        times = ActorTimes(stopwatch.lap_us(), wait_weights_us, wait_credit_us)
        slot.count(plan.schema.unroll_length * share.num_envs)
        buffer = acting.buffer
        outbox.send(payload, unroll_index, version, buffer.num_finals, buffer.num_episodes, times)
        is_inside = hides_state and bool(acting.envs.clocks["t"].any())
        outgrew = memory.after_unroll(may_wait=is_inside)
        if outgrew is not None:
            outbox.wait_acknowledged()  # the next life has to wait for that anyway
            _close(acting, page, slot)
            return outgrew


def _close(acting: Actor, page: HostPage, slot: Slot) -> None:
    """Let go of the environments, which may hang as in a step."""
    slot.begin(page.version)
    acting.envs.close()
    slot.rest()
