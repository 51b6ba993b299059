"""Games of PettingZoo's parallel interface: each agent is an environment, and one policy plays all.

An agent that has left waits for the others, in steps that are none; when all have, the next step of
the game, none for everybody, begins another.
"""

from typing import Any, TypeGuard

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from rollout.envs.errors import EnvError
from rollout.envs.foreign.closing import close


def is_parallel_env(env: Any) -> TypeGuard[Any]:
    """Whether it has what PettingZoo's ParallelEnv has."""
    return all(hasattr(env, name) for name in ("possible_agents", "observation_space", "step"))


class ParallelGames(VectorEnv):
    """Games of equal agents; row g * A + a is agent a of game g.

    no_op: [N] bool, whose last step was none.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, games: list[Any]) -> None:
        self._games, self._agents = games, list(games[0].possible_agents)
        self.__doc__ = games[0].__doc__
        self.num_envs = len(games) * len(self._agents)
        self.single_observation_space = self._common("observation_space")
        self.single_action_space = self._common("action_space")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        nothing = create_empty_array(self.single_observation_space, self.num_envs)
        self._shown: list[Any] = list(iterate(self.observation_space, nothing))
        self.no_op = np.ones(self.num_envs, np.bool_)

    def _common(self, name: str) -> Any:
        """The space that all agents have. Raises EnvError where they differ."""
        spaces = {agent: getattr(self._games[0], name)(agent) for agent in self._agents}
        first = spaces[self._agents[0]]
        for agent, space in spaces.items():
            if space != first:
                raise EnvError(
                    f"{name} of agent {agent!r} is {space}, of {self._agents[0]!r} {first}; one "
                    "policy plays all, so all need the same: pad them (supersuit has wrappers)"
                )
        return first

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """seed: one for each agent, of which a game takes its first one's."""
        A = len(self._agents)
        for g in range(len(self._games)):
            self._reset_game(g, None if seed is None else int(seed[g * A]))
        return self._observations(), {}

    def _reset_game(self, g: int, seed: int | None) -> None:
        observations, _ = self._games[g].reset(seed=seed)
        self._show(g, observations)

    def _show(self, g: int, observations: dict[Any, Any]) -> None:
        for row, agent in enumerate(self._agents, g * len(self._agents)):
            if agent in observations:
                self._shown[row] = observations[agent]

    def _observations(self) -> Any:
        out = create_empty_array(self.single_observation_space, self.num_envs)
        return concatenate(self.single_observation_space, self._shown, out)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        A, chosen = len(self._agents), list(iterate(self.action_space, actions))
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        self.no_op = np.ones(self.num_envs, np.bool_)
        for g, game in enumerate(self._games):
            if not game.agents:
                self._reset_game(g, None)
                continue
            rows = {agent: g * A + self._agents.index(agent) for agent in game.agents}
            answer = game.step({agent: chosen[row] for agent, row in rows.items()})
            observations, gained, ends, cuts, _ = answer
            self._show(g, observations)
            for agent, row in rows.items():
                self.no_op[row] = False
                rewards[row] = gained[agent]
                terminated[row], truncated[row] = ends[agent], cuts[agent]
                if agent not in game.agents and not (terminated[row] or truncated[row]):
                    truncated[row] = True  # the game is over without a word on this agent
        return self._observations(), rewards, terminated, truncated, {}

    def close(self, **kwargs: Any) -> None:
        for game in self._games:
            close(game, type(game).__name__)
