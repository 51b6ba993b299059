"""The `minatar` package as the judge of our MinAtar games.

`Judge` plays the package and our plain Python functions side by side. The package's two generators
(one for sticky actions, one for the game) are replaced by recorders; what they drew is handed to
our functions, which must ask for exactly as much. After every step all that is known of the game,
the observation, the reward and the end must be the same.

`assert_compiled_equals_plain` carries this over to compiled code, and `assert_same_distributions`
compares the package, untouched, with compiled code that draws its own numbers.

A player is a function (board, rng) → one of the letters of `LETTERS`; board is the observation.

Judge a game like this:

    def fields(their):  # the attributes of the package's game, as fields of our state
        return {"player_x": their.pop("player_x"), …}  # must pop them all

    judge = Judge(Asterix, "asterix", fields, sticky_action_prob=0.0)
    returns = judge.play(random_player("nlurd"), num_steps=5000)
    judge.put(player_x=3, …)  # or in any state: attributes of the package's game
    reward, terminated = judge.step("l")
"""

import math
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from minatar import Environment

from rollout.envs import CompiledEnv, Envs, Outcome, philox
from rollout.envs.minatar.board import BACKGROUND, COLOURS
from rollout.envs.records import ArrayView, RecordView

LETTERS = "nlurdf"  # no-op, left, up, right, down, fire: the package's actions 0 to 5
CONSTANT = ("channels", "action_map", "random", "ramping")  # attributes that never change
Player = Callable[[np.ndarray, np.random.Generator], str]


def random_player(letters: str) -> Player:
    return lambda board, rng: letters[rng.integers(len(letters))]


def action_letters(env: type[CompiledEnv], game: str) -> str:
    """The letter of each action of ours: the package's minimal set, or all six."""
    actions = Environment(game).minimal_action_set()
    letters = "".join(LETTERS[action] for action in actions)
    num_actions = env.action_space.n  # type: ignore[attr-defined]
    assert num_actions in (len(letters), len(LETTERS))
    return letters if num_actions == len(letters) else LETTERS


class Recorder:
    """A RandomState that notes each draw as the number in [0, 1) that makes ours draw the same.

    It has only the methods that the games use: any other would be an error.
    """

    def __init__(self, random: np.random.RandomState, units: deque[float]) -> None:
        self._random = random
        self._units = units

    def rand(self, *shape: int) -> Any:
        drawn = self._random.rand(*shape)
        self._units.extend(np.ravel(drawn).tolist())
        return drawn

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        low, high = (0, low) if high is None else (low, high)
        drawn = self._random.randint(low, high, size)
        # the middle of its share of [0, 1), where rounding cannot turn it into a neighbour
        self._units.extend(((np.ravel(drawn) - low + 0.5) / (high - low)).tolist())
        return drawn


class Judge:
    """One game of the package and one of ours, kept in the same state.

    fields: turns attributes of the package's game, popped from a dictionary, into fields of our
    state. Attributes left over, and fields not given, are errors, so that nothing stays unseen.
    """

    def __init__(
        self,
        env: type[CompiledEnv],
        game: str,
        fields: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        seed: int = 0,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
    ) -> None:
        params = {
            "sticky_action_prob": sticky_action_prob,
            "difficulty_ramping": difficulty_ramping,
        }
        self.env = env
        self.letters = action_letters(env, game)
        self.theirs: Any = Environment(game, **params)
        self.theirs.seed(seed)
        self._fields = fields
        self._units: deque[float] = deque()
        self.theirs.random = Recorder(self.theirs.random, self._units)
        self.theirs.env.random = Recorder(self.theirs.env.random, self._units)
        self._record = np.zeros(1, env.state)
        self._params = RecordView(env.make_params(params))
        self._rng = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Begin an episode in both."""
        self._units.clear()
        self.theirs.reset()
        self.theirs.last_action = 0  # the package keeps that of the episode before
        self._record[:] = 0
        with self._draws():
            self.env.reset(RecordView(self._record), self._params, None)
        self._compare()

    def put(self, **attributes: Any) -> None:
        """Put both in a state: attributes of the package's game, and its `last_action`."""
        for name, value in attributes.items():
            owner = self.theirs if name == "last_action" else self.theirs.env
            assert hasattr(owner, name), f"the package's game has no {name}"
            setattr(owner, name, value)
        self.theirs.env.terminal = False
        for name, value in self._expected().items():
            self._record[name][0] = value
        self._compare()

    def step(self, letter: str) -> tuple[float, bool]:
        """Step both, compare everything; returns (reward, terminated)."""
        self._units.clear()
        their_reward, their_terminated = self.theirs.act(LETTERS.index(letter))
        with self._draws():
            reward, terminated = self.env.step(
                RecordView(self._record), self._params, self.letters.index(letter), None
            )
        assert (reward, terminated) == (their_reward, their_terminated), "reward, terminated"
        self._compare()
        return float(reward), bool(terminated)

    def play(self, player: Player, num_steps: int) -> list[float]:
        """Play for so many steps, episode after episode.

        Returns what each episode yielded; the last one is not finished.
        """
        self.reset()
        returns = [0.0]
        for _ in range(num_steps):
            reward, terminated = self.step(player(self.theirs.state(), self._rng))
            returns[-1] += reward
            if terminated:
                returns.append(0.0)
                self.reset()
        return returns

    @contextmanager
    def _draws(self):
        """Ours draw what the package drew, no more and no less."""

        def next_unit(draw):
            assert self._units, "ours draws more often than the package"
            return self._units.popleft()

        with mock.patch.object(philox, "next_unit_float64", next_unit):
            yield
        assert not self._units, f"ours did not draw {len(self._units)} times, the package did"

    def _expected(self) -> dict[str, Any]:
        """What our fields should be."""
        their = dict(vars(self.theirs.env))
        for name in (*CONSTANT, "terminal"):
            their.pop(name, None)
        expected = self._fields(their) | {"last_action": self.theirs.last_action}
        assert not their, f"attributes of the package's game that nothing is compared with: {their}"
        assert set(expected) == set(self.env.state.names or ())
        return expected

    def _compare(self) -> None:
        for name, value in self._expected().items():
            assert_equal(self._record[name][0], value, f"state.{name}")
        space = self.env.observation_space
        observation = np.zeros(space.shape or (), space.dtype)
        self.env.observe(RecordView(self._record), self._params, ArrayView(observation))
        assert_equal(observation, self.theirs.state(), "observation")


def assert_equal(one: Any, other: Any, what: str) -> None:
    if not np.array_equal(one, other):  # far quicker than the next line, which says more
        np.testing.assert_array_equal(one, other, err_msg=what)


def assert_compiled_equals_plain(env: type[CompiledEnv], player: Player, num_steps: int) -> int:
    """Compiled and plain Python do the same for three environments; returns episodes finished."""
    letters = action_letters(env, _game_of(env))
    num_envs, episodes = 3, 0
    compiled = Envs(env, num_envs, seed=5), Outcome(env, num_envs)
    plain = Envs(env, num_envs, seed=5, jit=False), Outcome(env, num_envs)
    rng = np.random.default_rng(0)
    observation = plain[0].observation()
    np.testing.assert_array_equal(compiled[0].observation(), observation)
    for t in range(num_steps):
        action = np.array([letters.index(player(board, rng)) for board in observation], np.int32)
        for envs, outcome in (compiled, plain):
            envs.step(action, outcome)
        for name in ("observation", "reward", "terminated", "truncated"):
            one, other = (getattr(outcome, name) for _, outcome in (compiled, plain))
            np.testing.assert_array_equal(one, other, err_msg=f"{name} of step {t}")
        assert compiled[0].snapshot() == plain[0].snapshot(), f"state after step {t}"
        observation = plain[1].observation
        episodes += plain[1].num_episodes
    return episodes


def assert_render_shows_observation(env: type[CompiledEnv]) -> None:
    """Each cell has the colour of its first channel, or is dark."""
    envs, outcome = Envs(env, 1, seed=0), Outcome(env, 1)
    for _ in range(30):
        envs.step(np.zeros(1, np.int32), outcome)
    image = envs.render()
    assert image.shape == (200, 200, 3) and image.dtype == np.uint8
    cells = image[10::20, 10::20]  # their middles
    for y, x in np.ndindex(10, 10):
        channels = np.flatnonzero(outcome.observation[0, y, x])
        colour = COLOURS[channels[0]] if len(channels) else BACKGROUND
        np.testing.assert_array_equal(cells[y, x], colour, err_msg=f"cell {y}, {x}")


def assert_same_distributions(
    env: type[CompiledEnv], player: Player, episodes: int, max_steps: int = 3000
) -> None:
    """Return and length of episodes are distributed alike in the package and in ours, compiled.

    The package is as it comes, with its own generators and its own idea of a first `last_action`.
    Episodes are cut off after max_steps.
    """
    theirs = _their_episodes(env, player, episodes, max_steps)
    ours = _our_episodes(env, player, episodes, max_steps)
    for name, one, other in zip(("return", "length"), theirs, ours, strict=True):
        distance = kolmogorov_smirnov(one, other)
        # exceeded by chance in one case of 10,000, and less often where values repeat
        limit = math.sqrt(math.log(2 / 1e-4) / 2 * (1 / len(one) + 1 / len(other)))
        assert distance < limit, (
            f"{name}: theirs {np.mean(one):.2f}, ours {np.mean(other):.2f} on average; "
            f"distance {distance:.3f}, limit {limit:.3f}"
        )


def kolmogorov_smirnov(one: np.ndarray, other: np.ndarray) -> float:
    """The greatest distance between two samples' distribution functions."""
    values = np.concatenate([one, other])
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (one, other)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def _game_of(env: type[CompiledEnv]) -> str:
    """The package's name of the game, which is that of our module."""
    return env.__module__.rsplit(".", 1)[1]


def _their_episodes(env, player, episodes, max_steps) -> tuple[np.ndarray, np.ndarray]:
    theirs: Any = Environment(_game_of(env))
    theirs.seed(1)
    rng = np.random.default_rng(1)
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    for i in range(episodes):
        theirs.reset()
        terminated = False
        while not terminated and lengths[i] < max_steps:
            reward, terminated = theirs.act(LETTERS.index(player(theirs.state(), rng)))
            returns[i] += reward
            lengths[i] += 1
    return returns, lengths


def _our_episodes(env, player, episodes, max_steps) -> tuple[np.ndarray, np.ndarray]:
    """The first episode of each environment: those that end first would favour short ones."""
    letters = action_letters(env, _game_of(env))
    envs, outcome = Envs(env, episodes, seed=1), Outcome(env, episodes)
    rng = np.random.default_rng(2)
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    going = np.ones(episodes, np.bool_)
    observation = envs.observation()
    action = np.zeros(episodes, np.int32)
    for _ in range(max_steps):
        if not going.any():
            break
        for i in np.flatnonzero(going):
            action[i] = letters.index(player(observation[i], rng))
        envs.step(action, outcome)
        returns[going] += outcome.reward[going]
        lengths[going] += 1
        going &= ~outcome.terminated
        observation = outcome.observation
    return returns, lengths
