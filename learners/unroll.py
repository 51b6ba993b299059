"""What actors send and learners read: an unroll, and the batch that unrolls are put into.

Both ends derive the layout of an unroll's bytes from an `UnrollSchema`, on which they agree by its
digest; dtypes and shapes never cross the wire. A payload is the fixed part (all fields of rows
0 … T) followed by the sparse tails, whose lengths travel in the message's header:

    observation … value | final_* (row per truncated step) | episode_* (row per finished episode)
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

ALIGNMENT = 8  # bytes; every field starts at a multiple
BOOL, UINT8, INT32 = np.dtype(np.bool_), np.dtype(np.uint8), np.dtype(np.int32)
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

Field = tuple[str, np.dtype, tuple[int, ...]]  # name, dtype, shape
PlacedField = tuple[str, np.dtype, tuple[int, ...], int]  # and its offset in the payload, in bytes


@dataclass(frozen=True)
class UnrollSchema:
    """What an unroll of a run looks like, but for the number of environments.

    has_value: whether actors record the value of every observation, because the algorithm asks.
    state_bytes: of one environment's state (rollout.envs.batch: snapshot) with what the policy
    remembers there. state_fields: what it is made of, for who compares; no one reads it.
    core_size: of the policy's core state; 0 of one that has none. frame_stack: how many of the last
    observations it reads, this one included.
    mask_size: of an action mask; 0 where everything is always allowed. has_no_ops: whether there
    may be steps that are none, see Unroll.
    """

    unroll_length: int
    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_shape: tuple[int, ...]
    action_dtype: str
    has_value: bool
    state_bytes: int = 0
    mask_size: int = 0
    state_fields: str = ""
    has_no_ops: bool = False
    core_size: int = 0
    frame_stack: int = 1

    @property
    def memory_bytes(self) -> int:
        """Of what the policy remembers of one environment: its core state, and frames."""
        frame_bytes = math.prod(self.observation_shape) * np.dtype(self.observation_dtype).itemsize
        return FLOAT32.itemsize * self.core_size + (self.frame_stack - 1) * frame_bytes

    @property
    def env_state_bytes(self) -> int:
        """Of one environment's state alone: the first bytes of `env_state`."""
        return self.state_bytes - self.memory_bytes

    @property
    def digest(self) -> bytes:
        """32 bytes that two processes compare before they talk."""
        return hashlib.sha256(repr((LAYOUT_VERSION, self)).encode()).digest()

    def fields(self, num_envs: int, num_finals: int, num_episodes: int) -> Iterator[Field]:
        """Every field of an unroll, in the order of its bytes."""
        yield from self.columns(num_envs)
        yield from self.tails(num_finals, num_episodes)

    def columns(self, num_envs: int) -> Iterator[Field]:
        """The fields that have a column for every environment."""
        T, N = self.unroll_length, num_envs
        value_rows = T + 1 if self.has_value else 0
        observation, shape = np.dtype(self.observation_dtype), self.observation_shape
        yield "observation", observation, (T + 1, N, *shape)
        yield "action", np.dtype(self.action_dtype), (T, N, *self.action_shape)
        yield "action_mask", BOOL, (T, N, self.mask_size)
        yield "reward", FLOAT32, (T, N)
        yield "terminated", BOOL, (T, N)
        yield "truncated", BOOL, (T, N)
        yield "behavior_log_prob", FLOAT32, (T, N)
        yield "value", FLOAT32, (value_rows, N)
        yield "no_op", BOOL, (T if self.has_no_ops else 0, N)
        yield "core_state", FLOAT32, (N, self.core_size)
        yield "frames", observation, (N, self.frame_stack - 1, *shape)
        yield "env_state", UINT8, (N, self.state_bytes)

    def tails(self, num_finals: int, num_episodes: int) -> Iterator[Field]:
        """The sparse fields, which follow the columns."""
        F, E = num_finals, num_episodes
        yield "final_t", INT32, (F,)
        yield "final_env", INT32, (F,)
        yield "final_observation", np.dtype(self.observation_dtype), (F, *self.observation_shape)
        yield "final_value", FLOAT32, (F if self.has_value else 0,)
        yield "episode_t", INT32, (E,)
        yield "episode_env", INT32, (E,)
        yield "episode_return", FLOAT64, (E,)
        yield "episode_length", INT32, (E,)

    def layout(
        self, num_envs: int, num_finals: int, num_episodes: int
    ) -> tuple[list[PlacedField], int]:
        """Where every field lies, and the payload's length in bytes."""
        columns, size = _place_columns(self, num_envs)
        tails, size = _place(self.tails(num_finals, num_episodes), size)
        return columns + tails, size

    def size_bytes(self, num_envs: int, num_finals: int, num_episodes: int) -> int:
        """Length of a payload."""
        return self.layout(num_envs, num_finals, num_episodes)[1]

    def max_size_bytes(self, num_envs: int) -> int:
        """Length of the longest payload: every step of every environment ends an episode."""
        return self.size_bytes(num_envs, *2 * (self.unroll_length * num_envs,))


LAYOUT_VERSION = 6


def _place(fields: Iterable[Field], offset: int) -> tuple[list[PlacedField], int]:
    """The fields one behind the other from `offset` on, and where they end."""
    placed = []
    for name, dtype, shape in fields:
        placed.append((name, dtype, shape, offset))
        offset += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return placed, offset


@functools.lru_cache(maxsize=64)
def _place_columns(schema: UnrollSchema, num_envs: int) -> tuple[list[PlacedField], int]:
    return _place(schema.columns(num_envs), 0)


@dataclass(frozen=True, eq=False)
class Unroll:
    """T steps of N environments, acted with one version of the weights.

    Row t: at observation[t] the behavior policy chose action[t]; the environment answered with
    reward[t], terminated[t], truncated[t]. Row T holds only the observation to bootstrap from.
    After an end, observation[t + 1] is the next episode's first (SAME_STEP autoreset).

    observation: [T+1, N, *obs_shape] in the space's dtype; of a Dict, the bytes of its record
        (rollout.envs.layouts).
    action: [T, N, *action_shape], before any clipping.   behavior_log_prob: [T, N] float32.
    action_mask: [T, N, mask_size] bool, what was allowed.
    reward: [T, N] float32, unclipped.   terminated, truncated: [T, N] bool.
    value: [T+1, N] float32, by the weights that acted ([0, N] if the schema has none).
    no_op: [T, N] bool, steps that are none: the environment ignored the action, as it had to begin
        its next episode (NEXT_STEP autoreset), or waited for others ([0, N] if it never does).
    core_state: [N, core_size] float32, in which the policy was at row 0; it is zeros wherever an
        episode begins, and after steps that are none.
    frames: [N, frame_stack - 1, *obs_shape], the observations before row 0, oldest first, as rows 0
        and behind do not repeat them; zeros before an episode's first, and before steps that are
        none.
    env_state: [N, state_bytes] uint8, after the last step: where the next unroll begins. Core state
        and frames of the policy there are its end.
    final_t, final_env: [F] int32, where truncated; final_observation: [F, *obs_shape], the true
        last observation there; final_value: [F] float32, its value.
    episode_t, episode_env: [E] int32, where episodes ended; episode_return: [E] float64;
        episode_length: [E] int32, in steps.
    """

    observation: np.ndarray
    action: np.ndarray
    action_mask: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    behavior_log_prob: np.ndarray
    value: np.ndarray
    no_op: np.ndarray
    core_state: np.ndarray
    frames: np.ndarray
    env_state: np.ndarray
    final_t: np.ndarray
    final_env: np.ndarray
    final_observation: np.ndarray
    final_value: np.ndarray
    episode_t: np.ndarray
    episode_env: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray

    @classmethod
    def view(
        cls, schema: UnrollSchema, payload, num_envs: int, num_finals: int, num_episodes: int
    ) -> "Unroll":
        """The arrays inside a payload, without copying; writable if the payload is.

        Raises ValueError if the payload has another length than the counts say.
        """
        payload = memoryview(payload).cast("B")
        layout, wanted = schema.layout(num_envs, num_finals, num_episodes)
        if payload.nbytes != wanted:
            raise ValueError(f"payload of {payload.nbytes} bytes, wanted {wanted}")
        return cls(
            *(np.ndarray(shape, dtype, payload, offset) for _, dtype, shape, offset in layout)
        )

    def is_sound(self, choices: tuple[int, ...]) -> bool:
        """Whether every number in it that a learner uses as an index or a flag can be one.

        choices: how many actions each of an action's integers chooses from; empty if actions are
        quantities.

        Finals are where it was truncated, episodes where it ended, each once; no episode ends in a
        step that is none. Nothing is known of an unroll that came from outside but its length.
        Floats may be anything.
        """
        return (
            _are_below(2, self.terminated, self.truncated, self.action_mask, self.no_op)
            and not (len(self.no_op) and (self.no_op & (self.terminated | self.truncated)).any())
            and all(
                _are_below(count, column)
                for count, column in zip(choices, _by_choice(self.action, choices), strict=True)
            )
            and _are_places(self.final_t, self.final_env, self.truncated)
            and _are_places(self.episode_t, self.episode_env, self.terminated | self.truncated)
        )

    def write_tails(self, payload, schema: UnrollSchema, num_finals: int, num_episodes: int) -> int:
        """Copy the first rows of the tails to their place in a payload whose fixed part is written.

        `self` has room for the longest tails and lies elsewhere or further back. Returns the
        payload's length in bytes.
        """
        num_envs = self.reward.shape[1]
        size = schema.size_bytes(num_envs, num_finals, num_episodes)
        target = Unroll.view(schema, memoryview(payload)[:size], num_envs, num_finals, num_episodes)
        for name in TAILS:
            rows = getattr(target, name)
            rows[:] = getattr(self, name)[: len(rows)]
        return size


def _are_below(limit: int, *arrays: np.ndarray) -> bool:
    """Whether all are integers 0 ≤ x < limit."""
    # Seen as unsigned, negative numbers are too large.
    return all(
        np.maximum.reduce(array.view(f"u{array.itemsize}"), axis=None, initial=0) < limit
        for array in arrays
    )


def _by_choice(action: np.ndarray, choices: tuple[int, ...]) -> list[np.ndarray]:
    """Actions [T, N] of each choice."""
    if not choices:
        return []
    return [action] if action.ndim == 2 else [action[..., j] for j in range(len(choices))]


def _are_places(t: np.ndarray, env: np.ndarray, where: np.ndarray) -> bool:
    """Whether (t, env) are the places where `where` [T, N] is true, each once."""
    if len(t) == 0:
        return not where.any()
    T, N = where.shape
    if not (_are_below(T, t) and _are_below(N, env)):
        return False
    marked = np.zeros_like(where)
    marked[t, env] = True
    return len(t) == np.count_nonzero(marked) and bool((marked == where).all())


COLUMNS = (  # [T, N] or [T+1, N]; [0, N] of what the schema does without
    "observation",
    "action",
    "action_mask",
    "reward",
    "terminated",
    "truncated",
    "behavior_log_prob",
    "value",
    "no_op",
)
STARTS_AND_ENDS = ("core_state", "frames", "env_state")  # [N, …], of row 0 and of the last
TAILS = tuple(f.name for f in fields(Unroll) if f.name not in (*COLUMNS, *STARTS_AND_ENDS))


class Batch:
    """What one update is made from: columns of unrolls side by side, as many as environments.

    The arrays are those of `Unroll` with B columns; the tails are sorted by (t, column), and
    `final_env`, `episode_env` count columns of the batch. In lockstep column i is environment i, so
    that nothing depends on how the environments were shared out; in async columns are in the order
    of their arrival.

    env: [B] int64, the environment of each column. weights_version: [B] int64, the version that
    acted it. Filled by `put`, reused after `clear`.
    """

    def __init__(
        self,
        schema: UnrollSchema,
        num_envs: int,
        allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
    ) -> None:
        self.schema = schema
        self.num_envs = num_envs
        for name, dtype, shape in schema.fields(num_envs, 0, 0):
            setattr(self, name, allocate(shape, dtype))
        self.env = np.zeros(num_envs, np.int64)
        self.weights_version = np.zeros(num_envs, np.int64)
        self.clear()

    observation: np.ndarray
    action: np.ndarray
    action_mask: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    behavior_log_prob: np.ndarray
    value: np.ndarray
    no_op: np.ndarray
    core_state: np.ndarray
    frames: np.ndarray
    env_state: np.ndarray
    final_t: np.ndarray
    final_env: np.ndarray
    final_observation: np.ndarray
    final_value: np.ndarray
    episode_t: np.ndarray
    episode_env: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray

    def __repr__(self) -> str:
        return f"Batch({self.num_columns_put} of {self.num_envs} columns)"

    def clear(self) -> None:
        """Make room for the next unrolls."""
        self.num_columns_put = 0
        self._tails: list[dict[str, np.ndarray]] = []

    @property
    def is_full(self) -> bool:
        return self.num_columns_put == self.num_envs

    @property
    def is_first(self) -> np.ndarray:
        """Where an episode begins, and what a policy remembers of it: bool [T+1, B].

        Of row 0 nothing is said: core state and frames came with the unroll.
        """
        is_first = np.zeros((len(self.reward) + 1, self.num_envs), np.bool_)
        is_first[1:] = self.terminated | self.truncated
        if len(self.no_op):
            is_first[1:] |= self.no_op
        return is_first

    def put(
        self,
        unroll: Unroll,
        column: int,
        env: np.ndarray,
        weights_version: int,
        start: int = 0,
    ) -> None:
        """Copy an unroll's columns start, …, start + len(env) - 1 to `column` and those behind it.

        env: [n], the environments of these columns. `seal` follows when the batch is full.
        """
        stop = start + len(env)
        here, there = slice(column, column + len(env)), slice(start, stop)
        for name in COLUMNS:
            getattr(self, name)[:, here] = getattr(unroll, name)[:, there]
        for name in STARTS_AND_ENDS:
            getattr(self, name)[here] = getattr(unroll, name)[there]
        self.env[here] = env
        self.weights_version[here] = weights_version
        self._tails.append(_tails_of(unroll, start, stop, column - start))
        self.num_columns_put += len(env)

    def seal(self) -> None:
        """Join the tails in an order that no sharing-out can change: by (t, column)."""
        for name in TAILS:
            setattr(self, name, np.concatenate([tails[name] for tails in self._tails]))
        for kind in ("final", "episode"):
            order = np.lexsort((getattr(self, f"{kind}_env"), getattr(self, f"{kind}_t")))
            for name in TAILS:
                if name.startswith(kind) and len(getattr(self, name)):
                    setattr(self, name, getattr(self, name)[order])


def _tails_of(unroll: Unroll, start: int, stop: int, shift: int) -> dict[str, np.ndarray]:
    """Copies of the tails' rows of environments start, …, stop - 1, which move by `shift`."""
    tails = {}
    is_whole = start == 0 and stop == unroll.reward.shape[1]
    for kind in ("final", "episode"):
        env = getattr(unroll, f"{kind}_env")
        keep = slice(None) if is_whole else (start <= env) & (env < stop)
        for name in TAILS:
            if name.startswith(kind):
                rows = getattr(unroll, name)
                tails[name] = rows[keep].copy() if len(rows) else rows.copy()
        tails[f"{kind}_env"] += shift
    return tails
