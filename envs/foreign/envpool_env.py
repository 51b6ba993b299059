"""EnvPool's environments, with a seed for each, as Gymnasium's vector environments take them."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class EnvPoolVectorEnv(VectorEnv):
    """A pool that is made when the seeds are known: EnvPool takes them at no other time."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, task_id: str, num_envs: int, **params: Any) -> None:
        """params: EnvPool's own, such as max_episode_steps, num_threads, stack_num."""
        import envpool  # pyright: ignore[reportMissingImports]

        self._task_id, self._params, self.num_envs = task_id, params, num_envs
        spec = envpool.make_spec(task_id, **params)
        self.single_observation_space = spec.gymnasium_observation_space
        self.single_action_space = spec.gymnasium_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pool: Any = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """seed: a list, one for each environment."""
        import envpool  # pyright: ignore[reportMissingImports]

        if isinstance(seed, list):
            self._pool = envpool.make_gymnasium(
                self._task_id, num_envs=self.num_envs, seed=seed, **self._params
            )
        return self._pool.reset()

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        return self._pool.step(actions)

    def close(self, **kwargs: Any) -> None:
        self._pool = None
