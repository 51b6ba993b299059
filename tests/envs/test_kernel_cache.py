"""The cache of compiled kernels: what it is keyed by, and what it survives."""

import ctypes
import importlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.experimental.jitclass.decorators import jitclass

from rollout.envs import EnvError, Envs, Outcome, kernels
from rollout.envs.batch import TEMPLATE, env_bindings, load_env_kernels
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting

ENVIRONMENT = """
import enum
from collections import namedtuple

import numba
import numpy as np
from gymnasium.spaces import Box, Discrete

from rollout.envs import CompiledEnv, uniform
import cache_helpers
import cache_package.constants

LIMIT = 3
TABLE = np.arange(2000.0)
PAIR = (1, np.arange(3000))
Point = namedtuple("Point", "first second")
POINT = Point(1, 2)
NOBODY_NAMES_THIS = 1


class Kind(enum.IntEnum):
    LEFT = 1


@numba.njit
def decorated(x):
    return x + 1  # decorated


def make(factor):
    def closure(x):
        return x * factor
    return closure


closure = make(2)


def with_default(x, by=4):
    return x + by


class Small(CompiledEnv):
    state = np.dtype([("t", "i4")])
    params = {"length": 3}
    observation_space = Box(0, 9, (1,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = 50

    def reset(state, params, draw):
        state.t = 0  # reset

    def step(state, params, action, draw):
        # nothing of this line is compiled
        state.t += decorated(cache_helpers.outer(1)) + closure(action) + with_default(0)
        state.t += int(POINT.first + TABLE[1999] + PAIR[1][2999] + cache_package.constants.STRIDE)
        return uniform(draw, 0.0, 1.0), state.t > LIMIT and Kind.LEFT == action

    def observe(state, params, observation):
        observation[0] = state.t
"""
HELPERS = """
OFFSET = 5


def outer(x):
    return inner(x) + 1


def inner(x):
    return x + OFFSET  # inner
"""

LOAD = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from rollout.envs import Envs, Outcome, find_env
envs = Envs(find_env("cache_environment:Small"), 3, seed=1)
outcome = Outcome(envs.env, 3)
for t in range(20):
    envs.step(np.full(3, t % 2, np.int32), outcome)
stats = envs._kernels.step_all.stats
print(json.dumps({
    "hits": sum(stats.cache_hits.values()), "misses": sum(stats.cache_misses.values()),
    "state": envs.snapshot().hex(),
}))
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    return write_modules(tmp_path_factory.mktemp("modules"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def filled(tmp_path_factory, modules) -> tuple[Path, dict]:
    """A cache with one entry, and what the process that made it said; not to be changed."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    return folder, load(modules, {"ROLLOUT_CACHE_DIR": str(folder)})


def write_modules(folder: Path, old: str = "", new: str = "") -> Path:
    """The modules above, with `old` replaced."""
    (folder / "cache_package").mkdir()
    sources = {
        "cache_environment.py": ENVIRONMENT,
        "cache_helpers.py": HELPERS,
        "cache_package/__init__.py": "",
        "cache_package/constants.py": "import cache_package.constants\nSTRIDE = 2\n",
    }
    assert any(old in source for source in sources.values())
    for name, source in sources.items():
        (folder / name).write_text(source.replace(old, new) if old else source)
    return folder


def start(modules: Path, environment: dict[str, str], before: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", before + LOAD, str(modules)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen) -> dict:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not errors
    return json.loads(output)


def load(modules: Path, environment: dict[str, str], before: str = "") -> dict:
    """What a new process says that steps the environment."""
    return answer(start(modules, environment, before))


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def copy(filled: Path, cache: Path) -> Path:
    """The same entry elsewhere; returns its folder."""
    subprocess.run(["cp", "-a", filled, cache], check=True)
    (entry,) = entries(cache)
    return entry


def test_second_process_loads_what_the_first_compiled(filled, modules):
    cache, first = filled
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    second = load(modules, {"ROLLOUT_CACHE_DIR": str(cache)})
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert second["state"] == first["state"]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == files


def test_entry_is_open_to_its_owner_only(filled):
    cache, _ = filled
    (entry,) = entries(cache)
    assert len(entry.name) == 64
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700


@pytest.mark.timeout(10)
def test_entries_are_filled_beside_each_other(tmp_path):
    with kernels._locked(tmp_path, "a0"), kernels._locked(tmp_path, "b0"):
        pass  # with one lock for all, the second would wait for the first


def test_two_processes_that_fill_the_cache_at_once_both_work(modules, cache, filled):
    environment = {"ROLLOUT_CACHE_DIR": str(cache)}
    answers = [answer(process) for process in [start(modules, environment) for _ in range(2)]]
    assert [one["state"] for one in answers] == [filled[1]["state"]] * 2
    assert sorted(one["misses"] for one in answers) == [0, 1], "one compiles, the other waits"
    (entry,) = entries(cache)
    assert kernels._is_whole(entry)


def test_cache_that_cannot_be_made_is_done_without(modules, filled):
    said = load(modules, {"ROLLOUT_CACHE_DIR": "/dev/null/cache"})
    assert said["state"] == filled[1]["state"]


def test_full_disk_is_done_without(modules, cache, filled):
    """A limit on the size of files stands for the disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    said = load(modules, {"ROLLOUT_CACHE_DIR": str(cache)}, before=limit)
    assert said["state"] == filled[1]["state"]
    assert not any(kernels._is_whole(entry) for entry in entries(cache))


def test_process_killed_while_it_fills_leaves_no_entry(modules, cache, filled):
    """Killed when all is compiled, but not sealed yet."""
    die = (
        "import os, signal\n"
        "from rollout.envs import kernels\n"
        "kernels._digest_of_files = lambda entry: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {"ROLLOUT_CACHE_DIR": str(cache)}
    killed = start(modules, environment, before=die)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in entries(cache)] == [".partial"]
    said = load(modules, environment)
    assert said["state"] == filled[1]["state"]
    assert said["misses"] == 1
    (entry,) = entries(cache)
    assert kernels._is_whole(entry)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (truncate, "*step_all*.nbc"),
        (flip, "*step_all*.nbc"),
        (empty, "*.nbi"),
        (Path.unlink, "*.nbc"),
        (flip, "batch_kernel.py"),
        (Path.unlink, kernels.SEAL),
        (truncate, kernels.SEAL),
    ],
)
def test_damaged_entry_is_found_out(filled, cache, damage, pattern):
    entry = copy(filled[0], cache)
    assert kernels._is_whole(entry)
    for path in entry.rglob(pattern):
        damage(path)
    assert not kernels._is_whole(entry)


def test_damaged_entry_is_made_anew(filled, modules, cache):
    entry = copy(filled[0], cache)
    for path in entry.rglob("*"):
        if path.is_file():
            truncate(path)
    said = load(modules, {"ROLLOUT_CACHE_DIR": str(cache)})
    assert said["state"] == filled[1]["state"]
    assert said["misses"] == 1
    assert entries(cache) == [entry]
    assert kernels._is_whole(entry)


def test_entry_of_another_user_is_not_run(filled, monkeypatch):
    (entry,) = entries(filled[0])
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not kernels._is_whole(entry)


def test_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert kernels.cache_directory() == Path("/a")
    monkeypatch.delenv("ROLLOUT_CACHE_DIR")
    assert kernels.cache_directory() == Path("/b/rollout")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert kernels.cache_directory() == Path("/c/.cache/rollout")


def test_numbas_own_settings_do_not_move_the_cache(modules, cache, filled, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    settings = {
        "ROLLOUT_CACHE_DIR": str(cache),
        "NUMBA_CACHE_DIR": str(elsewhere),
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator",
    }
    copy(filled[0], cache)
    assert load(modules, settings)["hits"] == 1
    assert not elsewhere.exists()


def test_modules_that_name_each_other_are_copied_once(modules, monkeypatch):
    """As the checked functions of a package are."""
    monkeypatch.syspath_prepend(modules)
    module = importlib.import_module("cache_environment")
    envs, outcome = Envs(module.Small, 2, seed=0, checked=True), Outcome(module.Small, 2)
    with pytest.raises(EnvError, match=r"observation\[0\] is 5013.0, wanted 0.0 to 9.0"):
        envs.step(np.zeros(2, np.int32), outcome)


def test_threads_load_the_kernels_of_their_own_environments(monkeypatch):
    """Where they wait for each other least: in plain Python, with a switch at every chance."""
    interval = sys.getswitchinterval()
    wrong: list[str] = []

    def load_again_and_again(env):
        bindings = env_bindings(env, jit=False)
        for _ in range(100):
            loaded = kernels.load_kernels(TEMPLATE, bindings, {}, jit=False)
            if (
                bindings["RECORD_SIZE"] != loaded.RECORD_SIZE
                or loaded.env_step is not (bindings["env_step"])
            ):
                wrong.append(env.__name__)

    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=load_again_and_again, args=(env,))
            for env in (Counting, CartPole)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_function_without_a_file_compiles_without_the_cache(cache):
    """As in a notebook."""
    space: dict = {}
    source = ENVIRONMENT.replace("import cache_helpers\nimport cache_package.constants\n", "")
    source = source.replace("cache_helpers.outer(1)", "1")
    source = source.replace("cache_package.constants.STRIDE", "2")
    exec(compile(source, "<ipython-input-1>", "exec"), space)
    envs = Envs(space["Small"], 2, seed=0)
    assert envs.observation().tolist() == [[0.0], [0.0]]
    assert not cache.exists()


absolute = ctypes.CDLL(None).abs
absolute.argtypes, absolute.restype = (ctypes.c_int,), ctypes.c_int
vectorized = numba.vectorize(["int64(int64)"])(lambda x: x * 2)
large, strided = np.arange(130_000.0), np.arange(64.0)[::2]


@pytest.mark.parametrize(
    ("looked_up", "wanted"),
    [
        (lambda: absolute(-2), 2),
        (lambda: large[2], 2),
        (lambda: strided[2], 4),
        (lambda: vectorized(1), 2),
        (lambda: Boxed(1).twice(), 2),
    ],
    ids=["c function", "large array", "strided array", "vectorized function", "compiled class"],
)
def test_what_has_no_fingerprint_compiles_without_the_cache(cache, looked_up, wanted):
    def reset(state, params, draw):
        state.t = int(looked_up())

    env = type("Tabled", (Counting,), {"reset": reset})
    assert Envs(env, 1, seed=0).records["state"]["t"] == wanted
    assert not cache.exists()


@jitclass([("x", numba.int64)])
class Boxed:
    def __init__(self, x):
        self.x = x

    def twice(self):
        return self.x * 2


class Found(Exception):
    pass


def digest_of(folder: Path, monkeypatch, after_import: Callable[[], None] = lambda: None) -> str:
    """The name of the entry for the modules in a folder, without compiling anything."""
    digests = []

    def through_cache(digest: str, _compile_in) -> None:
        digests.append(digest)
        raise Found

    names = ("cache_package", "cache_package.constants", "cache_helpers", "cache_environment")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(kernels, "_through_cache", through_cache)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    module = importlib.import_module("cache_environment")
    assert module.__file__ == str(folder / "cache_environment.py")
    after_import()
    with pytest.raises(Found):
        load_env_kernels(module.Small)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    return digests[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state.t = 0  # reset", "state.t = 1"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("TABLE = np.arange(2000.0)", "TABLE = np.arange(2000.0); TABLE[1000] = 0"),
        ("np.arange(3000))", "np.arange(3000)[::-1].copy())"),
        ("return x + 1  # decorated", "return x + 2"),
        ("closure = make(2)", "closure = make(3)"),
        ("by=4", "by=5"),
        ('"first second"', '"second first"'),
        ("LEFT = 1", "LEFT = 2"),
        ("return x + OFFSET  # inner", "return x - OFFSET"),
        ("OFFSET = 5", "OFFSET = 6"),
        ("STRIDE = 2", "STRIDE = 3"),
        ('("t", "i4")', '("t", "i8")'),
        ('{"length": 3}', '{"length": 3.0}'),
        ("(1,), np.float32", "(1,), np.float64"),
        ("max_episode_steps = 50", "max_episode_steps = 51"),
        ("uniform(draw, 0.0, 1.0)", "uniform(draw, 0.0, 2.0)"),
        ("numba.njit", "numba.njit(fastmath=True)"),
    ],
)
def test_change_that_compiles_to_other_code_has_another_entry(
    modules, tmp_path, monkeypatch, old, new
):
    changed = write_modules(tmp_path, old, new)
    assert digest_of(changed, monkeypatch) != digest_of(modules, monkeypatch)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("# nothing of this line is compiled", "# a better comment"),
        ("NOBODY_NAMES_THIS = 1", "NOBODY_NAMES_THIS = 2"),
        ('{"length": 3}', '{"length": 4}'),  # in the record, not in the code
    ],
)
def test_change_that_compiles_to_the_same_code_keeps_the_entry(
    modules, tmp_path, monkeypatch, old, new
):
    changed = write_modules(tmp_path, old, new)
    assert digest_of(changed, monkeypatch) == digest_of(modules, monkeypatch)


def test_entry_depends_on_how_numba_is_told_to_compile(modules, monkeypatch):
    before = digest_of(modules, monkeypatch)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    assert digest_of(modules, monkeypatch) == before, "that concerns no code"
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert digest_of(modules, monkeypatch) != before


def test_file_that_changed_after_its_import_does_not_name_the_entry(tmp_path, monkeypatch):
    """What is compiled is the code that was loaded, whatever stands in the file by now."""
    folder = write_modules(tmp_path)

    def change() -> None:
        source = (folder / "cache_environment.py").read_text()
        (folder / "cache_environment.py").write_text(source.replace("state.t = 0", "state.t = 7"))
        (folder / "cache_helpers.py").write_text(HELPERS.replace("inner(x) + 1", "inner(x) + 2"))

    before = digest_of(folder, monkeypatch)
    assert digest_of(folder, monkeypatch, after_import=change) == before
    assert digest_of(folder, monkeypatch) != before


def test_numba_switched_off_in_this_process_is_said(monkeypatch, modules):
    monkeypatch.setattr(kernels.numba_config, "DISABLE_JIT", 1)
    with pytest.raises(EnvError, match="NUMBA_DISABLE_JIT is set"):
        digest_of(modules, monkeypatch)


@pytest.mark.slow
def test_environment_that_was_renamed_does_not_look_for_its_old_module(tmp_path, monkeypatch):
    """Numba imports a function's module by name when it loads machine code."""
    program = (
        "import sys; from rollout.envs import Envs, find_env; "
        "print(Envs(find_env(sys.argv[1]), 2, 0).snapshot().hex())"
    )
    source = (
        "import numpy as np\nfrom gymnasium.spaces import Box, Discrete\n"
        "from rollout.envs import CompiledEnv\n\nclass E(CompiledEnv):\n"
        "    state = np.dtype([('x', 'f8')])\n"
        "    observation_space = Box(-1, 1, (1,), np.float32)\n    action_space = Discrete(2)\n"
        "    def reset(state, params, draw):\n        state.x = 0.5\n"
        "    def step(state, params, action, draw):\n        return 1.0, False\n"
        "    def observe(state, params, observation):\n        observation[0] = state.x\n"
    )
    monkeypatch.setenv("ROLLOUT_CACHE_DIR", str(tmp_path / "cache"))
    said = []
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(source)
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, f"{name}:E"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
        (tmp_path / f"{name}.py").unlink()
    assert said[0] == said[1]
