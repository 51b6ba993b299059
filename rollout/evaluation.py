"""How good a policy is: whole episodes, under draws that training never sees.

Each episode has an environment of its own and is its first one. Counting all episodes that end
within some number of steps would favour short ones: an environment ends more of those.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.intervals import bootstrap_interval, interquartile_mean
from rollout.policy import Policy, evaluation_seed

CHUNK = 256  # environments played at once
FOREIGN_CHUNK = 16  # of those that Python steps, which may be large
UNROLL_LENGTH = 128
MAX_STEPS = 100_000  # of one episode, where the environment has no limit of its own


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes that were played: their returns, float64 [E], and lengths in steps, int64 [E]."""

    returns: np.ndarray
    lengths: np.ndarray

    def __repr__(self) -> str:
        return f"Episodes({len(self.returns)}, mean return {self.returns.mean():g})"

    def as_dict(self) -> dict[str, Any]:
        """What is worth knowing of them, for people and programs."""
        return averages([self]) | {
            "median": float(np.median(self.returns)),
            "min": float(self.returns.min()),
            "max": float(self.returns.max()),
            "length_mean": float(self.lengths.mean()),
            "length_min": int(self.lengths.min()),
            "length_max": int(self.lengths.max()),
        }


def averages(runs: Sequence[Episodes]) -> dict[str, Any]:
    """Mean and interquartile mean of the returns of several runs, as many episodes of each.

    With the 95 % interval of either, see bootstrap_interval.
    """
    returns = np.stack([run.returns for run in runs])
    return {
        "mean": float(returns.mean()),
        "interval_95": list(bootstrap_interval(returns)),
        "iqm": float(interquartile_mean(returns.ravel())),
        "iqm_interval_95": list(bootstrap_interval(returns, interquartile_mean)),
    }


def play_episodes(
    policy: Policy,
    num_episodes: int,
    deterministic: bool,
    number: int = 0,
    tell: Callable[[int], None] | None = None,
) -> Episodes:
    """Play episodes, environment i's first one each; the same for whoever asks again.

    Of a game each agent is an environment; its episodes are one here, with the mean of their
    returns, because they depend on one another.

    deterministic: take the likeliest action. number: of this evaluation; another number plays other
    episodes. tell: is called with how many have been played, now and then. Raises EnvError if an
    episode does not end.
    """
    seed = evaluation_seed(policy.experiment.seed, number)
    chunk, group = CHUNK, 1
    if isinstance(policy.env, ForeignEnv):
        group = policy.env.group
        chunk = -(-FOREIGN_CHUNK // group) * group
    num_envs = num_episodes * group
    parts = []
    for first in range(0, num_envs, chunk):
        if tell is not None:
            tell(first // group)
        parts.append(_play_chunk(policy, first, min(chunk, num_envs - first), deterministic, seed))
    returns, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Episodes(returns.reshape(-1, group).mean(1), lengths.reshape(-1, group).max(1))


def _play_chunk(
    policy: Policy, first_env: int, num_envs: int, deterministic: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    actor = make_player(policy, first_env, num_envs, UNROLL_LENGTH, seed)
    try:
        returns = np.zeros(num_envs, np.float64)
        lengths = np.zeros(num_envs, np.int64)
        for _ in range(0, policy.env.max_episode_steps or MAX_STEPS, UNROLL_LENGTH):
            actor.act(policy.parameters, greedy=deterministic)
            unroll = actor.buffer.unroll()
            in_time = np.argsort(unroll.episode_t, kind="stable")
            ended, place = np.unique(unroll.episode_env[in_time], return_index=True)
            is_first = lengths[ended] == 0
            envs, first = ended[is_first], in_time[place[is_first]]
            returns[envs], lengths[envs] = (
                unroll.episode_return[first],
                unroll.episode_length[first],
            )
            if lengths.all():
                return returns, lengths
    finally:
        actor.envs.close()
    raise EnvError(
        f"{policy.experiment.env.id}: {np.sum(lengths == 0)} of {num_envs} episodes did not end "
        f"within {MAX_STEPS:,} steps; give the environment max_episode_steps"
    )


def make_player(
    policy: Policy, first_env: int, num_envs: int, length: int, seed: int, pictures: bool = False
) -> Any:
    """An actor with a policy's experiment, as make_actor makes it. length: of its unrolls."""
    from rollout.make_actor import make_actor  # with Numba behind it: slow to import

    experiment = policy.experiment
    return make_actor(
        policy.env,
        num_envs,
        seed,
        policy.network,
        policy.schema_of(length),
        given_network=experiment.given_network,
        params=experiment.env.params,
        first_env=first_env,
        pictures=pictures,
    )
