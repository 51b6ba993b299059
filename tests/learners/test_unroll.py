import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.learners.unroll import COLUMNS, STARTS_AND_ENDS, TAILS, Batch, Unroll, UnrollSchema

SCHEMA = UnrollSchema(
    unroll_length=6,
    observation_shape=(3, 2),
    observation_dtype="uint8",
    action_shape=(),
    action_dtype="int32",
    has_value=True,
    state_bytes=5,
)
EVERYTHING = tuple(field.name for field in fields(Unroll))


def make_unroll(num_envs: int, seed: int = 0, schema: UnrollSchema = SCHEMA) -> Unroll:
    """Random bytes in every column; tails in the order (t, environment), as actors write them."""
    random = np.random.default_rng(seed)
    truncated = random.random((schema.unroll_length, num_envs)) < 0.2
    ended = truncated | (random.random(truncated.shape) < 0.2)
    final_t, final_env = truncated.nonzero()
    episode_t, episode_env = ended.nonzero()
    places = {
        "final_t": final_t,
        "final_env": final_env,
        "episode_t": episode_t,
        "episode_env": episode_env,
    }
    arrays = {}
    for name, dtype, shape in schema.fields(num_envs, len(final_t), len(episode_t)):
        arrays[name] = random.integers(0, 100, shape).astype(dtype)
    arrays |= {name: index.astype(np.int32) for name, index in places.items()}
    return Unroll(**arrays | {"truncated": truncated, "terminated": ended & ~truncated})


def part_of(unroll: Unroll, start: int, stop: int) -> Unroll:
    """What an actor with the environments start, …, stop - 1 would have sent."""
    arrays = {name: getattr(unroll, name)[:, start:stop] for name in COLUMNS}
    arrays |= {name: getattr(unroll, name)[start:stop] for name in STARTS_AND_ENDS}
    for name in TAILS:
        kind = name.partition("_")[0]
        env = getattr(unroll, f"{kind}_env")
        rows = getattr(unroll, name)[(env >= start) & (env < stop)]
        arrays[name] = rows - start if name.endswith("_env") else rows
    return Unroll(**arrays)


def payload_of(unroll: Unroll, schema: UnrollSchema = SCHEMA) -> bytearray:
    counts = (unroll.reward.shape[1], len(unroll.final_t), len(unroll.episode_t))
    payload = bytearray(schema.size_bytes(*counts))
    view = Unroll.view(schema, payload, *counts)
    for field in fields(Unroll):
        getattr(view, field.name)[...] = getattr(unroll, field.name)
    return payload


@pytest.mark.parametrize("has_value", [True, False])
@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_payload_read_back_holds_what_was_written(num_envs: int, has_value: bool) -> None:
    schema = replace(SCHEMA, has_value=has_value)
    unroll = make_unroll(num_envs, seed=num_envs, schema=schema)
    payload = bytes(payload_of(unroll, schema))
    counts = (num_envs, len(unroll.final_t), len(unroll.episode_t))
    view = Unroll.view(schema, payload, *counts)
    for field in fields(Unroll):
        written, read = getattr(unroll, field.name), getattr(view, field.name)
        assert read.dtype == written.dtype
        assert np.array_equal(read, written), f"{field.name} differs"
        assert read.ctypes.data % read.itemsize == 0, f"{field.name} is not aligned"


def test_unroll_without_ends_has_empty_tails() -> None:
    view = Unroll.view(SCHEMA, bytes(SCHEMA.size_bytes(4, 0, 0)), 4, 0, 0)
    assert all(len(getattr(view, name)) == 0 for name in TAILS)
    assert view.final_observation.shape == (0, 3, 2)


@pytest.mark.parametrize("difference", [-8, -1, 1, 8])
def test_payload_of_another_length_is_refused(difference: int) -> None:
    size = SCHEMA.size_bytes(4, 2, 3)
    with pytest.raises(ValueError, match=f"payload of {size + difference} bytes, wanted {size}"):
        Unroll.view(SCHEMA, bytes(size + difference), 4, 2, 3)


def test_tails_written_behind_the_columns_are_found_by_their_counts() -> None:
    unroll = make_unroll(5, seed=9)
    F, E = len(unroll.final_t), len(unroll.episode_t)
    assert F > 0
    assert E > F
    room = bytearray(SCHEMA.max_size_bytes(5))
    longest = Unroll.view(SCHEMA, room, 5, 30, 30)
    for name in (*COLUMNS, "env_state"):
        getattr(longest, name)[...] = getattr(unroll, name)
    for name in TAILS:
        rows = getattr(unroll, name)
        getattr(longest, name)[: len(rows)] = rows
    size = longest.write_tails(room, SCHEMA, F, E)
    assert room[:size] == payload_of(unroll)


def test_schemas_differ_in_their_digest_whatever_differs() -> None:
    others = [
        replace(SCHEMA, unroll_length=7),
        replace(SCHEMA, observation_shape=(2, 3)),
        replace(SCHEMA, observation_dtype="int8"),
        replace(SCHEMA, action_dtype="int64"),
        replace(SCHEMA, has_value=False),
        replace(SCHEMA, state_bytes=6),
    ]
    digests = {schema.digest for schema in (SCHEMA, *others)}
    assert len(digests) == 1 + len(others)
    assert replace(SCHEMA).digest == SCHEMA.digest


@given(data=st.data(), num_envs=st.integers(1, 9), seed=st.integers(0, 100))
def test_batch_is_the_same_however_environments_are_shared_out(
    data: st.DataObject, num_envs: int, seed: int
) -> None:
    whole = make_unroll(num_envs, seed)
    cuts = data.draw(st.sets(st.integers(1, num_envs - 1)) if num_envs > 1 else st.just(set()))
    borders = [0, *sorted(cuts), num_envs]
    parts = data.draw(st.permutations(list(itertools.pairwise(borders))))
    batch = Batch(SCHEMA, num_envs)
    for start, stop in parts:
        assert not batch.is_full
        batch.put(part_of(whole, start, stop), start, np.arange(start, stop), weights_version=3)
    assert batch.is_full
    batch.seal()
    assert_holds(batch, whole)
    assert batch.env.tolist() == list(range(num_envs))
    assert batch.weights_version.tolist() == [3] * num_envs


@given(data=st.data(), num_envs=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 50))
def test_unrolls_laid_end_to_end_fill_batches_of_any_width(
    data: st.DataObject, num_envs: int, width: int, seed: int
) -> None:
    """Each unroll goes on in the next batch where it did not fit: no column and no tail is lost."""
    order = np.random.default_rng(seed).permutation(num_envs)
    whole = make_unroll(num_envs, seed)
    num_unrolls = data.draw(st.integers(1, 3))
    stream = [
        (whole, order, first, version)
        for version in range(num_unrolls)
        for first in range(num_envs)
    ]
    for begin in range(0, len(stream) - width + 1, width):
        batch, columns = Batch(SCHEMA, width), stream[begin : begin + width]
        column = 0
        for version, piece in itertools.groupby(columns, key=lambda entry: entry[3]):
            places = [first for *_, first, _ in piece]
            start, stop = places[0], places[-1] + 1
            batch.put(whole, column, order[start:stop], version, start)
            column += stop - start
        assert batch.is_full
        batch.seal()
        wanted = one_by_one(columns)
        assert_holds(batch, wanted)
        assert batch.env.tolist() == [order[first] for *_, first, _ in columns]
        assert batch.weights_version.tolist() == [version for *_, version in columns]


def one_by_one(columns: list[tuple[Unroll, np.ndarray, int, int]]) -> Unroll:
    """The slow twin of a batch: a column at a time, its tails found row by row."""
    rows: dict[str, list] = {name: [] for name in EVERYTHING}
    for unroll, _, env, _ in columns:
        for name in COLUMNS:
            rows[name].append(getattr(unroll, name)[:, env])
        rows["env_state"].append(unroll.env_state[env])
    for kind in ("final", "episode"):
        found = []
        for column, (unroll, _, env, _) in enumerate(columns):
            for row in range(len(getattr(unroll, f"{kind}_t"))):
                if getattr(unroll, f"{kind}_env")[row] == env:
                    found.append((getattr(unroll, f"{kind}_t")[row], column, unroll, row))
        for _, column, unroll, row in sorted(found, key=lambda entry: entry[:2]):
            for name in TAILS:
                if name == f"{kind}_env":
                    rows[name].append(column)
                elif name.startswith(kind):
                    rows[name].append(getattr(unroll, name)[row])
    arrays = {}
    for name, dtype, shape in SCHEMA.fields(
        len(columns), len(rows["final_t"]), len(rows["episode_t"])
    ):
        joined = np.stack(rows[name], axis=1 if name in COLUMNS else 0) if rows[name] else []
        arrays[name] = np.asarray(joined, dtype).reshape(shape)
    return Unroll(**arrays)


def assert_holds(batch: Batch, wanted: Unroll) -> None:
    for name in EVERYTHING:
        found, expected = getattr(batch, name), getattr(wanted, name)
        assert found.dtype == expected.dtype, f"{name} is {found.dtype}"
        assert np.array_equal(found, expected), f"{name} differs"


def test_part_of_an_unroll_brings_only_its_own_tails() -> None:
    unroll = make_unroll(6, seed=5)
    assert {2, 3} < set(unroll.episode_env.tolist())
    batch = Batch(SCHEMA, 4)
    batch.put(unroll, 2, np.array([12, 13]), weights_version=7, start=2)
    batch.put(unroll, 0, np.array([10, 11]), weights_version=6, start=0)
    batch.seal()
    assert_holds(batch, part_of(unroll, 0, 4))
    assert batch.env.tolist() == [10, 11, 12, 13]
    assert batch.weights_version.tolist() == [6, 6, 7, 7]


def test_tails_of_a_batch_are_sorted_by_step_then_environment() -> None:
    batch = Batch(SCHEMA, 8)
    for start in (4, 0, 6, 2):
        batch.put(make_unroll(2, seed=start), start, np.arange(start, start + 2), 0)
    batch.seal()
    for kind in ("final", "episode"):
        t, env = getattr(batch, f"{kind}_t").tolist(), getattr(batch, f"{kind}_env").tolist()
        places = list(zip(t, env, strict=True))
        assert len(places) > 3
        assert places == sorted(places)
    assert batch.truncated[batch.final_t, batch.final_env].all()


def test_cleared_batch_takes_the_next_unrolls_and_keeps_nothing() -> None:
    batch = Batch(SCHEMA, 4)
    for seed in (1, 2):
        unroll = make_unroll(4, seed)
        batch.clear()
        assert not batch.is_full
        batch.put(unroll, 0, np.arange(4), weights_version=seed)
        batch.seal()
        assert_holds(batch, unroll)


def test_batch_does_not_hold_on_to_the_payload() -> None:
    payload = payload_of(make_unroll(4, seed=3))
    expected = make_unroll(4, seed=3)
    batch = Batch(SCHEMA, 4)
    counts = (4, len(expected.final_t), len(expected.episode_t))
    batch.put(Unroll.view(SCHEMA, payload, *counts), 0, np.arange(4), weights_version=0)
    payload[:] = bytes(len(payload))
    batch.seal()
    assert_holds(batch, expected)


def test_algorithm_without_values_gets_a_batch_without_them() -> None:
    schema = replace(SCHEMA, has_value=False)
    batch = Batch(schema, 3)
    batch.put(make_unroll(3, seed=4, schema=schema), 0, np.arange(3), weights_version=0)
    batch.seal()
    assert batch.value.shape == (0, 3)
    assert batch.final_value.shape == (0,)
    assert len(batch.final_t) > 0
