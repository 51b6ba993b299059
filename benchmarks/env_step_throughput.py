"""How fast do compiled environments step, against C and against what others offer?

On one core, with random actions. CartPole at 64 and 1,024 environments: ours; the same in C
(cartpole.c, compiled here); Gymnasium's own NumPy vector environment; EnvPool with one thread at
its best batch size, if it is installed. MinAtar's games at 256: ours; the package, with and without
asking it for what it shows (ours always writes that).
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from rollout.envs import Envs, Outcome, find_env

SEED = 1
ENVPOOL_SIZES = (16, 64, 256, 1024, 4096)  # environments, all in one batch; and twice as many
GAMES = {  # the package's names
    "Asterix-MinAtar-full": "asterix",
    "Breakout-MinAtar-full": "breakout",
    "Freeway-MinAtar-full": "freeway",
    "Seaquest-MinAtar-full": "seaquest",
    "SpaceInvaders-MinAtar-full": "space_invaders",
}
GAME_ENVS = 256
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
    rows = list(_actions(2, num_envs))
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
    pool = _best_envpool()
    if pool is not None:
        calls["envpool, one thread"] = pool
    return harness.measure(calls)


def _best_envpool() -> tuple[Callable[[], object], float] | None:
    """Steps of EnvPool at its best batch size, and how many; None if it is not installed."""
    try:
        import envpool  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    found = {}
    for batch_size in ENVPOOL_SIZES:
        for num_envs in (batch_size, 2 * batch_size):  # with twice as many, it never waits
            pool = envpool.make_gymnasium(
                "CartPole-v1", num_envs=num_envs, batch_size=batch_size, num_threads=1
            )
            pool.async_reset()
            actions = np.random.default_rng(0).integers(0, 2, batch_size).astype(np.int32)

            def step(pool=pool, actions=actions) -> None:
                for _ in range(8):
                    env = pool.recv()[-1]["env_id"]
                    pool.send(actions, env)

            found[num_envs, batch_size] = step, 8.0 * batch_size
    rates = harness.measure({str(key): call for key, call in found.items()}, repeats=3)
    best = max(found, key=lambda key: rates[str(key)].median)
    print(f"EnvPool's best: {best[0]} environments, batches of {best[1]}", file=sys.stderr)
    return found[best]


def check_against_minatar(env_id: str, game: str) -> None:
    """Random play earns about as much per step, and ends about as often, as in the package.

    A smoke test: equality, transition by transition, is shown in tests/envs/test_minatar_*.py.
    """
    from minatar import Environment

    package, steps = Environment(game), 40_000
    actions = np.random.default_rng(0).integers(0, 6, (steps // GAME_ENVS, GAME_ENVS), np.int32)
    theirs = np.zeros((steps, 2))
    for t, action in enumerate(actions.flat):
        theirs[t] = package.act(int(action))
        if theirs[t, 1]:
            package.reset()
    env = find_env(env_id)
    ours, outcome = Envs(env, GAME_ENVS, SEED), Outcome(env, GAME_ENVS)
    for row in actions[:64]:  # past the beginnings of episodes, which all do at once
        ours.step(row, outcome)
    mine = []
    for row in actions:
        ours.step(row, outcome)
        mine.append(np.stack([outcome.reward, outcome.terminated], axis=1))
    difference = np.mean(mine, axis=(0, 1)) - theirs.mean(0)
    error = theirs.std(0) / np.sqrt(steps) * 10  # steps depend on each other
    assert (abs(difference) <= np.maximum(error, 1e-3)).all(), f"{env_id}: {difference} > {error}"


def bench_minatar(env_id: str, game: str) -> dict[str, harness.Measurement]:
    from minatar import Environment

    env, rows = find_env(env_id), list(_actions(6, GAME_ENVS))
    ours, outcome = Envs(env, GAME_ENVS, SEED), Outcome(env, GAME_ENVS)
    package = Environment(game)
    package_actions = [int(action) for action in rows[0]]

    def step_ours() -> None:
        for action in rows:
            ours.step(action, outcome)

    def step_package(shows: bool) -> None:
        for action in package_actions:
            _, is_over = package.act(action)
            if shows:
                package.state()
            if is_over:
                package.reset()

    return harness.measure(
        {
            "compiled": (step_ours, ACTION_ROWS * GAME_ENVS),
            "minatar": (lambda: step_package(True), GAME_ENVS),
            "minatar, without state()": (lambda: step_package(False), GAME_ENVS),
        }
    )


def _actions(count: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (ACTION_ROWS, num_envs), np.int32)


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
        if importlib.util.find_spec("envpool") is None:
            notes.append("EnvPool is not installed (extra `bench`): not compared with it")
        metrics = {f"cartpole_{n}_envs": bench(n, libraries) for n in (64, 1024)}
        for env_id, game in GAMES.items():
            check_against_minatar(env_id, game)
            metrics[f"{game}_{GAME_ENVS}_envs"] = bench_minatar(env_id, game)
        harness.report(
            "env_step_throughput",
            unit="env steps/s on one core",
            ours="compiled",
            metrics=metrics,
            config={"envs": ["CartPole-v1", *GAMES], "actions": "random"},
            notes=tuple(notes),
        )


if __name__ == "__main__":
    main()
