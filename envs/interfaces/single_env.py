"""One compiled environment as a `gymnasium.Env`."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from rollout.envs.compiled_env import NO_LIMIT, CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.interfaces.observation_batch import one_row
from rollout.envs.interfaces.vector_env import VectorEnv


class SingleEnv(gymnasium.Env):
    """A compiled environment behind Gymnasium's interface; of many at once, VectorEnv is faster.

    Its randomness is counted, not drawn from `np_random`: `reset` with a seed determines all that
    follows. `reset` without one goes on to the next episode. info: `action_mask`, int8
    [mask_size], if the environment has one (VectorEnv says how it is laid out).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CompiledEnv.render_fps}

    def __init__(
        self,
        env: type[CompiledEnv] | str,
        *,
        params: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        jit: bool = True,
    ) -> None:
        """The arguments are those of VectorEnv."""
        self._vector = VectorEnv(
            env,
            1,
            params=params,
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            episode_statistics=False,
            jit=jit,
        )
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self.render_mode = render_mode
        self.metadata = {
            name: value for name, value in self._vector.metadata.items() if name != "autoreset_mode"
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; seed: from 0 to 2³² - 1. There are no options."""
        if not isinstance(seed, int | np.integer | None):
            raise EnvError(f"seed={seed!r}, wanted an integer from 0 to {2**32 - 1}, or None")
        observations, infos = self._vector.reset(seed=None if seed is None else int(seed))
        super().reset(seed=seed)
        return one_row(observations, 0), _info(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step: observation, reward, terminated, truncated, info.

        Raises EnvError for an action that is not in the space, and where the episode has ended.
        """
        observations, rewards, terminated, truncated, infos = self._vector.step([action])
        return (
            one_row(observations, 0),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _info(infos),
        )

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the environment looks like: uint8 [height, width, 3]."""
        frames = self._vector.render()
        return None if frames is None else frames[0]

    def snapshot(self) -> bytes:
        """All that is known of what the environment will do (VectorEnv.snapshot)."""
        return self._vector.snapshot()

    def restore(self, snapshot: bytes) -> tuple[Any, dict[str, Any]]:
        """Put back what `snapshot` returned; returns observation and info as `reset` does."""
        observations, infos = self._vector.restore(snapshot)
        return one_row(observations, 0), _info(infos)


class UnlimitedEnv(SingleEnv):
    """A SingleEnv without a time limit: what `gymnasium.make` puts its own TimeLimit around."""

    def __init__(
        self,
        env: type[CompiledEnv] | str,
        *,
        params: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        jit: bool = True,
    ) -> None:
        super().__init__(
            env, params=params, max_episode_steps=NO_LIMIT, render_mode=render_mode, jit=jit
        )


def _info(infos: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in infos.items() if not name.startswith("_")}
