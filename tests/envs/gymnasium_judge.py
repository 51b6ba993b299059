"""Gymnasium as the judge of our classic-control environments.

Both are put into the same states and given the same actions. Where `atol` is given, last digits may
differ, of the float64 state as of the float32 observation and reward, and numbers near zero by
`atol`: NumPy's sin and cos need not be the C library's, and its x**2 not x * x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from rollout.envs import CompiledEnv, Envs, Outcome
from rollout.envs.layouts import action_layout

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # states [N, n] → actions


@dataclass
class Answers:
    """What N environments answer to a step: state [N, n], observation [N, …], and [N] of the rest.

    state and observation are those before an autoreset.
    """

    state: np.ndarray
    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


@dataclass(frozen=True)
class Judge:
    """Our environment, and the id of Gymnasium's."""

    env: type[CompiledEnv]
    env_id: str

    def gymnasiums(self, state: np.ndarray, action: np.ndarray, **attributes: Any) -> Answers:
        """What Gymnasium's answers from each state; attributes: of its environment."""
        theirs: Any = gymnasium.make(self.env_id).unwrapped
        for name, value in attributes.items():
            assert hasattr(theirs, name)
            setattr(theirs, name, value)
        states, observations, rewards, ends = [], [], [], []
        for one_state, one_action in zip(state, action, strict=True):
            theirs.reset(seed=0)
            theirs.state = one_state.astype(self.state_dtype())
            observation, reward, terminated, *_ = theirs.step(one_action)
            states.append(np.array(theirs.state))
            observations.append(observation)
            rewards.append(np.float32(reward))
            ends.append(terminated)
        return Answers(*map(np.array, (states, observations, rewards, ends)))

    def ours(self, state: np.ndarray, action: np.ndarray, jit: bool = True, **params) -> Answers:
        """What ours answers from each state. Where it ended, `state` is NaN: it is not kept."""
        num_envs = len(state)
        envs = Envs(self.env, num_envs, seed=0, jit=jit, params=params)
        outcome = Outcome(self.env, num_envs)
        action = np.asarray(action, action_layout(self.env.action_space).dtype)
        self.put(envs, state)
        envs.step(action, outcome)
        next_state = np.where(outcome.terminated[:, None], np.nan, self.states(envs))
        assert self.env.max_episode_steps is not None
        envs.records["clock"]["t"] = self.env.max_episode_steps - 1  # what was truncated is shown
        self.put(envs, state)
        envs.step(action, outcome)
        assert outcome.num_finals == num_envs
        return Answers(next_state, outcome.final_observation, outcome.reward, outcome.terminated)

    def check_transitions(
        self, state: np.ndarray, action: np.ndarray, *, atol: float = 0
    ) -> Answers:
        """Ours are Gymnasium's from each state; plain Python equals compiled code, bit for bit.

        Returns Gymnasium's answers.
        """
        theirs = self.gymnasiums(state, action)
        compiled, plain = (self.ours(state, action, jit) for jit in (True, False))
        check_answers(compiled, theirs, atol)
        for name, found in vars(compiled).items():
            np.testing.assert_array_equal(getattr(plain, name), found, f"{name} in plain Python")
        return theirs

    def check_params(
        self,
        state: np.ndarray,
        action: np.ndarray,
        params: dict[str, Any],
        attributes: dict[str, Any] | None = None,
        *,
        atol: float = 0,
    ) -> None:
        """With `params` ours are Gymnasium's with `attributes` (by default of the same names)."""
        theirs = self.gymnasiums(state, action, **(attributes or params))
        ours, default = self.ours(state, action, **params), self.ours(state, action)
        check_answers(ours, theirs, atol)
        found = np.column_stack([ours.observation, ours.reward, ours.terminated])
        unchanged = np.column_stack([default.observation, default.reward, default.terminated])
        assert (found != unchanged).any(1).mean() > 0.01, "it has no effect"

    def check_episodes(
        self, policy: Policy, *, seed: int, atol: float = 0
    ) -> list[tuple[int, bool]]:
        """Eight episodes from our first states are Gymnasium's, step by step, to their ends.

        Returns of each how long it was and whether it terminated.
        """
        num_envs, rng = 8, np.random.default_rng(seed)
        envs, outcome = Envs(self.env, num_envs, seed=seed), Outcome(self.env, num_envs)
        theirs: list[Any] = [gymnasium.make(self.env_id) for _ in range(num_envs)]
        for one, state in zip(theirs, self.states(envs), strict=True):
            one.reset(seed=seed)
            one.unwrapped.state = state.astype(self.state_dtype())
        returns, ends = np.zeros(num_envs), {}
        while len(ends) < num_envs:
            action = policy(self.states(envs), rng)
            envs.step(action.astype(action_layout(self.env.action_space).dtype), outcome)
            finals = outcome.final_env[: outcome.num_finals].tolist()
            episodes = outcome.episode_env[: outcome.num_episodes].tolist()
            for i in sorted({*range(num_envs)} - {*ends}):
                observation, reward, terminated, truncated, _ = theirs[i].step(action[i])
                returns[i] += reward
                check_close(outcome.reward[i], np.float32(reward), atol)
                assert (terminated, truncated) == (outcome.terminated[i], outcome.truncated[i])
                if truncated:
                    shown = outcome.final_observation[finals.index(i)]
                    check_close(shown, observation, atol)
                elif not terminated:
                    check_close(outcome.observation[i], observation, atol)
                if terminated or truncated:
                    row = episodes.index(i)
                    np.testing.assert_allclose(outcome.episode_return[row], returns[i], rtol=1e-12)
                    ends[i] = (int(outcome.episode_length[row]), terminated)
        return [ends[i] for i in range(num_envs)]

    def check_spaces(self) -> None:
        """Spaces, time limit and pace of the pictures are Gymnasium's."""
        theirs = gymnasium.make(self.env_id)
        assert self.env.observation_space == theirs.observation_space
        assert self.env.action_space == theirs.action_space
        assert theirs.spec is not None
        assert self.env.max_episode_steps == theirs.spec.max_episode_steps
        assert self.env.render_fps == theirs.metadata["render_fps"]

    def check_first_states(self) -> None:
        """First states are spread as Gymnasium's: Kolmogorov and Smirnov cannot tell them apart."""
        num = 4000
        theirs: Any = gymnasium.make(self.env_id).unwrapped
        expected = np.array([(theirs.reset(seed=i), theirs.state)[1] for i in range(num)], float)
        found = self.states(Envs(self.env, num, seed=9)).astype(float)
        for ours, judged in zip(found.T, expected.T, strict=True):
            both = np.sort(np.concatenate([ours, judged]))
            parts = (np.searchsorted(np.sort(one), both, "right") / num for one in (ours, judged))
            distance = abs(np.subtract(*parts)).max()
            assert distance < 1.95 * np.sqrt(2 / num), "p < 0.001"
            width = np.ptp(judged)
            np.testing.assert_allclose(ours.min(), judged.min(), atol=0.002 * width)
            np.testing.assert_allclose(ours.max(), judged.max(), atol=0.002 * width)
        varying = found[:, np.ptp(expected, axis=0) > 0]
        correlation = np.atleast_2d(np.corrcoef(varying.T))
        assert abs(correlation - np.eye(len(correlation))).max() < 0.06, "they hang together"

    def check_render(self, one: np.ndarray, other: np.ndarray) -> None:
        """Two states make two pictures, and stay as they are."""
        envs = Envs(self.env, 2, seed=0)
        self.put(envs, np.array([one, other]))
        before = envs.snapshot()
        pictures = [envs.render(i) for i in range(2)]
        assert all(picture.dtype == np.uint8 for picture in pictures)
        assert pictures[0].shape == pictures[1].shape
        assert pictures[0].shape[2:] == (3,)
        assert (pictures[0] != pictures[1]).mean() > 0.005, "what moves is too small to see"
        assert envs.snapshot() == before

    def state_dtype(self) -> np.dtype:
        """Of all its numbers."""
        (dtype,) = {self.env.state[name] for name in self.env.state.names or ()}
        return dtype

    def states(self, envs: Envs) -> np.ndarray:
        """[N, n], a copy."""
        return np.array([envs.records["state"][name] for name in self.env.state.names or ()]).T

    def put(self, envs: Envs, state: np.ndarray) -> None:
        """The reverse."""
        for name, values in zip(self.env.state.names or (), state.T, strict=True):
            envs.records["state"][name] = values


def check_answers(found: Answers, expected: Answers, atol: float) -> None:
    np.testing.assert_array_equal(found.terminated, expected.terminated)
    goes_on = ~expected.terminated
    check_close(found.state[goes_on], expected.state[goes_on], atol)
    check_close(found.observation, expected.observation, atol)
    check_close(found.reward, expected.reward, atol)


def check_close(found: Any, expected: Any, atol: float) -> None:
    """Equal; with atol, to the last digits."""
    digits = 2.0**-23 if np.asarray(expected).dtype == np.float32 else 2.0**-50
    np.testing.assert_allclose(found, expected, rtol=digits if atol else 0, atol=atol)
