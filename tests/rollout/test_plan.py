"""What hosts are told: a plan, and records on pipes."""

import os
import select
import subprocess
import sys
import threading

import msgspec
import pytest

from rollout.control import ActorError
from rollout.plan import read_record, write_record
from rollout.template import error_text


class Note(msgspec.Struct, frozen=True):
    text: str
    numbers: list[int]


@pytest.fixture
def pipe():
    read, write = os.pipe()
    ends = {"read": read, "write": write}
    yield ends
    for end in ends.values():
        os.close(end)


def close(pipe, end: str) -> None:
    os.close(pipe.pop(end))


@pytest.mark.parametrize(("mode", "is_lockstep"), [("lockstep", True), ("async", False)])
def test_plan_tells_the_mode_and_where_its_sockets_are(make_plan, mode, is_lockstep):
    plan = make_plan(mode=mode)
    assert plan.is_lockstep is is_lockstep
    assert plan.unroll_endpoint == f"ipc://{plan.socket_directory}/unrolls"
    assert plan.control_endpoint == f"ipc://{plan.socket_directory}/control"
    assert plan.name == plan.run.hex()[:12]


def test_plan_comes_out_of_a_pipe_as_it_went_in(make_plan, pipe):
    plan = make_plan(num_envs=37, params={"length": 4, "gravity": 9.5, "is_wet": True})
    write_record(pipe["write"], plan)
    again = read_record(pipe["read"], type(plan))
    assert again == plan
    assert again.network.num_parameters == plan.network.num_parameters
    assert again.schema.digest == plan.schema.digest


def test_records_follow_each_other_on_a_pipe(pipe):
    notes = [Note("", []), Note("ä" * 100, [1, 2]), Note("last", [2**63 - 1])]
    for note in notes:
        write_record(pipe["write"], note)
    close(pipe, "write")
    assert [read_record(pipe["read"], Note) for _ in notes] == notes
    assert read_record(pipe["read"], Note) is None


def test_record_longer_than_a_pipe_holds_arrives_whole(pipe):
    note = Note("x" * 300_000, list(range(1000)))
    writer = threading.Thread(target=write_record, args=(pipe["write"], note))
    writer.start()
    assert read_record(pipe["read"], Note) == note
    writer.join()


@pytest.mark.parametrize("kept", [1, 3, 4, 5, 11])
def test_record_that_ends_in_the_middle_is_the_end_of_the_pipe(pipe, kept):
    read, write = os.pipe()
    write_record(write, Note("cut short", [1, 2, 3]))
    os.write(pipe["write"], os.read(read, kept))
    close(pipe, "write")
    assert read_record(pipe["read"], Note) is None
    os.close(read)
    os.close(write)


def test_short_records_of_many_writers_do_not_mix():
    """As when several actors report their errors at once: one `write` up to PIPE_BUF is atomic."""
    program = """
import os
from rollout.control import ActorError
from rollout.plan import write_record
for writer in range(8):
    if os.fork() == 0:
        for _ in range(50):
            write_record(1, ActorError(writer, chr(97 + writer) * 3000))
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
    writers = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert writers.stdout is not None
    got = []
    while (error := read_record(writers.stdout.fileno(), ActorError)) is not None:
        got.append(error)
    writers.stdout.close()
    assert writers.wait(10) == 0
    assert sorted(error.pid for error in got) == sorted(list(range(8)) * 50)
    assert all(error.error == chr(97 + error.pid) * 3000 for error in got)


def test_report_of_an_error_is_cut_to_what_a_pipe_writes_in_one_piece():
    report = ActorError(2**31 - 1, error_text(RuntimeError("ü€😀" * 3000)))
    assert len(msgspec.msgpack.encode(report)) + 4 <= select.PIPE_BUF
    assert report.error.startswith("RuntimeError: ü€😀")
