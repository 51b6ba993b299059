"""Checkpoints: whole or refused, and never executed."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.checkpoint import (
    ARRAYS,
    MANIFEST,
    STATE,
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    named_parameters,
    policy_parameters,
    save_checkpoint,
)
from rollout.errors import OperatorError, RunFailed
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.run_directory import RunDirectory

EXPERIMENT = {"env": {"id": "CartPole-v1"}, "stop": {"env_steps": 1000}}
SPEC = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "separate")
FILES = (ARRAYS, STATE, MANIFEST)


def save(folder: Path, update: int = 1, keep: int = 3, mean: float | None = None) -> Path:
    flat = initial_parameters(SPEC, seed=update)
    state = {"experiment": EXPERIMENT, "env_steps": 512 * update, "episode_return_mean": mean}
    return save_checkpoint(folder, update, named_parameters(SPEC, flat), state, keep)


def test_checkpoint_loads_back_as_it_was_saved(tmp_path):
    arrays = {
        "parameters/w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "envs": np.frombuffer(b"\x00\xffbytes", np.uint8),
        "step": np.array(7, np.int64),
        "none": np.zeros((0, 4), np.float64),
    }
    state = {"experiment": EXPERIMENT, "schedule": {"learning_rate": 1e-3}, "order": [1, 2]}
    checkpoint = load_checkpoint(save_checkpoint(tmp_path, 12, arrays, state, keep=1))
    assert checkpoint.update == 12
    assert checkpoint.state == state
    assert checkpoint.experiment.env.id == "CartPole-v1"
    assert checkpoint.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert checkpoint.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint.arrays[name], array)


def test_parameters_come_back_as_the_flat_vector(tmp_path):
    flat = policy_parameters(load_checkpoint(save(tmp_path, update=4)), SPEC)
    np.testing.assert_array_equal(flat, initial_parameters(SPEC, seed=4))


def names_in(folder: Path) -> list[int]:
    """The updates there is a checkpoint of; fails if there is anything besides."""
    checkpoints = list_checkpoints(folder)
    assert sorted(os.listdir(folder)) == sorted(path.name for path in checkpoints)
    return [load_checkpoint(path).update for path in checkpoints]


def test_only_the_newest_are_kept(tmp_path):
    for update in (1, 3, 5, 20, 100_000_000):
        save(tmp_path, update, keep=2)
    assert names_in(tmp_path) == [20, 100_000_000]
    assert sorted(os.listdir(tmp_path)) == ["update-00000020", "update-100000000"]


def test_the_best_is_kept_besides_the_newest(tmp_path):
    for update, mean in enumerate([1.0, 9.0, 3.0, math.nan, None], start=1):
        save(tmp_path, update, keep=2, mean=mean)
    assert names_in(tmp_path) == [2, 4, 5]
    save(tmp_path, 6, keep=2, mean=9.0)  # of two that are as good, the newer
    assert names_in(tmp_path) == [5, 6]


@given(
    means=st.lists(st.none() | st.sampled_from([math.nan, -1.0, 0.0, 7.0]), min_size=1, max_size=8),
    keep=st.integers(1, 4),
)
def test_what_is_kept_are_the_newest_and_the_best(tmp_path_factory, means, keep):
    folder = tmp_path_factory.mktemp("checkpoints")
    for update, mean in enumerate(means):
        save_checkpoint(
            folder, update, {}, {"experiment": {}, "episode_return_mean": mean}, keep=keep
        )
    known = [(m, u) for u, m in enumerate(means) if m is not None and not math.isnan(m)]
    best = [max(known)[1]] if known else []
    assert names_in(folder) == sorted({*range(len(means))[-keep:], *best})


def test_damaged_checkpoint_is_not_the_best(tmp_path):
    (save(tmp_path, 1, keep=1, mean=9.0) / STATE).write_text('{"episode_return_mean": 10.0}')
    save(tmp_path, 2, keep=2, mean=1.0)
    save(tmp_path, 3, keep=1, mean=0.0)
    assert names_in(tmp_path) == [2, 3]


def test_checkpoints_of_later_updates_go_when_a_run_was_resumed_from_before_them(tmp_path):
    for update in (1, 2, 3):
        save(tmp_path, update, mean=float(update))
    save(tmp_path, 2, keep=1, mean=0.0)
    assert names_in(tmp_path) == [1, 2], "the best that is left, and the newest"


def test_checkpoint_of_the_same_update_replaces_the_earlier_one(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / STATE).write_bytes(b"damaged")
    save(tmp_path, 2)
    assert names_in(tmp_path) == [1, 2]


class Killed(BaseException):
    """In place of a SIGKILL: nothing of ours catches it."""


def test_killed_at_any_step_there_is_a_good_checkpoint_and_the_next_save_tidies_up(
    tmp_path, monkeypatch
):
    """Replaces a checkpoint that is the only one, and dies before one system call after another."""
    real = {name: getattr(os, name) for name in ("mkdir", "rename", "unlink", "rmdir", "fsync")}
    calls_left = 0

    def dying(name):
        def call(*arguments, **keywords):
            nonlocal calls_left
            calls_left -= 1
            if calls_left < 0:
                raise Killed
            return real[name](*arguments, **keywords)

        return call

    for step in range(100):
        folder = tmp_path / str(step)
        save(folder, 6, keep=1, mean=0.0)
        save(folder, 7, keep=1, mean=1.0)
        with monkeypatch.context() as patched:
            for name in real:
                patched.setattr(os, name, dying(name))
            calls_left = step
            try:
                save(folder, 7, keep=1, mean=2.0)
            except Killed:
                is_over = False
            else:
                is_over = True
        newest = load_checkpoint(list_checkpoints(folder)[-1])
        assert newest.update == 7
        assert newest.state["episode_return_mean"] in (1.0, 2.0)
        save(folder, 7, keep=1, mean=3.0)
        assert names_in(folder) == [7]
        save(folder, 8, keep=1, mean=4.0)
        assert names_in(folder) == [8]
        if is_over:
            assert step > 10
            return
    raise AssertionError("saving has no end")


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from rollout.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
import numpy as np

folder = Path(sys.argv[1])
seed = int(sys.argv[2])
arrays = {"parameters/w": np.arange(20_000, dtype=np.float32)}

def save(update, turn=0):
    save_checkpoint(folder, update, arrays, {"experiment": {}, "turn": turn}, keep=1)

last = 0
save(last)
for life in range(30):
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        update = last
        while True:  # each twice: the second one replaces the first
            update += 1
            for turn in range(2):
                save(update, turn)
                os.write(writable, b".")
    os.read(readable, 1)
    time.sleep(random.Random(seed * 100 + life).random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writable)
    num_saved = 1
    while dots := os.read(readable, 4096):
        num_saved += len(dots)
    os.close(readable)
    newest = load_checkpoint(list_checkpoints(folder)[-1])
    assert newest.update >= last + (num_saved + 1) // 2, "what was saved is there"
    last = newest.update + 1
    save(last)
    assert os.listdir(folder) == [f"update-{last:08d}"], os.listdir(folder)
"""


def test_sigkill_at_any_moment_leaves_a_good_newest_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLER, str(tmp_path / "checkpoints"), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_leftovers_of_a_killed_writer_are_neither_listed_nor_kept(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / ".partial-update-00000002")
    (tmp_path / ".old-update-00000001").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["update-00000001"]
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["update-00000001", "update-00000002"]


def test_what_is_no_checkpoint_is_left_alone_and_in_nobodys_way(tmp_path):
    save(tmp_path, 1)
    strangers = [tmp_path / name for name in ("update-99999999", ".old-update-1", "notes")]
    for stranger in strangers:
        stranger.write_text("mine")
    for update in (2, 3):
        save(tmp_path, update, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["update-00000003"]
    assert all(stranger.read_text() == "mine" for stranger in strangers)


def test_writing_that_fails_leaves_the_checkpoints_there_were(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFailed, match="update-00000002: cannot write a checkpoint: No space"):
        save(tmp_path, 2)
    assert names_in(tmp_path) == [1]


FULL_DISK = """
import os, sys
from pathlib import Path
import numpy as np
from rollout.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from rollout.errors import RunFailed

folder = Path(sys.argv[1])

def save(update):
    arrays = {"parameters/w": np.full(20_000, update, np.float32)}
    save_checkpoint(folder, update, arrays, {"experiment": {}}, keep=3)

save(1)
save(2)
(folder.parent / "filler").write_bytes(bytes(80_000))
before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
for attempt in range(3):
    try:
        save(3)
    except RunFailed as error:
        assert "update-00000003: cannot write a checkpoint: No space" in str(error), error
    else:
        raise AssertionError("the disk is not full")
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert len(os.listdir(folder)) == 2
os.unlink(folder.parent / "filler")
save(3)
assert [load_checkpoint(path).update for path in list_checkpoints(folder)] == [1, 2, 3]
"""


def test_full_disk_leaves_the_checkpoints_there_were_and_the_next_save_works(tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    mount = f"mount -t tmpfs -o size=320k tmpfs {tmp_path}"
    script = [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints")]
    command = ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "bash", *script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_truncated_or_altered_file_is_refused_by_name(tmp_path_factory, name, data):
    checkpoint = save(tmp_path_factory.mktemp("checkpoints"))
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans(), "truncate"):
        del content[data.draw(st.integers(0, len(content) - 2), "length") :]
    else:
        place = data.draw(st.integers(0, len(content) - 2), "place")
        content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
    if name == MANIFEST and _same_json(file.read_bytes(), bytes(content)):
        return  # a changed blank says the same
    file.write_bytes(content)
    with pytest.raises(OperatorError, match=r"/update-00000001/.*;"):
        load_checkpoint(checkpoint)


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether both say the same, but for the update's number, which nothing depends on."""
    try:
        return {**json.loads(one), "update": 0} == {**json.loads(other), "update": 0}
    except (ValueError, TypeError):
        return False


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named_with_an_older_checkpoint_to_use(tmp_path, name):
    save(tmp_path, 1)
    checkpoint = save(tmp_path, 2)
    (checkpoint / name).unlink()
    with pytest.raises(OperatorError, match=f"{name}: is missing; use --checkpoint update-0*1$"):
        load_checkpoint(checkpoint)


def rewrite(checkpoint: Path, name: str, content: bytes) -> None:
    """Alter a file together with its digest, as somebody who means it would."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b"\x02\x00\x00\x00\x00\x00\x00\x00{}trailing",
        (64).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}'.ljust(64),
        (64).to_bytes(8, "little")
        + b'{"a":{"dtype":"X99","shape":[1],"data_offsets":[0,8]}}'.ljust(64),
        b"\x80\x04\x95cos\nsystem\n(S'touch hacked'\ntR.",
    ],
)
def test_hostile_arrays_are_refused(tmp_path, content):
    checkpoint = save(tmp_path)
    rewrite(checkpoint, ARRAYS, content)
    with pytest.raises(OperatorError, match=r"arrays\.safetensors: not a safetensors file"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"{", b"3"])
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_hostile_json_is_refused(tmp_path, name, content):
    checkpoint = save(tmp_path)
    if name == STATE:
        rewrite(checkpoint, STATE, content)
    else:
        (checkpoint / MANIFEST).write_bytes(content)
    with pytest.raises(OperatorError, match=f"{name}: not "):
        load_checkpoint(checkpoint)


def test_checkpoint_that_names_no_experiment_is_refused(tmp_path):
    checkpoint = save(tmp_path)
    rewrite(checkpoint, STATE, b'{"env_steps": 3}')
    with pytest.raises(OperatorError, match="does not say which experiment it belongs to"):
        load_checkpoint(checkpoint)


def test_checkpoint_of_an_experiment_that_is_none_here_says_what_is_wrong(tmp_path):
    tables = EXPERIMENT | {"seed": -1, "sped": 1}
    checkpoint = save_checkpoint(tmp_path, 1, {}, {"experiment": tables}, keep=1)
    with pytest.raises(
        OperatorError, match=r"state\.json: its experiment .*seed=-1 wanted .*; .*unknown key sped"
    ):
        _ = load_checkpoint(checkpoint).experiment


def test_checkpoint_of_another_format_is_refused(tmp_path):
    checkpoint = save(tmp_path)
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(OperatorError, match="format=99, this version of rollout reads 2"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "other",
    [
        make_mlp((4,), CategoricalHead((2,)), (9,), "tanh", "separate"),
        make_mlp((4,), CategoricalHead((3,)), (8,), "tanh", "separate"),
        make_mlp((4,), CategoricalHead((2,)), (8, 8), "tanh", "separate"),
        make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared"),
    ],
    ids=["wider", "more actions", "deeper", "shared"],
)
def test_parameters_of_another_network_are_refused_by_name(tmp_path, other):
    checkpoint = load_checkpoint(save(tmp_path))
    with pytest.raises(
        OperatorError, match=r"arrays.safetensors: parameters/\S+ is .* network has float32"
    ):
        policy_parameters(checkpoint, other)


@pytest.fixture
def run(make_experiment, tmp_path):
    with RunDirectory.create(make_experiment(), tmp_path / "run") as run:
        yield run


def test_run_without_a_checkpoint_says_when_there_will_be_one(run):
    with pytest.raises(OperatorError, match="no checkpoint in it; a run writes one when it ends"):
        load_newest(run)


def test_checkpoint_is_found_by_path_name_or_number(run):
    first, second = save(run.checkpoints, 1), save(run.checkpoints, 2)
    assert load_newest(run).path == second
    for name in (first, str(first), "update-00000001", "update-1", "1"):
        assert find_checkpoint(run, name) == first
    with pytest.raises(OperatorError, match="no checkpoint '3'; there is update-00000001, "):
        find_checkpoint(run, "3")


def test_checkpoint_is_found_as_the_best(run):
    save(run.checkpoints, 1)
    with pytest.raises(OperatorError, match="no checkpoint knows a mean return"):
        find_checkpoint(run, "best")
    best = save(run.checkpoints, 2, mean=5.0)
    save(run.checkpoints, 3, mean=4.0)
    assert find_checkpoint(run, "best") == best


def test_checkpoint_that_a_killed_writer_had_not_yet_put_in_its_place_is_found(run):
    whole = save(run.checkpoints, 2)
    whole.rename(whole.with_name("update-00000002.new"))
    assert load_newest(run).update == 2
    assert find_checkpoint(run, "2").name == "update-00000002.new"


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def newest_with_damage(run: RunDirectory, *files: Path) -> Checkpoint:
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    return load_newest(run)


def test_newest_good_checkpoint_is_used_with_a_warning_for_each_damaged_one(run, caplog):
    first, second, third = (save(run.checkpoints, update) for update in (1, 2, 3))
    assert newest_with_damage(run).path == third
    assert warnings_of(caplog) == []
    assert newest_with_damage(run, third / ARRAYS, second / STATE).path == first
    warnings = warnings_of(caplog)
    assert len(warnings) == 2
    for warning, file in zip(warnings, (third / ARRAYS, second / STATE), strict=True):
        assert warning.startswith(f"{file}: ")
        assert warning.endswith("truncated or altered; using update-00000001 instead")


def test_run_whose_checkpoints_are_all_damaged_is_an_error(run):
    first, second = save(run.checkpoints, 1), save(run.checkpoints, 2)
    with pytest.raises(
        OperatorError,
        match=r"00002/arrays.* altered, and the older ones \(1\) are no better; copy a good",
    ):
        newest_with_damage(run, second / ARRAYS, first / STATE)
