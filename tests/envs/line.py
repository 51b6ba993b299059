"""A small vector environment that keeps Gymnasium's promises, or breaks the one it is told to."""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class Line(VectorEnv):
    """Walks along a line, left, not at all, or right; an episode of environment i has 3 + i steps.

    how: which promise is broken.
    """

    def __init__(self, mode: AutoresetMode = AutoresetMode.NEXT_STEP, how: str = "") -> None:
        self.how = how
        self.num_envs = 5
        self.metadata = {} if how == "no mode" else {"autoreset_mode": mode}
        self.mode = mode
        self.single_observation_space = Box(-10, 40, (2,), np.float32)
        self.single_action_space = Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        if how == "one observation space":
            self.observation_space = self.single_observation_space
        if how == "one action space":
            self.action_space = self.single_action_space
        if how == "no environments":
            self.num_envs = 0
        self.place = np.zeros(self.num_envs)
        self.t = np.zeros(self.num_envs, np.int64)
        self.ended = np.zeros(self.num_envs, np.bool_)
        self.generators = [np.random.default_rng() for _ in range(self.num_envs)]
        self.shown = np.zeros((self.num_envs, 2), np.float32)
        self.rewards = np.zeros(self.num_envs)
        if how == "says that it overwrites":
            self.copy = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        chosen = np.ones(self.num_envs, np.bool_)
        if options and "reset_mask" in options and self.how != "resets all":
            chosen = options["reset_mask"]
        if self.how == "resets none" and options:
            chosen = np.zeros(self.num_envs, np.bool_)
            self.ended[:] = False
        if seed is not None and self.how != "no seed":
            seeds = [seed + i for i in range(self.num_envs)]
            if self.how == "same seed":
                seeds = [seed] * self.num_envs
            if self.how == "constant seed":
                seeds = list(range(self.num_envs))
            self.generators = [np.random.default_rng(one) for one in seeds]
        for i in np.flatnonzero(chosen):
            self.begin(i)
        if self.how == "no infos":
            return self.observe()
        return self.observe(), self.infos(chosen)

    def begin(self, i: Any) -> None:
        self.place[i] = self.generators[i].uniform(-1, 1)
        self.t[i] = 0
        self.ended[i] = False

    def step(self, actions: Any) -> Any:
        waiting = self.ended.copy() if self.mode == AutoresetMode.NEXT_STEP else self.t < 0
        last = self.observe()
        moves = 0.1 * (np.asarray(actions) - 1)
        if self.how == "draws elsewhere":
            moves = moves + 0.01 * np.random.random(self.num_envs)
        for i in np.flatnonzero(waiting):
            self.begin(i)
        moving = ~waiting if self.how != "acts while it resets" else waiting | True
        self.place[moving] += moves[moving]
        self.t[moving] += 1
        self.ended = ~waiting & (self.t >= 3 + np.arange(self.num_envs))
        self.rewards[:] = np.where(waiting, 0.0, self.place)
        if self.how == "rewards a reset":
            self.rewards[:] = 1.0
        terminated = self.ended & (np.arange(self.num_envs) % 2 == 0)
        truncated = self.ended & ~terminated
        infos = self.infos(~waiting)
        final = self.observe()
        if self.mode == AutoresetMode.SAME_STEP and self.ended.any():
            if self.how != "no final":
                finals = np.full(self.num_envs, None, dtype=object)
                for i in np.flatnonzero(self.ended):
                    finals[i] = final[i] + 100 * (self.how == "final outside")
                infos["final_obs"] = finals
                infos["_final_obs"] = self.ended.copy()
            for i in np.flatnonzero(self.ended):
                self.begin(i)
        observations = self.observe()
        if self.how == "shows the last":
            rows = waiting if self.mode == AutoresetMode.NEXT_STEP else terminated | truncated
            observations[rows] = (last if self.mode == AutoresetMode.NEXT_STEP else final)[rows]
        rewards = self.rewards if self.how == "overwrites rewards" else self.rewards.copy()
        answer = [observations, rewards, terminated, truncated, infos]
        if self.how == "four":
            del answer[3]
        if self.how == "rewards in a column":
            answer[1] = rewards[:, None]
        if self.how == "rewards are nan":
            answer[1] = np.where(self.t == 2, np.nan, rewards)
        if self.how == "integers":
            answer[2] = terminated.astype(np.int64)
        if self.how == "list":
            answer[3] = truncated.tolist()
        if self.how == "narrow":
            answer[0] = observations[:, :1]
        if self.how == "infos are a list":
            answer[4] = [infos]
        return tuple(answer)

    def observe(self) -> np.ndarray:
        shown = np.stack([self.place, self.t], 1).astype(np.float32)
        if self.how == "doubles":
            shown = shown.astype(np.float64)
        if self.how == "outside":
            shown[2, 1] = 40.5
        if self.how in ("overwrites", "says that it overwrites"):
            self.shown[:] = shown
            return self.shown
        return shown

    def infos(self, has_one: np.ndarray) -> dict[str, Any]:
        count = np.where(has_one, self.t, 0)
        text = np.full(self.num_envs, None, dtype=object)
        text[has_one] = "moved"
        infos: dict[str, Any] = {
            "count": count,
            "_count": has_one.copy(),
            "text": text,
            "_text": has_one.copy(),
            "nested": {"count": count},
            "_nested": has_one.copy(),
        }
        if self.how == "no mask":
            del infos["_count"]
        if self.how == "mask of nothing":
            del infos["count"]
        if self.how == "numbers for a mask":
            infos["_count"] = has_one.astype(np.int64)
        if self.how == "too few":
            infos["count"] = count[1:]
        if self.how == "too few within":
            infos["nested"] = {"count": count[1:]}
        if self.how == "text for none":
            infos["_text"] = np.zeros(self.num_envs, np.bool_)
        return infos

    def close(self, **_: Any) -> None:
        if self.how == "closes once" and self.closed:
            raise RuntimeError("it is closed")
        self.closed = True
