"""What a Gymnasium vector environment does in one call, compiled.

A template (see envs/kernels.py) over the functions of batch_kernel.py, which are bound to names
here. Nothing here uses Python objects.

An environment that has `ended` waits for its reset: at the next step (NEXT_STEP), or until its
owner asks for it (DISABLED). With SAME_STEP it is already in its next episode.
"""

from rollout.envs.kernels import bound
from rollout.envs.records import records

jit, entry = bound("jit"), bound("entry")
begin_episode, next_episode = bound("begin_episode"), bound("next_episode")
step_one, observe_one, mask_one = bound("step_one"), bound("observe_one"), bound("mask_one")
ENV_RECORD, PARAMS_RECORD = bound("ENV_RECORD"), bound("PARAMS_RECORD")
ACTION_SIZE = bound("ACTION_SIZE")  # numbers of one action
CHOICES = bound("CHOICES")  # how many values each may have; empty if they are quantities
FIELDS = bound("FIELDS")  # of a Dict: (offset in a record, bytes, bytes of the fields before it)
HAS_MASK = bound("HAS_MASK")
NEXT_STEP, SAME_STEP, DISABLED = bound("NEXT_STEP"), bound("SAME_STEP"), bound("DISABLED")
BEGAN, RETURN, LENGTH, TIME = bound("BEGAN"), bound("RETURN"), bound("LENGTH"), bound("TIME")


if CHOICES:

    @jit
    def take_actions(given, action):
        """Copy the actions; returns whether all are among the choices."""
        flat_given, flat = given.reshape(given.size), action.reshape(action.size)
        for i in range(0, flat.size, ACTION_SIZE):
            for j in range(ACTION_SIZE):
                if not 0 <= flat_given[i + j] < CHOICES[j]:
                    return False
                flat[i + j] = flat_given[i + j]
        return True

else:

    @jit
    def take_actions(given, action):
        """Copy the actions; returns whether all are numbers."""
        flat_given, flat = given.reshape(given.size), action.reshape(action.size)
        all_are = True
        for i in range(flat.size):
            all_are &= flat_given[i] == flat_given[i]
            flat[i] = flat_given[i]
        return all_are


if FIELDS:

    @jit
    def show(envs, params, i, shown, row, place):
        """Write environment i's observation at `place` of `shown`, where each field has its block.

        row: bytes of one observation, to work in.
        """
        observe_one(envs, params, i, row)
        num_rows = shown.size // row.size
        for f in range(len(FIELDS)):
            offset, size, before = FIELDS[f]
            start = before * num_rows + place * size
            for byte in range(size):
                shown[start + byte] = row[offset + byte]

else:

    @jit
    def show(envs, params, i, shown, row, place):
        observe_one(envs, params, i, shown[place])


@entry
def begin_chosen(env_bytes, params_bytes, chosen, seed, now, ended, episodes, row, shown, mask):
    """Reset the chosen environments [N]; write what all of them show and allow.

    seed: int64 [N], of a new sequence of episodes, or -1 to go on to the next one.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    for i in range(envs.shape[0]):
        if chosen[i]:
            if seed[i] >= 0:
                clock = envs[i].clock
                clock.seed = seed[i]
                clock.env = 0
                clock.episode = 0
                begin_episode(envs, env_bytes, params, i)
            else:
                next_episode(envs, env_bytes, params, i)
            ended[i] = False
            episodes[BEGAN, i] = now
        show(envs, params, i, shown, row, i)
        if HAS_MASK:
            mask_one(envs, params, i, mask[i])


@entry
def step_chosen(
    env_bytes,
    params_bytes,
    given,
    action,
    autoreset_mode,
    max_episode_steps,
    now,
    ended,
    episodes,
    row,
    shown,
    mask,
    reward,
    terminated,
    truncated,
    final_shown,
    final_mask,
):
    """Step N environments; returns how many episodes ended, or -1 if nothing could be done.

    That is so if a `given` action is none of the choices, or NaN, or if with DISABLED an
    environment waits for its reset. max_episode_steps: 0 for no limit. now: the time, in seconds.

    Writes action, ended, shown, mask, reward, terminated and truncated; of the environments whose
    episode ended also episodes[RETURN], [LENGTH] and [TIME], which are zero elsewhere; and with
    SAME_STEP what they showed last, one after the other, in `final_shown`, and what they allowed
    last in their rows of `final_mask`, which is False elsewhere.
    """
    envs, params = records(env_bytes, ENV_RECORD), records(params_bytes, PARAMS_RECORD)
    N = envs.shape[0]
    if not take_actions(given, action):
        return -1
    if autoreset_mode == DISABLED:
        for i in range(N):
            if ended[i]:
                return -1
    num_ended = 0
    for i in range(N):
        episodes[RETURN, i] = 0.0
        episodes[LENGTH, i] = 0.0
        episodes[TIME, i] = 0.0
        if HAS_MASK:
            final_mask[i, :] = False
        if ended[i] and autoreset_mode == NEXT_STEP:
            next_episode(envs, env_bytes, params, i)
            episodes[BEGAN, i] = now
            reward[i] = 0.0
            terminated[i] = False
            truncated[i] = False
            ended[i] = False
        else:
            reward[i], terminated[i], _ = step_one(envs, params, i, action[i])
            clock = envs[i].clock
            truncated[i] = max_episode_steps > 0 and clock.t >= max_episode_steps
            ended[i] = terminated[i] or truncated[i]
            if ended[i]:
                episodes[RETURN, i] = clock.episode_return
                episodes[LENGTH, i] = clock.t
                episodes[TIME, i] = now - episodes[BEGAN, i]
                if autoreset_mode == SAME_STEP:
                    show(envs, params, i, final_shown, row, num_ended)
                    if HAS_MASK:
                        mask_one(envs, params, i, final_mask[i])
                    next_episode(envs, env_bytes, params, i)
                    episodes[BEGAN, i] = now
                num_ended += 1
        show(envs, params, i, shown, row, i)
        if HAS_MASK:
            mask_one(envs, params, i, mask[i])
    return num_ended
