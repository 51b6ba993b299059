"""How fast do compiled environments step, against C and against what others offer?

CartPole at 64 and 1,024 environments on one core: ours; the same in C (cartpole.c, compiled here);
Gymnasium's own NumPy vector environment; EnvPool with one thread, if it is installed.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from rollout.envs import Envs, Outcome, find_env

SEED = 1
HERE = Path(__file__).parent
CARTPOLE = find_env("CartPole-v1")
ACTION_ROWS = 64  # random actions, used over and over


class CCartPole:
    """cartpole.c behind the same calls as `Envs`; writes the same arrays."""

    def __init__(self, library: Path, num_envs: int) -> None:
        c = ctypes.CDLL(str(library))
        envs = Envs(CARTPOLE, num_envs, SEED)  # for memory of the right size
        self.records, self.outcome = np.zeros_like(envs.records), Outcome(CARTPOLE, num_envs)
        self.counts = np.zeros(2, np.int64)
        c.begin_all(_address(self.records), ctypes.c_int64(num_envs), ctypes.c_uint32(SEED))
        self._step = c.step_all
        self._head = (_address(self.records), ctypes.c_int64(num_envs))
        self._tail = tuple(map(_address, (*self.outcome.arrays, self.counts)))

    def step(self, action: ctypes.c_void_p) -> None:
        self._step(*self._head, action, *self._tail)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def compile_c(folder: Path, *flags: str) -> Path | None:
    """cartpole.c as a library, or None without a C compiler."""
    if not shutil.which("cc"):
        return None
    library = folder / f"cartpole{'_'.join(flags)}.so"
    command = ["cc", "-O3", "-march=native", *flags, "-shared", "-fPIC", "-o", library]
    subprocess.run([*command, HERE / "cartpole.c", "-lm"], check=True)
    return library


def check_against_c(library: Path) -> None:
    """Bit for bit, through several ends and time limits."""
    rng = np.random.default_rng(0)
    ours, outcome = Envs(CARTPOLE, 64, SEED), Outcome(CARTPOLE, 64)
    theirs = CCartPole(library, 64)
    for _ in range(1000):
        # mostly a balancing policy, so that some episodes last until the limit
        leaning = ours.records["state"]["theta"] + ours.records["state"]["theta_dot"] > 0
        action = np.where(rng.random(64) < 0.9, leaning, rng.integers(0, 2, 64)).astype(np.int32)
        ours.step(action, outcome)
        theirs.step(_address(action))
        assert (outcome.num_finals, outcome.num_episodes) == tuple(theirs.counts)
        for mine, c in zip(outcome.arrays, theirs.outcome.arrays, strict=True):
            np.testing.assert_array_equal(mine, c)
    assert ours.snapshot() == theirs.records.tobytes(), "states differ from those of the C version"
    assert (ours.records["clock"]["episode"] > 1).all()


def check_against_gymnasium() -> None:
    """One step from the same random states, to the last digits of a float32."""
    rng = np.random.default_rng(0)
    gym, ours, outcome = CartPoleVectorEnv(256), Envs(CARTPOLE, 256, SEED), Outcome(CARTPOLE, 256)
    gym.reset(seed=0)
    state = rng.uniform(-1, 1, (4, 256)) * np.array([[2.0], [2.0], [0.2], [2.0]])
    gym.state = state.copy()
    for row, name in zip(state, ("x", "x_dot", "theta", "theta_dot"), strict=True):
        ours.records["state"][name] = row
    action = rng.integers(0, 2, 256).astype(np.int32)
    observation, reward, terminated, *_ = gym.step(action)
    ours.step(action, outcome)
    going = ~terminated
    np.testing.assert_allclose(outcome.observation[going], observation[going], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(outcome.reward, reward)
    np.testing.assert_array_equal(outcome.terminated, terminated)


def bench(num_envs: int, libraries: dict[str, Path]) -> dict[str, harness.Measurement]:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, (ACTION_ROWS, num_envs)).astype(np.int32)
    rows = list(actions)
    work = ACTION_ROWS * num_envs

    ours, outcome = Envs(CARTPOLE, num_envs, SEED), Outcome(CARTPOLE, num_envs)

    def step_ours() -> None:
        for action in rows:
            ours.step(action, outcome)

    calls: dict[str, tuple[Callable[[], object], float]] = {"compiled": (step_ours, work)}

    for name, library in libraries.items():
        c = CCartPole(library, num_envs)
        addresses = [_address(row) for row in rows]

        def step_c(c: CCartPole = c, addresses: list = addresses) -> None:
            for address in addresses:
                c.step(address)

        calls[name] = step_c, work

    gym = CartPoleVectorEnv(num_envs)
    gym.reset(seed=0)

    def step_gymnasium() -> None:
        for action in rows[:8]:
            gym.step(action)

    calls["gymnasium"] = step_gymnasium, 8 * num_envs
    envpool = _make_envpool(num_envs)
    if envpool is not None:

        def step_envpool() -> None:
            for action in rows[:8]:
                envpool.step(action)

        calls["envpool, one thread"] = step_envpool, 8 * num_envs
    return harness.measure(calls)


def _make_envpool(num_envs: int):
    try:
        import envpool  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    envs = envpool.make_gymnasium("CartPole-v1", num_envs=num_envs, num_threads=1)
    envs.reset()
    return envs


def main() -> None:
    harness.pin_to_one_core()
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        # fused products are what a C programmer gets; without them the results are ours, bit by bit
        exact = compile_c(Path(folder), "-ffp-contract=off")
        fused = compile_c(Path(folder))
        libraries = {}
        if exact and fused:
            check_against_c(exact)
            libraries = {"C, our rounding": exact, "C": fused}
        else:
            notes.append("no C compiler (cc): not compared with C")
        check_against_gymnasium()
        if _make_envpool(1) is None:
            notes.append("EnvPool is not installed: not compared with it")
        harness.report(
            "env_step_throughput",
            unit="env steps/s on one core",
            ours="compiled",
            metrics={f"cartpole_{n}_envs": bench(n, libraries) for n in (64, 1024)},
            config={"env": "CartPole-v1", "actions": "random"},
            notes=tuple(notes),
        )


if __name__ == "__main__":
    main()
