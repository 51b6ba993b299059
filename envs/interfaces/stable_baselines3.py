"""Compiled environments for Stable-Baselines3, which has an interface of its own for vectors."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.interfaces.vector_env import VectorEnv


class StableBaselines3VecEnv(VecEnv):
    """N compiled environments to train with: `PPO("MlpPolicy", StableBaselines3VecEnv(env, 8))`.

    Gives what its DummyVecEnv gives of single environments, each in a Monitor: `infos` is a list of
    dictionaries with `TimeLimit.truncated`, and where an episode ended `terminal_observation` and
    `episode`; one step of N environments is one compiled call.
    """

    def __init__(
        self,
        env: type[CompiledEnv] | str,
        num_envs: int,
        *,
        seed: int | None = None,
        params: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """seed: of the first reset, unless `seed` is called. The rest is VectorEnv's."""
        self._envs = VectorEnv(
            env,
            num_envs,
            params=params,
            autoreset_mode=AutoresetMode.SAME_STEP,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
        self._actions: Any = None
        self._masks: np.ndarray | None = None
        self._made_at = time.time()
        super().__init__(
            num_envs, self._envs.single_observation_space, self._envs.single_action_space
        )
        self.metadata = self._envs.metadata
        if seed is not None:
            self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Environment i begins its next episode with seed + i; None: with one that is drawn."""
        if seed is None:
            return super().seed(None)
        is_integer = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not (is_integer and 0 <= seed < 2**32):
            raise EnvError(f"seed={seed!r}, wanted an integer from 0 to {2**32 - 1}, or None")
        return super().seed(int(seed))

    def reset(self) -> Any:
        seeds = [None if seed is None else seed % 2**32 for seed in self._seeds]
        observations, infos = self._envs.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        self._masks = infos.get("action_mask")
        self.reset_infos = self._mask_infos(self._masks)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, told = self._envs.step(self._actions)
        self._masks = told.get("action_mask")
        infos = self._mask_infos(self._masks)
        for info in infos:
            info["TimeLimit.truncated"] = False
        dones = terminated | truncated
        if dones.any():
            seconds = round(time.time() - self._made_at, 6)
            last_masks = self._mask_infos(told["final_info"].get("action_mask"))
            for i in np.flatnonzero(dones):
                if self._masks is not None:
                    self.reset_infos[i] = {"action_mask": self._masks[i]}
                infos[i] = last_masks[i] | {
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                    "terminal_observation": told["final_obs"][i],
                    "episode": {
                        "r": round(float(told["episode"]["r"][i]), 6),
                        "l": int(told["episode"]["l"][i]),
                        "t": seconds,
                    },
                }
        return observations, rewards.astype(np.float32), dones, infos

    def _mask_infos(self, masks: np.ndarray | None) -> list[dict[str, Any]]:
        if masks is None:
            return [{} for _ in range(self.num_envs)]
        return [{"action_mask": mask} for mask in masks]

    def action_masks(self) -> np.ndarray:
        """What is allowed now, bool [N, mask_size]: sb3-contrib's MaskablePPO asks for it."""
        if self._masks is None:
            raise AttributeError("the environments have no action masks")
        return self._masks.view(np.bool_)

    def close(self) -> None:
        self._envs.close()

    def get_images(self) -> list[Any]:
        return list(self._envs.render() or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the VectorEnv, which all environments share."""
        if attr_name == "action_masks":
            return self.env_method(attr_name, indices=indices)
        return [getattr(self._envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise EnvError(f"cannot set {attr_name!r}: compiled environments have only their params")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Only `action_masks`: compiled environments are no objects that have methods."""
        if method_name != "action_masks":
            raise AttributeError(f"compiled environments have no method {method_name!r}")
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """As by a Monitor, whose statistics are in infos."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
