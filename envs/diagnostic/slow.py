"""Slow-v0: CartPole in a simulator that takes its time, and now and then much more of it.

What fleets are for. The cost of a step is arithmetic, not sleep or a look at the clock: the same
work on every machine, and its result depends on nothing else.
"""

import numpy as np

from rollout.envs.classic.cartpole import CartPole
from rollout.envs.philox import uniform

# Turns of `spend` in a microsecond: measured on a Xeon (Ice Lake) at 2.8 GHz; elsewhere a
# microsecond is about one.
TURNS_PER_US = 400

reset_cartpole = CartPole.reset
step_cartpole = CartPole.step


class Slow(CartPole):
    """CartPole, number for number, of which a step costs about `step_us` microseconds of a core.

    A share of `uneven_part` of the steps, drawn at random, costs `uneven_factor` times as much: on
    average a step costs 2.9 times `step_us` by default.
    """

    state = np.dtype([*CartPole.state.descr, ("work", "f8")])
    params = {**CartPole.params, "step_us": 100.0, "uneven_part": 0.1, "uneven_factor": 20.0}

    def reset(state, params, draw):
        reset_cartpole(state, params, draw)
        state.work = 0.5

    def step(state, params, action, draw):
        cost_us = params.step_us
        if uniform(draw, 0.0, 1.0) < params.uneven_part:
            cost_us *= params.uneven_factor
        state.work = spend(state.work, int(cost_us * TURNS_PER_US))
        return step_cartpole(state, params, action, draw)


def spend(work, turns):
    """Iterate a chaotic map, within 0, …, 1: each turn needs the last, so none can be left out."""
    for _ in range(turns):
        work = 3.99 * work * (1.0 - work)
    return work
