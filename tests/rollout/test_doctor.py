"""What a machine can hold."""

import json
import os
import resource

import pytest

from rollout import doctor
from rollout.cli import main
from rollout.doctor import Check, fewest_actors


def run_doctor(*arguments: str) -> int:
    """Run the command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def write(root, **files):
    for name, content in files.items():
        place = root.joinpath(*name.split("__"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)


def test_doctor_says_of_each_thing_how_it_is(capsys):
    assert run_doctor() == 0
    out = capsys.readouterr().out
    for name in ("cores", "memory", "open files", "shared memory", "sockets", "kernel cache"):
        assert f"  {name} " in out
    assert "actors at most, because of" in out


def test_doctor_as_json_is_one_object(capsys):
    assert run_doctor("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {check["status"] for check in found["checks"]} <= {"ok", "warn"}
    assert found["max_actors"] > 0
    assert len({check["name"] for check in found["checks"]}) == len(found["checks"])


def test_status_is_1_when_something_keeps_a_run_from_starting(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ROLLOUT_SHM_DIR", str(tmp_path / "none"))
    assert run_doctor("--json") == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["shared memory"]["status"] == "fail"
    assert "No such file" in checks["shared memory"]["found"]
    assert checks["shared memory"]["next_move"] == "set ROLLOUT_SHM_DIR to a directory in a tmpfs"


def test_the_smallest_limit_decides_how_many_actors_there_can_be():
    checks = [
        Check("a", "ok", "", max_actors=30),
        Check("b", "ok", "", max_actors=20),
        Check("c", "ok", ""),
    ]
    assert fewest_actors(checks) == checks[1]
    assert fewest_actors(checks[2:]) is None


def test_whatever_is_not_ok_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("ROLLOUT_SHM_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 0.5)
    checks = doctor.examine()
    assert sum(check.status != "ok" for check in checks) >= 3
    assert all(check.next_move for check in checks if check.status != "ok")


def test_cpu_quota_is_read_from_both_versions_of_control_groups(tmp_path):
    assert doctor.cpu_quota(tmp_path) is None
    write(tmp_path / "two", **{"cpu.max": "150000 100000\n"})
    assert doctor.cpu_quota(tmp_path / "two") == 1.5
    write(tmp_path / "free", **{"cpu.max": "max 100000\n"})
    assert doctor.cpu_quota(tmp_path / "free") is None
    write(
        tmp_path / "one", **{"cpu__cpu.cfs_quota_us": "50000", "cpu__cpu.cfs_period_us": "100000"}
    )
    assert doctor.cpu_quota(tmp_path / "one") == 0.5
    write(tmp_path / "off", **{"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"})
    assert doctor.cpu_quota(tmp_path / "off") is None


def test_cores_that_a_container_may_not_use_are_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 2.5)
    check = doctor.check_cores()
    assert check.status == "warn"
    assert "only 2.5" in check.found
    assert "fleet.num_actors=2" in check.next_move


def test_memory_limit_is_what_a_control_group_has_left(tmp_path):
    assert doctor.memory_limit(tmp_path) is None
    write(tmp_path, **{"memory.max": "max", "memory.current": "5"})
    assert doctor.memory_limit(tmp_path) is None
    write(tmp_path, **{"memory.max": "1000", "memory.current": "300"})
    assert doctor.memory_limit(tmp_path) == 700


def test_memory_says_how_many_actors_fit(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 9 << 30)
    monkeypatch.setattr(doctor, "memory_limit", lambda: None)
    assert doctor.check_memory().max_actors == 1024
    monkeypatch.setattr(doctor, "memory_limit", lambda: 1 << 30)
    check = doctor.check_memory()
    assert (check.status, check.max_actors) == ("fail", 0)


@pytest.mark.parametrize(
    ("hard", "status", "actors"), [(100_000, "ok", 99_936), (1024, "warn", 960), (60, "fail", 0)]
)
def test_open_files_say_how_many_actors_they_allow(monkeypatch, hard, status, actors):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (min(hard, 1024), hard))
    check = doctor.check_open_files()
    assert (check.status, check.max_actors) == (status, actors)


def test_process_limit_is_the_smallest_of_all(tmp_path, monkeypatch):
    write(tmp_path, **{"pids.max": "500\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    assert doctor.process_limit(tmp_path) == 500
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    assert doctor.process_limit(tmp_path) == 300


def test_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/vda / ext4 rw 0 0\nx /a tmpfs rw 0 0\nx /a/b overlay rw 0 0\n")
    (tmp_path / "mounts").chmod(0o600)
    assert doctor.file_system_of(mounts.parent.__class__("/a/b/c"), mounts) == "overlay"
    assert doctor.file_system_of(mounts.parent.__class__("/a/bc"), mounts) == "tmpfs"
    assert doctor.file_system_of(mounts.parent.__class__("/ab"), mounts) == "ext4"


def test_disk_in_place_of_a_tmpfs_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("ROLLOUT_SHM_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "file_system_of", lambda place: "ext4")
    check = doctor.check_shared_memory()
    assert check.status == "warn"
    assert "(ext4): weights go to a disk" in check.found


def test_socket_directory_that_is_too_deep_keeps_a_run_from_starting(monkeypatch, tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    check = doctor.check_sockets()
    assert check.status == "fail"
    assert "XDG_RUNTIME_DIR" in check.next_move


def test_kernel_cache_counts_what_it_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", str(tmp_path / "cache"))
    assert ": 0 kernels, 0 bytes" in doctor.check_kernel_cache().found
    write(tmp_path / "cache", lock="", abc__kernel="x" * 2048, abc__index="", d__kernel="")
    assert ": 2 kernels, 2.0 KiB" in doctor.check_kernel_cache().found


def test_missing_package_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "_required", lambda: ["numpy", "no-such-package"])
    check = doctor.check_packages()
    assert check.status == "fail"
    assert check.next_move == "pip install no-such-package"


def test_packages_that_are_required_are_read_from_the_distribution():
    assert {"numpy", "torch", "pyzmq"} <= set(doctor._required())
    assert not {"pytest", "ray", "matplotlib"} & set(doctor._required())
