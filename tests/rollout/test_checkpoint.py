"""Checkpoints: whole or refused, and never executed."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.checkpoint import (
    ARRAYS,
    MANIFEST,
    STATE,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    named_parameters,
    policy_parameters,
    save_checkpoint,
)
from rollout.errors import OperatorError, RunFailed
from rollout.learners.network import initial_parameters, make_mlp
from rollout.run_directory import RunDirectory

DIGEST = "0123456789abcdef"
SPEC = make_mlp((4,), 2, (8,), "tanh", "separate")
FILES = (ARRAYS, STATE, MANIFEST)


def save(folder: Path, update: int = 1, keep: int = 3, digest: str = DIGEST) -> Path:
    flat = initial_parameters(SPEC, seed=update)
    state = {"config_digest": digest, "env_steps": 512 * update}
    return save_checkpoint(folder, update, named_parameters(SPEC, flat), state, keep)


def test_checkpoint_loads_back_as_it_was_saved(tmp_path):
    arrays = {
        "parameters/w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "envs": np.frombuffer(b"\x00\xffbytes", np.uint8),
        "step": np.array(7, np.int64),
        "none": np.zeros((0, 4), np.float64),
    }
    state = {"config_digest": DIGEST, "schedule": {"learning_rate": 1e-3}, "order": [1, 2]}
    checkpoint = load_checkpoint(save_checkpoint(tmp_path, 12, arrays, state, keep=1), DIGEST)
    assert checkpoint.update == 12
    assert checkpoint.state == state
    assert checkpoint.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert checkpoint.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint.arrays[name], array)


def test_parameters_come_back_as_the_flat_vector(tmp_path):
    flat = policy_parameters(load_checkpoint(save(tmp_path, update=4), DIGEST), SPEC)
    np.testing.assert_array_equal(flat, initial_parameters(SPEC, seed=4))


def test_only_the_newest_are_kept(tmp_path):
    for update in (1, 20, 3, 100_000_000, 5):
        save(tmp_path, update, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "update-00000020",
        "update-100000000",
    ]
    assert sorted(os.listdir(tmp_path)) == ["update-00000020", "update-100000000"]


def test_checkpoint_of_the_same_update_replaces_the_earlier_one(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / STATE).write_bytes(b"damaged")
    load_checkpoint(save(tmp_path, 2), DIGEST)
    assert len(list_checkpoints(tmp_path)) == 2


def test_leftovers_of_a_killed_writer_are_neither_listed_nor_kept(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / ".partial-update-00000002")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["update-00000001"]
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["update-00000001", "update-00000002"]


def test_writing_that_fails_leaves_the_checkpoints_there_were(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFailed, match="update-00000002: cannot write a checkpoint: No space"):
        save(tmp_path, 2)
    assert os.listdir(tmp_path) == ["update-00000001"]
    load_checkpoint(tmp_path / "update-00000001", DIGEST)


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
        load_checkpoint(checkpoint, DIGEST)


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
        load_checkpoint(checkpoint, DIGEST)


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
        load_checkpoint(checkpoint, DIGEST)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"{", b"3"])
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_hostile_json_is_refused(tmp_path, name, content):
    checkpoint = save(tmp_path)
    if name == STATE:
        rewrite(checkpoint, STATE, content)
    else:
        (checkpoint / MANIFEST).write_bytes(content)
    with pytest.raises(OperatorError, match=f"{name}: not "):
        load_checkpoint(checkpoint, DIGEST)


def test_checkpoint_of_another_experiment_is_refused(tmp_path):
    with pytest.raises(OperatorError, match=r"of another experiment .* begins with 0123456789ab"):
        load_checkpoint(save(tmp_path), "another digest")


def test_checkpoint_of_another_format_is_refused(tmp_path):
    checkpoint = save(tmp_path)
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    (checkpoint / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(OperatorError, match="format=99, this version of rollout reads 1"):
        load_checkpoint(checkpoint, DIGEST)


@pytest.mark.parametrize(
    "other",
    [
        make_mlp((4,), 2, (9,), "tanh", "separate"),
        make_mlp((4,), 3, (8,), "tanh", "separate"),
        make_mlp((4,), 2, (8, 8), "tanh", "separate"),
        make_mlp((4,), 2, (8,), "tanh", "shared"),
    ],
    ids=["wider", "more actions", "deeper", "shared"],
)
def test_parameters_of_another_network_are_refused_by_name(tmp_path, other):
    checkpoint = load_checkpoint(save(tmp_path), DIGEST)
    with pytest.raises(
        OperatorError, match=r"arrays.safetensors: parameters/\S+ is .* has float32"
    ):
        policy_parameters(checkpoint, other)


def test_run_without_a_checkpoint_says_when_there_will_be_one(make_experiment, tmp_path):
    with (
        RunDirectory.create(make_experiment(), tmp_path / "run") as run,
        pytest.raises(OperatorError, match="no checkpoint in it; a run writes one when it ends"),
    ):
        latest_checkpoint(run)


def test_checkpoint_is_found_by_path_name_or_number(make_experiment, tmp_path):
    with RunDirectory.create(make_experiment(), tmp_path / "run") as run:
        first, second = save(run.checkpoints, 1), save(run.checkpoints, 2)
        assert find_checkpoint(run, None) == latest_checkpoint(run) == second
        for name in (first, str(first), "update-00000001", "update-1", "1"):
            assert find_checkpoint(run, name) == first
        with pytest.raises(OperatorError, match="no checkpoint '3'; there is update-00000001, "):
            find_checkpoint(run, "3")
