"""Files that grow by records: whole records in their order, whatever the disk does."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout import appender
from rollout.appender import Appender, cut_lines
from rollout.errors import RunFailed

NO_SPACE = OSError(28, "No space left on device")


class Disk:
    """In place of os.write: takes `room` bytes, then refuses; also parts of what it is given."""

    def __init__(self, monkeypatch, room: int | None = None) -> None:
        self.room = room
        self.num_refused = 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, content: bytes) -> int:
        if self.room is None:
            return self._write(file, content)
        if not self.room:
            self.num_refused += 1
            raise NO_SPACE
        taken = content[: self.room]
        self.room -= len(taken)
        return self._write(file, taken)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test sets `clock.now`."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(appender.time, "monotonic", lambda: Clock.now)
    return Clock


def test_records_are_in_the_file_when_it_is_closed_behind_what_was_there(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"zero\n")
    log = Appender(path)
    log.append(b"one\n")
    log.append(b"two\n")
    log.close()
    log.close()
    assert path.read_bytes() == b"zero\none\ntwo\n"


def test_records_are_handed_over_twice_a_second_and_when_asked(tmp_path, clock):
    path = tmp_path / "lines"
    log = Appender(path)
    log.append(b"one\n")
    assert path.read_bytes() == b""
    clock.now += appender.FLUSH_EVERY_S
    log.append(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    log.append(b"three\n")
    log.flush()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    log.close()


def test_full_disk_is_told_once_tried_again_later_and_nothing_is_lost(
    tmp_path, clock, monkeypatch, caplog
):
    disk = Disk(monkeypatch, room=6)
    path = tmp_path / "lines"
    log = Appender(path)
    lines = [f"line {number}\n".encode() for number in range(100)]
    for number, line in enumerate(lines):
        clock.now += 0.25
        log.append(line)
        assert number < 2 or log.trouble == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == b"line 0"
    assert 4 <= disk.num_refused <= 6, "every five seconds"
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "lines: cannot be written: No space left on device; the run goes on" in caplog.text
    disk.room = None
    clock.now += appender.RETRY_EVERY_S
    log.append(b"last\n")
    assert path.read_bytes() == b"".join(lines) + b"last\n"
    assert log.trouble is None
    assert caplog.records[-1].getMessage() == f"{path}: written again"
    disk.room = 0
    log.append(b"x\n")
    log.flush()
    assert len(caplog.records) == 3, "another outage is told again"
    disk.room = None
    log.close()


def test_of_too_many_records_the_oldest_go_whole_and_are_counted(
    tmp_path, clock, monkeypatch, caplog
):
    monkeypatch.setattr(appender, "MOST_WAITING_BYTES", 50)
    disk = Disk(monkeypatch, room=4)
    path = tmp_path / "lines"
    log = Appender(path)
    clock.now += 1
    log.append(b"begun, and continued\n")
    for number in range(20):
        log.append(f"line {number:03d}\n".encode())
    assert log.num_dropped == 15
    disk.room = None
    log.close()
    assert path.read_text().splitlines() == [
        "begun, and continued",
        *(f"line {number:03d}" for number in range(15, 20)),
    ]
    assert "written again, but 15 records are lost" in caplog.text


def test_only_closing_raises_when_the_disk_stays_full(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, room=0)
    log = Appender(tmp_path / "lines")
    log.append(b"one\n")
    log.append(b"two\n")
    with pytest.raises(RunFailed, match=r"lines: its last 8 bytes are lost: .* No space"):
        log.close()
    log.close()
    assert disk.num_refused


def test_file_that_cannot_even_be_made_is_made_later(tmp_path):
    folder = tmp_path / "later"
    log = Appender(folder / "lines")
    log.append(b"one\n")
    assert log.trouble == f"{folder / 'lines'}: cannot be written: No such file or directory"
    folder.mkdir()
    log.close()
    assert (folder / "lines").read_bytes() == b"one\n"


@given(
    records=st.lists(st.binary(max_size=12), max_size=20),
    rooms=st.lists(st.integers(0, 30), max_size=10),
)
def test_records_come_whole_and_in_order_whatever_parts_the_disk_takes(
    tmp_path_factory, records, rooms
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = Disk(monkeypatch)
        path = tmp_path_factory.mktemp("disk") / "records"
        log = Appender(path)
        for number, record in enumerate(records):
            disk.room = rooms[number] if number < len(rooms) else None
            log.append(record)
            log.flush()
            written = path.read_bytes()
            assert b"".join(records).startswith(written)
        disk.room = None
        log.close()
    assert path.read_bytes() == b"".join(records)


FULL_DISK = """
import json, os, sys, time
from pathlib import Path
from rollout.appender import Appender
from rollout.errors import RunFailed

place = Path(sys.argv[1])
(place / "filler").write_bytes(bytes(120_000))
log = Appender(place / "lines")
for number in range(1000):
    log.append(json.dumps({"update": number, "blank": "x" * 200}).encode() + b"\\n")
log.flush()
assert "No space left" in log.trouble, log.trouble
os.unlink(place / "filler")
log.flush()
assert log.trouble is None
log.close()
lines = [json.loads(line) for line in (place / "lines").read_text().splitlines()]
assert [line["update"] for line in lines] == list(range(1000))
"""


def test_really_full_disk_leaves_whole_lines_once_there_is_room(tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    mount = f"mount -t tmpfs -o size=320k tmpfs {tmp_path}"
    script = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    command = ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "bash", *script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- cutting


def line(update: int) -> bytes:
    return json.dumps({"update": update, "blank": "x" * (update % 7)}).encode() + b"\n"


@given(
    updates=st.lists(st.integers(0, 30), max_size=20).map(sorted),
    last=st.integers(-1, 31),
    torn=st.sampled_from([b"", b"{", b'{"update": 0}', b"\0" * 5000, b"\n", b"3\n", b"{}\n"]),
)
def test_lines_of_later_updates_and_a_torn_one_are_cut_off(tmp_path_factory, updates, last, torn):
    path = tmp_path_factory.mktemp("lines") / "lines"
    path.write_bytes(b"".join(map(line, updates)) + torn)
    kept = [update for update in updates if update <= last]
    found = cut_lines(path, last)
    assert path.read_bytes() == b"".join(map(line, kept))
    assert found == (json.loads(line(kept[-1])) if kept else None)
    assert cut_lines(path, last) == found


def test_file_that_is_not_there_has_nothing_to_cut(tmp_path):
    assert cut_lines(tmp_path / "lines", 3) is None
    assert list(tmp_path.iterdir()) == []


def test_cutting_reads_only_the_end_of_a_long_file(tmp_path):
    path = tmp_path / "lines"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: reading it all would take minutes
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line(1) + line(2))
    found = cut_lines(path, 1)
    assert found is not None
    assert found["update"] == 1
    assert path.stat().st_size == (1 << 40) + 1 + len(line(1))


def test_file_that_cannot_be_cut_is_an_error(tmp_path):
    (tmp_path / "lines").mkdir()
    with pytest.raises(RunFailed, match="lines: cannot be cut for resuming: Is a directory"):
        cut_lines(Path(tmp_path / "lines"), 3)
