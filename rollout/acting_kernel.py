"""Acting, compiled: observe → policy → sample → step → write, T steps of N environments a call.

A template (see envs/kernels.py), run behind the generated policy (policy_kernel.py), which defines
`pack`, `forward` and the constants in capitals. Nothing here uses Python objects.
"""

import math

import numpy as np

from rollout.envs.kernels import bound
from rollout.envs.philox import philox, unit_float32
from rollout.envs.records import records

jit, jit_fma, entry = bound("jit"), bound("jit_fma"), bound("entry")
step_one, observe_one = bound("step_one"), bound("observe_one")
next_episode = bound("next_episode")
ENV_RECORD, PARAMS_RECORD = bound("ENV_RECORD"), bound("PARAMS_RECORD")
ACTION_STREAM = bound("ACTION_STREAM")
HAS_VALUE = bound("HAS_VALUE")
BLOCK, OBSERVATION_SIZE, NUM_ACTIONS = (
    bound("BLOCK"),
    bound("OBSERVATION_SIZE"),
    bound("NUM_ACTIONS"),
)
LOGITS_OFFSET, LOGITS_STRIDE = bound("LOGITS_OFFSET"), bound("LOGITS_STRIDE")
VALUE_OFFSET, VALUE_STRIDE = bound("VALUE_OFFSET"), bound("VALUE_STRIDE")
pack, forward = bound("pack"), bound("forward")


@jit
def load_row(observation, scratch, r):
    """Copy one flat observation into row r of the policy's input."""
    for j in range(OBSERVATION_SIZE):
        scratch[r * OBSERVATION_SIZE + j] = observation[j]


@jit
def draw_uniforms(envs, start, rows, uniforms):
    """One float32 in [0, 1) for the action of each environment start, …, start + rows - 1."""
    for r in range(rows):
        clock = envs[start + r].clock
        words = philox(clock.seed, ACTION_STREAM, clock.env, clock.episode, clock.t, 0)
        uniforms[r] = unit_float32(words[0])


@jit
def choose(logits, uniform, greedy):
    """An action from softmax(logits) by inversion, or the likeliest; returns (action, log-prob)."""
    highest = logits[0]
    likeliest = 0
    for a in range(1, NUM_ACTIONS):
        if logits[a] > highest:
            highest = logits[a]
            likeliest = a
    total = np.float32(0.0)
    for a in range(NUM_ACTIONS):
        total += np.float32(math.exp(logits[a] - highest))
    action = likeliest
    if not greedy:
        threshold = uniform * total
        action = NUM_ACTIONS - 1
        reached = np.float32(0.0)
        for a in range(NUM_ACTIONS - 1):
            reached += np.float32(math.exp(logits[a] - highest))
            if threshold < reached:
                action = a
                break
    return action, logits[action] - highest - np.float32(math.log(total))


@entry
def act_unroll(
    env_bytes,
    params_bytes,
    weights,
    packed,
    scratch,
    uniforms,
    greedy,
    position,
    observation,
    action,
    reward,
    terminated,
    truncated,
    behavior_log_prob,
    value,
    final_t,
    final_env,
    final_observation,
    final_value,
    episode_t,
    episode_env,
    episode_return,
    episode_length,
):
    """Fill an unroll (learners.unroll.Unroll says what is what); returns the lengths of its tails.

    Blocks of environments go through all T steps one after the other, so that their states stay in
    the cache; environments do not affect each other, so the order changes nothing. The tails are in
    the order (block, t, environment). Before each step position[0] becomes i * T + t: where to look
    if it never comes to an end.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    T, N = reward.shape
    flat = observation.reshape(T + 1, N, OBSERVATION_SIZE)
    final_flat = final_observation.reshape(final_t.shape[0], OBSERVATION_SIZE)
    pack(weights, packed)
    finals = 0
    episodes = 0
    for start in range(0, N, BLOCK):
        rows = min(BLOCK, N - start)
        for r in range(rows):
            observe_one(envs, params, start + r, observation[0, start + r])
        for t in range(T):
            for r in range(rows):
                load_row(flat[t, start + r], scratch, r)
            forward(packed, scratch, rows)
            draw_uniforms(envs, start, rows, uniforms)
            first_final = finals
            for r in range(rows):
                i = start + r
                place = LOGITS_OFFSET + r * LOGITS_STRIDE
                chosen, log_prob = choose(scratch[place : place + NUM_ACTIONS], uniforms[r], greedy)
                action[t, i] = chosen
                behavior_log_prob[t, i] = log_prob
                if HAS_VALUE:
                    value[t, i] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
                position[0] = i * T + t
                reward[t, i], terminated[t, i], truncated[t, i] = step_one(
                    envs, params, i, action[t, i]
                )
                if terminated[t, i] or truncated[t, i]:
                    if truncated[t, i]:
                        observe_one(envs, params, i, final_observation[finals])
                        final_t[finals] = t
                        final_env[finals] = i
                        finals += 1
                    episode_t[episodes] = t
                    episode_env[episodes] = i
                    episode_return[episodes] = envs[i].clock.episode_return
                    episode_length[episodes] = envs[i].clock.t
                    episodes += 1
                    next_episode(envs, env_bytes, params, i)
                observe_one(envs, params, i, observation[t + 1, i])
            if HAS_VALUE and finals > first_final:
                for r in range(finals - first_final):
                    load_row(final_flat[first_final + r], scratch, r)
                forward(packed, scratch, finals - first_final)
                for r in range(finals - first_final):
                    final_value[first_final + r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
        if HAS_VALUE:
            for r in range(rows):
                load_row(flat[T, start + r], scratch, r)
            forward(packed, scratch, rows)
            for r in range(rows):
                value[T, start + r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
    return finals, episodes


@entry
def evaluate(weights, packed, scratch, observation, logits, value):
    """Logits [N, A] and values [N] of observations [N, …], in blocks."""
    N = value.shape[0]
    flat = observation.reshape(N, OBSERVATION_SIZE)
    pack(weights, packed)
    for start in range(0, N, BLOCK):
        rows = min(BLOCK, N - start)
        for r in range(rows):
            load_row(flat[start + r], scratch, r)
        forward(packed, scratch, rows)
        for r in range(rows):
            for a in range(NUM_ACTIONS):
                logits[start + r, a] = scratch[LOGITS_OFFSET + r * LOGITS_STRIDE + a]
            value[start + r] = scratch[VALUE_OFFSET + r * VALUE_STRIDE]
