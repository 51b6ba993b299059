"""The loops around an environment's own functions. Compiled once per environment.

This file is a template: `kernels.py` runs it with the names under "Bound" set to one environment's
functions and constants, and with `jit` either Numba's or nothing (plain Python, for a debugger).
`entry` marks what is called from Python.

Nothing here uses Python objects. `envs` is an array [N] of records {clock, state} (philox.CLOCK).
Entries take records as flat bytes (`env_bytes`, `params_bytes`): to pass an array of
records from Python costs five times as much as to pass one of bytes.

Time: the step with clock.t == t is the one that leads from observation t of its episode to
observation t + 1.
"""

from rollout.envs.kernels import bound
from rollout.envs.records import records

# Bound when compiled: see batch.env_bindings.
jit, entry = bound("jit"), bound("entry")
env_reset, env_step, env_observe = bound("env_reset"), bound("env_step"), bound("env_observe")
ENV_RECORD, PARAMS_RECORD = bound("ENV_RECORD"), bound("PARAMS_RECORD")
OBSERVATION_RECORD = bound("OBSERVATION_RECORD")  # of a Dict, else None
HAS_MASK = bound("HAS_MASK")
MAX_EPISODE_STEPS = bound("MAX_EPISODE_STEPS")  # 0: no limit
STATE_OFFSET = bound("STATE_OFFSET")  # bytes of a record before its state
RECORD_SIZE = bound("RECORD_SIZE")  # bytes of a record
STEP_DRAWS = bound("STEP_DRAWS")  # whether `step` uses its draws at all
HAS_HIDDEN_STATE = bound("HAS_HIDDEN_STATE")
RESET_STREAM, STEP_STREAM = bound("RESET_STREAM"), bound("STEP_STREAM")


@jit
def begin_episode(envs, env_bytes, params, i):
    """Reset environment i under its clock's episode. Writes envs[i]."""
    clock = envs[i].clock
    clock.stream = RESET_STREAM
    clock.t = 0
    clock.k = 0
    clock.episode_return = 0.0
    for byte in range(i * RECORD_SIZE + STATE_OFFSET, (i + 1) * RECORD_SIZE):
        env_bytes[byte] = 0
    env_reset(envs[i].state, params[0], clock)


@entry
def begin_all(env_bytes, params_bytes, seed, first_env):
    """Put every environment at the start of its episode 0. Writes env_bytes."""
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    for i in range(envs.shape[0]):
        clock = envs[i].clock
        clock.seed = seed
        clock.env = first_env + i
        clock.episode = 0
        begin_episode(envs, env_bytes, params, i)


if OBSERVATION_RECORD is None:

    @jit
    def as_author_sees(observation):
        return observation

else:

    @jit
    def as_author_sees(observation):
        return records(observation, OBSERVATION_RECORD)[0]


@jit
def observe_one(envs, params, i, observation):
    """Write environment i's observation."""
    observation[:] = 0  # a loop over its elements takes seven times as long
    env_observe(envs[i].state, params[0], as_author_sees(observation))


if HAS_MASK:
    env_mask = bound("env_mask")

    @jit
    def mask_one(envs, params, i, mask):
        """Write which choices environment i allows now."""
        mask[:] = True
        env_mask(envs[i].state, params[0], mask)

else:

    @jit
    def mask_one(envs, params, i, mask):
        mask[:] = True


@jit
def step_one(envs, params, i, action):
    """Step environment i, without autoreset; returns (reward, terminated, truncated)."""
    clock = envs[i].clock
    if STEP_DRAWS:
        clock.stream = STEP_STREAM
        clock.k = 0
    reward, terminated = env_step(envs[i].state, params[0], action, clock)
    clock.t += 1
    clock.episode_return += reward
    truncated = MAX_EPISODE_STEPS > 0 and clock.t >= MAX_EPISODE_STEPS
    return reward, terminated, truncated


@jit
def next_episode(envs, env_bytes, params, i):
    """Begin environment i's next episode."""
    envs[i].clock.episode += 1
    begin_episode(envs, env_bytes, params, i)


@jit
def end_episode(
    envs,
    env_bytes,
    params,
    i,
    truncated,
    finals,
    episodes,
    final_env,
    final_observation,
    episode_env,
    episode_return,
    episode_length,
):
    """Write how environment i's episode ended, and begin its next; returns (finals, episodes).

    finals, episodes: how many observations of truncated episodes, and how many episodes, are
    written; before, and after.
    """
    if truncated:
        observe_one(envs, params, i, final_observation[finals])
        final_env[finals] = i
        finals += 1
    episode_env[episodes] = i
    episode_return[episodes] = envs[i].clock.episode_return
    episode_length[episodes] = envs[i].clock.t
    next_episode(envs, env_bytes, params, i)
    return finals, episodes + 1


@entry
def go_on_all(env_bytes, params_bytes, position, stride):
    """Make good what restored records may lack. Writes env_bytes.

    At the start of an episode the clock says it all. Of hidden state nothing was saved, so an
    episode that was under way gives way to the next. Before environment i position[0] becomes
    i * stride: where to look if it never comes to an end.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    for i in range(envs.shape[0]):
        position[0] = i * stride
        clock = envs[i].clock
        if HAS_HIDDEN_STATE and clock.t > 0:
            next_episode(envs, env_bytes, params, i)
        elif clock.t == 0:
            begin_episode(envs, env_bytes, params, i)


@entry
def observe_all(env_bytes, params_bytes, observation):
    """Write observation [N, …] of all environments."""
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    for i in range(envs.shape[0]):
        observe_one(envs, params, i, observation[i])


@entry
def mask_all(env_bytes, params_bytes, mask):
    """Write the action masks [N, mask_size] of all environments."""
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    for i in range(envs.shape[0]):
        mask_one(envs, params, i, mask[i])


@entry
def step_all(
    env_bytes,
    params_bytes,
    action,
    observation,
    reward,
    terminated,
    truncated,
    final_env,
    final_observation,
    episode_env,
    episode_return,
    episode_length,
):
    """One step of N environments with SAME_STEP autoreset; returns (finals, episodes) written.

    Writes observation [N, …] (of the next episode where one ended), reward, terminated, truncated
    [N], the true last observation of each truncated environment and the statistics of each finished
    episode, both in environment order.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    finals = 0
    episodes = 0
    for i in range(envs.shape[0]):
        reward[i], terminated[i], truncated[i] = step_one(envs, params, i, action[i])
        if terminated[i] or truncated[i]:
            finals, episodes = end_episode(
                envs,
                env_bytes,
                params,
                i,
                truncated[i],
                finals,
                episodes,
                final_env,
                final_observation,
                episode_env,
                episode_return,
                episode_length,
            )
        observe_one(envs, params, i, observation[i])
    return finals, episodes
