"""The order log: what was written is read back, and everything else is refused by its line."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import OperatorError
from rollout.order_log import Order, OrderLog, Part, cut_to, parts_of, read_order


def write(path, *batches: tuple[list[int], list[int]], first: int = 0) -> None:
    log = OrderLog(path)
    for update, (env, version) in enumerate(batches, first):
        log.write(update, np.array(env, np.int64), np.array(version, np.int64))
    log.close()


def slow_parts(env: list[int], version: list[int]) -> list[list[int]]:
    parts: list[list[int]] = []
    for e, v in zip(env, version, strict=True):
        if parts and parts[-1][0] + parts[-1][1] == e and parts[-1][2] == v:
            parts[-1][1] += 1
        else:
            parts.append([e, 1, v])
    return parts


columns = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30)


@given(columns)
def test_columns_become_the_longest_parts(columns):
    env, version = [e for e, _ in columns], [v for _, v in columns]
    found = parts_of(np.array(env, np.int64), np.array(version, np.int64))
    assert found == slow_parts(env, version)


@given(columns)
def test_parts_tell_every_column(columns):
    env = np.array([e for e, _ in columns], np.int64)
    version = np.array([v for _, v in columns], np.int64)
    parts = [Part(*part) for part in parts_of(env, version)]
    told = [(p.first_env + i, p.weights_version) for p in parts for i in range(p.num_envs)]
    assert told == columns


def test_orders_are_read_back_as_written(tmp_path):
    path = tmp_path / "order.jsonl"
    write(path, ([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 3, 0, 1], [1, 1, 0, 1]))
    assert path.read_text().splitlines()[1] == '{"update":1,"parts":[[2,2,1],[0,1,0],[1,1,1]]}'
    assert list(read_order(path)) == [
        Order(0, (Part(0, 4, 0),)),
        Order(1, (Part(2, 2, 1), Part(0, 1, 0), Part(1, 1, 1))),
    ]


def test_what_was_flushed_is_there_while_the_log_is_open(tmp_path):
    log = OrderLog(tmp_path / "order.jsonl")
    log.write(0, np.arange(4), np.zeros(4, np.int64))
    log.flush()
    assert len(list(read_order(tmp_path / "order.jsonl"))) == 1
    log.close()


def test_log_that_is_cut_goes_on_from_there(tmp_path):
    path = tmp_path / "order.jsonl"
    write(path, *[([0, 1], [0, 0])] * 5)
    with open(path, "ab") as file:
        file.write(b'{"update":5,"pa')  # torn
    cut_to(path, 3)
    assert [order.update for order in read_order(path)] == [0, 1, 2]
    write(path, ([1, 0], [3, 2]), first=3)
    assert [order.update for order in read_order(path)] == [0, 1, 2, 3]


def test_cut_to_the_start_leaves_nothing(tmp_path):
    path = tmp_path / "order.jsonl"
    write(path, ([0, 1], [0, 0]))
    cut_to(path, 0)
    assert path.read_bytes() == b""


def test_log_that_does_not_exist_is_cut(tmp_path):
    cut_to(tmp_path / "order.jsonl", 3)


GOOD = '{"update":0,"parts":[[0,4,0]]}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD + '{"update":1,"parts":[[0,4', ":2: torn"),
        (GOOD + "nonsense\n", ":2: JSON is malformed"),
        (GOOD + "\n", ":2: "),
        (GOOD + "[" * 100_000 + "\n", ":2: "),
        ('{"update":0}\n', ":1: Object missing required field `parts`"),
        ('{"update":0,"parts":[[0,4]]}\n', ":1: Expected `array` of length 3"),
        ('{"update":0,"parts":[[0,"4",0]]}\n', ":1: Expected `int`, got `str`"),
        ('{"update":0,"parts":[[0,0,0]]}\n', ":1: Expected `int` >= 1"),
        ('{"update":0,"parts":[[-1,1,0]]}\n', ":1: Expected `int` >= 0"),
        ('{"update":0,"parts":[[0,1,0]],"x":1}\n', ":1: Object contains unknown field `x`"),
        (GOOD + '{"update":2,"parts":[[0,4,0]]}\n', ":2: update 2, wanted 1"),
        (GOOD + '{"update":1,"parts":[[0,4,2]]}\n', ":2: weights version 2 in update 1"),
    ],
)
def test_malformed_line_is_named(content, said, tmp_path):
    path = tmp_path / "order.jsonl"
    path.write_text(content)
    with pytest.raises(OperatorError) as error:
        list(read_order(path))
    assert f"{path}{said}" in str(error.value)


def test_lines_before_a_malformed_one_are_read(tmp_path):
    path = tmp_path / "order.jsonl"
    path.write_text(GOOD + "nonsense\n")
    assert next(read_order(path)).update == 0


def test_missing_log_is_named(tmp_path):
    with pytest.raises(OperatorError, match=r"nowhere.jsonl: cannot be read: No such file"):
        list(read_order(tmp_path / "nowhere.jsonl"))


@given(st.binary(max_size=200), st.integers(0, 60), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory, garbage, place, is_appended):
    path = tmp_path_factory.mktemp("log") / "order.jsonl"
    content = (GOOD * 2).encode()
    place = min(place, len(content))
    path.write_bytes(content[:place] + garbage + (b"" if is_appended else content[place:]))
    with contextlib.suppress(OperatorError):
        for order in read_order(path):
            assert all(part.num_envs > 0 for part in order.parts)
