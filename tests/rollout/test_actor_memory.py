"""Actors whose memory grows: they begin anew between two unrolls, at once, and lose nothing they
could keep."""

import mmap
import re

import pytest

from rollout import api
from rollout.actor_memory import MemoryWatch
from rollout.errors import RunFailed
from rollout.sizes import parse_size, show_size
from tests.envs import gymnasium_samples
from tests.rollout import leaking_envs

MB = 1 << 20
LEAKS = f"{gymnasium_samples.__name__}:Leaks"


def watch(monkeypatch, *grown: int) -> MemoryWatch:
    """With a limit of 100 bytes; grown: after each unroll."""
    sizes = iter((1000, *(1000 + each for each in grown)))
    monkeypatch.setattr(MemoryWatch, "_anonymous_bytes", lambda self: next(sizes))
    return MemoryWatch(100)


def said(memory: MemoryWatch, *may_wait: bool) -> list[tuple[int, bool] | None]:
    found = [memory.after_unroll(each) for each in may_wait]
    return [one and (one.size_bytes, one.is_at_once) for one in found]


def test_actor_ends_when_it_has_grown_by_more_than_the_limit(monkeypatch):
    assert said(watch(monkeypatch, 99, 100, 101), False, False, False) == [None, None, (101, False)]


def test_actor_waits_for_its_episodes_until_half_as_much_again(monkeypatch):
    grown = 90, 120, 150, 151
    assert said(watch(monkeypatch, *grown), *[True] * 4) == [None, None, None, (151, False)]
    assert said(watch(monkeypatch, *grown), True, True, False) == [None, None, (150, False)]


def test_actor_that_has_grown_too_far_in_its_first_unroll_says_so_whenever_it_ends(monkeypatch):
    assert said(watch(monkeypatch, 101), False) == [(101, True)]
    assert said(watch(monkeypatch, 120, 130), True, False) == [None, (130, True)]


def test_actor_without_a_limit_never_ends():
    memory = MemoryWatch(None)
    kept = b"x" * 20 * MB
    assert memory.after_unroll(False) is None and len(kept) == 20 * MB


def test_what_grows_is_measured():
    memory = MemoryWatch(5 * MB)
    before = memory.grown_bytes()
    with mmap.mmap(-1, 20 * MB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
        assert 19 * MB < memory.grown_bytes() - before < 22 * MB
        assert memory.after_unroll(False) is not None


@pytest.mark.parametrize(
    ("text", "size_bytes", "shown"),
    [("1.5 GiB", 3 << 29, "1.5 GiB"), ("300 MB", 300_000_000, "286.1 MiB"), ("7 B", 7, "7 bytes")],
)
def test_sizes_are_read_and_shown(text, size_bytes, shown):
    assert parse_size(text) == size_bytes and show_size(size_bytes) == shown


# With real processes


@pytest.fixture
def train(places, tmp_path, view):
    """train(env_id, "key=value", …): a short run in this process; nothing may be left of it."""
    runs = iter(range(10))

    def train(env_id: str, *overrides: str, **params: object) -> api.Result:
        tables = {
            "env": {"id": env_id, "num_envs": 4, "params": params},
            "fleet": {"num_actors": 2, "unroll_length": 16},
            "network": {"hidden_sizes": [8]},
            "stop": {"env_steps": 24 * 16 * 4},
        }
        run_dir = tmp_path / f"run{next(runs)}"
        result = api.train(tables, overrides, run_dir=run_dir, view=view)
        places.assert_gone()
        assert result.summary.ledger.balance == 0
        return result

    return train


def test_memory_of_an_environment_that_leaks_stays_bounded(train, view):
    result = train(LEAKS, "fleet.max_actor_memory=80 MiB", length=400)
    summary = result.summary
    assert summary.updates == 24
    grown = [float(one) for one in re.findall(r"had grown by ([\d.]+) MiB", log_of(result))]
    assert len(grown) == summary.memory_restarts == summary.actor_restarts >= 4
    assert min(grown) > 120 and max(grown) < 120 + 32 + 10, "waited for the end of an episode"
    assert summary.episodes_lost == {"memory": 2 * len(grown)}
    assert sum("ended itself" in notice for notice in view.notices) == 1, "told once"


def test_nothing_is_lost_where_episodes_end_with_unrolls(train):
    undisturbed = train(LEAKS, length=16, megabytes=0.5)
    result = train(LEAKS, "fleet.max_actor_memory=40 MiB", length=16, megabytes=0.5)
    assert result.summary.memory_restarts >= 8 and not result.summary.episodes_lost
    assert result.summary.params_digest == undisturbed.summary.params_digest
    assert set(result.summary.ledger.unrolls.dropped) <= {"run_ended"}


@pytest.mark.slow
def test_actors_of_a_compiled_environment_lose_nothing(train):
    env_id = f"{leaking_envs.__name__}:Leaking"
    undisturbed = train(env_id)
    result = train(env_id, "fleet.max_actor_memory=7 MiB")
    assert result.summary.memory_restarts >= 8
    assert result.summary.params_digest == undisturbed.summary.params_digest
    assert set(result.summary.ledger.unrolls.dropped) <= {"run_ended"}


def test_leak_that_no_new_life_helps_against_ends_the_run(train):
    with pytest.raises(RunFailed) as caught:
        train(LEAKS, "fleet.max_actor_memory=10 MB", length=400)
    assert re.search(
        r"actor \d has more than fleet.max_actor_memory = 10000000 bytes after the first unroll of "
        r"each of 3 lives, the last one \d\d\.\d MiB; raise the limit, or mend what leaks",
        str(caught.value),
    )


def log_of(result: api.Result) -> str:
    return (result.run_dir / "run.log").read_text()
