"""Run directories: one writer each, found again by readers."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rollout.errors import ConfigError, OperatorError
from rollout.experiment import load_experiment
from rollout.run_directory import RunDirectory, write_atomically


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_run_without_a_place_is_named_after_its_experiment_and_the_time(make_experiment):
    with RunDirectory.create(make_experiment()) as run:
        assert run.path.parent == Path("runs")
        assert run.path.name.startswith("small-2")


def test_runs_started_at_once_get_directories_of_their_own(make_experiment):
    experiment = make_experiment()
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDirectory.create(experiment), range(16)))
    assert len({run.path for run in runs}) == 16
    for run in runs:
        run.close()


def test_config_in_the_run_is_the_whole_experiment_and_runnable(make_experiment):
    experiment = make_experiment("CartPole-v1", "seed=7", "env.params.force=12.5")
    with RunDirectory.create(experiment, "here") as run:
        assert load_experiment(run.config) == experiment
    assert RunDirectory.open("here").experiment == experiment


def test_empty_directory_is_welcome_and_one_with_a_file_is_not(make_experiment):
    Path("empty").mkdir()
    RunDirectory.create(make_experiment(), "empty").close()
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("")
    with pytest.raises(OperatorError, match="full: is not empty; --run-dir wants a new"):
        RunDirectory.create(make_experiment(), "full")
    assert os.listdir("full") == ["thesis.tex"]


def test_directory_of_an_earlier_run_is_refused_and_left_alone(make_experiment):
    RunDirectory.create(make_experiment(), "here").close()
    before = Path("here/config.toml").read_bytes()
    with pytest.raises(OperatorError, match="here: holds a run already"):
        RunDirectory.create(make_experiment("CartPole-v1", "seed=9"), "here")
    assert Path("here/config.toml").read_bytes() == before


def test_directory_in_use_names_the_process_that_uses_it(make_experiment):
    with (
        RunDirectory.create(make_experiment(), "here"),
        pytest.raises(OperatorError, match=f"here: in use by process {os.getpid()};"),
    ):
        RunDirectory.create(make_experiment(), "here")


def test_lock_dies_with_its_process_however_it_ends(make_experiment):
    Path("x.toml").write_text('[env]\nid = "CartPole-v1"\n[stop]\nwall_s = 5\n')
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from rollout.experiment import load_experiment\n"
            "from rollout.run_directory import RunDirectory\n"
            "run = RunDirectory.create(load_experiment('x.toml'), 'here')\n"
            "print('locked', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(OperatorError, match=f"in use by process {holder.pid};"):
        RunDirectory.create(make_experiment(), "here")
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with pytest.raises(OperatorError, match="holds a run already"):
        RunDirectory.create(make_experiment(), "here")


def test_lock_is_not_inherited_by_a_started_program(make_experiment):
    run = RunDirectory.create(make_experiment(), "here")
    # close_fds=False: whatever is inheritable would be inherited
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    run.close()
    Path("here/config.toml").unlink()
    RunDirectory.create(make_experiment(), "here").close()
    child.communicate()


def test_foreign_file_named_lock_is_left_alone(make_experiment):
    Path("here").mkdir()
    Path("here/lock").write_text("front door: 4711")
    Path("here/other").write_text("")
    with pytest.raises(OperatorError, match="is not empty"):
        RunDirectory.create(make_experiment(), "here")
    assert Path("here/lock").read_text() == "front door: 4711"


@pytest.mark.parametrize("place", ["/proc/run", "a-file", "a-file/run", "x" * 300, "a\0b"])
def test_place_that_cannot_be_written_is_a_clear_error(make_experiment, place):
    Path("a-file").write_text("")
    with pytest.raises(OperatorError, match="--run-dir"):
        RunDirectory.create(make_experiment(), place)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_read_only_directory_is_a_clear_error(make_experiment):
    Path("here").mkdir(mode=0o500)
    with pytest.raises(OperatorError, match="here: cannot write a run there: Permission denied"):
        RunDirectory.create(make_experiment(), "here")


def test_opening_what_is_no_run_names_the_newest_runs(make_experiment):
    with pytest.raises(OperatorError, match="nothing: no such directory; `rollout train CONFIG`"):
        RunDirectory.open("nothing")
    RunDirectory.create(make_experiment()).close()
    with pytest.raises(OperatorError, match="nothing: no such directory; newest runs: runs/small"):
        RunDirectory.open("nothing")
    with pytest.raises(OperatorError, match=r"not a run .*; newest runs: runs/small"):
        RunDirectory.open("runs")


def make_resumable(make_experiment, place: str = "here") -> Path:
    RunDirectory.create(make_experiment(), place).close()
    Path(place, "checkpoints/update-00000003").mkdir(parents=True)
    return Path(place)


def content_of(place: Path) -> dict[str, bytes]:
    return {
        str(file): file.read_bytes()
        for file in place.rglob("*")
        if file.is_file() and file.name != "lock"
    }


def test_resuming_takes_the_lock_and_changes_nothing_else(make_experiment):
    place = make_resumable(make_experiment)
    Path("here/metrics.jsonl").write_text("{}\n")
    before = content_of(place)
    with RunDirectory.open_to_resume(place) as run:
        assert run.experiment == make_experiment()
        assert Path("here/lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(
            OperatorError, match=f"here: in use by process {os.getpid()}; wait for it, or end it"
        ):
            RunDirectory.open_to_resume(place)
    RunDirectory.open_to_resume(place).close()
    assert content_of(place) == before


def test_resuming_what_is_no_run_or_a_broken_one_is_a_clear_error(make_experiment):
    with pytest.raises(OperatorError, match="nothing: no such directory; "):
        RunDirectory.open_to_resume("nothing")
    Path("empty").mkdir()
    with pytest.raises(OperatorError, match="empty: not a run"):
        RunDirectory.open_to_resume("empty")
    assert os.listdir("empty") == []


@pytest.mark.parametrize("name", ["run.log", "lock"])
def test_file_that_resuming_cannot_write_is_a_clear_error(make_experiment, name):
    place = make_resumable(make_experiment)
    (place / name).unlink(missing_ok=True)
    (place / name).mkdir()
    with pytest.raises(OperatorError) as caught:
        RunDirectory.open_to_resume(place)
    assert str(caught.value) == (
        f"here/{name}: cannot be written: Is a directory; resuming needs to"
    )


def test_run_without_a_checkpoint_is_not_resumed_but_started_anew(make_experiment):
    RunDirectory.create(make_experiment(), "my run").close()
    Path("my run/checkpoints/.partial-update-00000001").mkdir(parents=True)
    with pytest.raises(
        OperatorError,
        match=r"no checkpoint in it, .* anew with `rollout train 'my run/config\.toml'`",
    ):
        RunDirectory.open_to_resume("my run")
    RunDirectory.create(make_experiment(), "another").close()  # and no lock is left behind
    Path("my run/checkpoints/update-00000001").mkdir()
    RunDirectory.open_to_resume("my run").close()


def test_discarding_takes_a_new_runs_files_and_none_of_a_resumed_one(make_experiment):
    place = make_resumable(make_experiment, "old")
    before = content_of(place)
    with RunDirectory.open_to_resume(place) as run:
        run.discard()
    assert content_of(place) == before
    with RunDirectory.create(make_experiment(), "new") as run:
        for file in (run.log, run.metrics, run.order, run.fleet):
            file.write_text("")
        run.discard()
    assert not Path("new").exists()


def test_run_with_a_broken_config_is_a_config_error(make_experiment):
    RunDirectory.create(make_experiment(), "here").close()
    Path("here/config.toml").write_text("[env]\nid = 3\n")
    with pytest.raises(ConfigError, match=r"here/config\.toml"):
        RunDirectory.open("here")


def test_summary_is_written_and_read_back(make_experiment, make_summary):
    with RunDirectory.create(make_experiment(), "here") as run:
        assert run.read_summary() is None
        summary = make_summary()
        run.write_summary(summary)
        assert run.read_summary() == json.loads(run.summary.read_text()) == summary.as_dict()


def test_file_written_atomically_keeps_its_old_content_when_writing_fails(monkeypatch):
    write_atomically(Path("file"), b"old")

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(Path("file"), b"new")
    assert Path("file").read_bytes() == b"old"
    assert os.listdir() == ["file"]
