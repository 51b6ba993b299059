"""Foreign environments, tried before a run begins: do they work, and can their state be saved?"""

import numpy as np

from rollout.envs.errors import EnvError, raised_at
from rollout.envs.foreign.closing import close
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.foreign_envs import ForeignEnvs
from rollout.envs.foreign.looped_envs import LoopedEnvs
from rollout.envs.foreign.making import make_envs
from rollout.envs.foreign.observations import Misfit, check_bounds
from rollout.envs.foreign.plain_data import NotPlain
from rollout.envs.foreign.saved_state import StateSaver
from rollout.envs.layouts import action_layout

STEPS = 16  # before a state is saved, and then in each of two environments
ROOM = 1.25  # times the longest state seen
GRAIN = 1024  # bytes: room is a multiple


class Trial:
    """Environments that are acted at random, by draws that do not change."""

    def __init__(self, envs: ForeignEnvs, seed: int = 0) -> None:
        self.envs = envs
        self._random = np.random.default_rng(seed)
        self._layout = action_layout(envs.env.action_space)

    def step(self, action: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """One step; all that came of it: observation, reward, terminated, truncated, no_op.

        action: by default drawn.
        """
        N = self.envs.num_envs
        observation, reward = np.zeros_like(self.envs.observation()), np.zeros(N, np.float32)
        terminated, truncated, no_op = np.zeros((3, N), np.bool_)
        came = observation, reward, terminated, truncated, no_op
        self.envs.step(self.draw(N) if action is None else action, *came)
        return came

    def draw(self, num_envs: int) -> np.ndarray:
        """Actions [num_envs, …], any that may be."""
        layout, shape = self._layout, (num_envs, *self._layout.shape)
        if layout.choices:
            limits = np.reshape(layout.choices, layout.shape or ())
            return self._random.integers(limits, size=shape).astype(layout.dtype)
        action = self._random.uniform(-1, 1, shape)
        return np.clip(action, layout.low, layout.high).astype(layout.dtype)


def try_out(env: ForeignEnv, seed: int) -> None:
    """Reset and step an environment. Raises EnvError for what it does wrong at once."""
    envs = None
    try:
        envs = make_envs(env, env.group, seed)
        for row in (*envs.observation().copy(), *Trial(envs).step()[0]):
            check_bounds(env.observation_space, row)
    except EnvError:
        raise
    except Misfit as error:
        raise EnvError(f"environment {env.__name__!r}: {error}") from None
    except Exception as error:
        place = raised_at(error)
        raise EnvError(
            f"environment {env.__name__!r} fails in its first reset or step"
            f"{f', at {place}' if place else ''}: {type(error).__name__}: {error}"
        ) from error
    finally:
        if envs is not None:
            envs.close()


def try_saving(env: ForeignEnv) -> tuple[int, str]:
    """Room for a saved state in bytes, or 0, and then why it cannot be saved, or not be trusted.

    It can be if another environment, to which it was restored, goes on in the same bits, into the
    next episode too.
    """
    envs: list[LoopedEnvs] = []
    try:
        longest = _length(env)
        room = 2 * longest + GRAIN
        size = env.state_record(room).itemsize
        envs = [LoopedEnvs(env, 1, 0, state_bytes=size) for _ in range(2)]
        first, second = (Trial(one) for one in envs)
        for _ in range(STEPS):
            first.step()
            second.step()  # so that both draw the same actions from here on
        snapshot = envs[0].snapshot()
        longest = max(longest, int(np.frombuffer(snapshot, env.state_record(room))["length"][0]))
        envs[1].close()
        envs[1] = second.envs = LoopedEnvs(env, 1, 0, begin=False, state_bytes=size)
        envs[1].restore(snapshot)
        for _ in range(2):
            for k in range(STEPS):
                if not _are_same(first.step(), second.step()):
                    return 0, (
                        f"what was saved, and restored in another environment, goes on differently "
                        f"in step {k + 1}"
                    )
            for one in envs:
                one.begin_next([0], 0)
            if envs[0].observation().tobytes() != envs[1].observation().tobytes():
                return 0, (
                    "after an episode was restored, the next one begins differently: the state "
                    "needs the generator of random numbers, too"
                )
        return -(-int(ROOM * longest) // GRAIN) * GRAIN, ""
    except NotPlain as error:
        return 0, str(error)
    except Exception as error:  # `try_out` tells of what is wrong with it at all
        return 0, f"{type(error).__name__}: {error}"
    finally:
        for one in envs:
            one.close()


def _length(env: ForeignEnv) -> int:
    """Of a fresh environment's saved state. Raises NotPlain where it cannot be saved."""
    one = env.make()
    try:
        one.reset(seed=0)
        return len(StateSaver(one).save())
    finally:
        close(one, env.__name__)


def _are_same(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))
