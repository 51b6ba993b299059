"""How fast are environments behind Gymnasium's interface for vectors, the policy outside?

CartPole at 64 and 1,024 environments on one core, random actions: our VectorEnv (new observations
each step, or the same arrays again); EnvPool with one thread, if it is installed, stepping all
environments at once or in batches as they come; Gymnasium's own NumPy vector environment.
"""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import harness
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rollout.envs import SingleEnv, VectorEnv, find_env
from rollout.envs.batch import record_dtype

CARTPOLE = find_env("CartPole-v1")
ACTION_ROWS = 64  # random actions, used over and over
BATCHES = (1, 2, 4)  # parts of all environments that EnvPool steps in one call

Call = tuple[Callable[[], object], float]  # and the work it does


def check_against_single_environments() -> None:
    """All that a step gives, in every mode, is what Gymnasium gives of single environments."""
    rng = np.random.default_rng(0)
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        ours = VectorEnv(CARTPOLE, 8, autoreset_mode=mode)
        judge = SyncVectorEnv([lambda: SingleEnv(CARTPOLE)] * 8, autoreset_mode=mode)
        np.testing.assert_array_equal(ours.reset(seed=1)[0], judge.reset(seed=1)[0])
        for _ in range(200):
            action = rng.integers(0, 2, 8)
            for one, other in zip(ours.step(action)[:4], judge.step(action)[:4], strict=True):
                np.testing.assert_array_equal(one, other)


def check_against_gymnasium() -> None:
    """One step from the same states, to the last digits of a float32."""
    N = 256
    theirs: Any = gymnasium.make_vec("CartPole-v1", N, "vector_entry_point").unwrapped
    ours = VectorEnv(CARTPOLE, N)
    theirs.reset(seed=0)
    ours.reset(seed=0)
    dtype = record_dtype(CARTPOLE)
    states = np.frombuffer(ours.snapshot()[-N * (dtype.itemsize + 1) : -N], dtype)["state"]
    theirs.state = np.stack([states[name] for name in ("x", "x_dot", "theta", "theta_dot")])
    action = np.random.default_rng(0).integers(0, 2, N)
    for one, other in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def bench(num_envs: int) -> dict[str, harness.Measurement]:
    rng = np.random.default_rng(0)
    rows = list(rng.integers(0, 2, (ACTION_ROWS, num_envs)))
    calls: dict[str, Call] = {}
    for name, copy in (("VectorEnv", True), ("VectorEnv, copy=False", False)):
        calls[name] = _stepping(VectorEnv(CARTPOLE, num_envs, copy=copy), rows)
    gym = gymnasium.make_vec("CartPole-v1", num_envs, "vector_entry_point")
    calls["gymnasium"] = _stepping(gym, rows[:8])
    return harness.measure(calls | _envpools(num_envs, rows[:8]))


def _stepping(envs: Any, actions: list[np.ndarray]) -> Call:
    envs.reset()

    def step() -> None:
        for action in actions:
            envs.step(action)

    return step, sum(map(len, actions))


def _receiving(envs: Any, actions: list[np.ndarray]) -> Call:
    """EnvPool's other way: whichever environments are done first."""
    envs.async_reset()

    def step() -> None:
        for action in actions:
            *_, infos = envs.recv()
            envs.send(action, infos["env_id"])

    return step, sum(map(len, actions))


def _envpools(num_envs: int, rows: list[np.ndarray]) -> dict[str, Call]:
    """EnvPool, one thread: in step, and in batches of a part of the environments."""
    try:
        import envpool  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    calls: dict[str, Call] = {}
    for parts in BATCHES:
        batch = num_envs // parts
        envs = envpool.make_gymnasium(
            "CartPole-v1", num_envs=num_envs, batch_size=batch, num_threads=1
        )
        actions = [row[:batch].astype(np.int32) for row in rows]
        name = f"envpool, batches of {batch}"
        if parts == 1:
            calls[name] = _stepping(envs, actions)
        else:
            calls[name] = _receiving(envs, actions)
    return calls


def main() -> None:
    harness.pin_to_one_core()
    warnings.filterwarnings("ignore", ".*precision lowered by casting")  # EnvPool's spaces
    check_against_single_environments()
    check_against_gymnasium()
    metrics = {f"cartpole_{n}_envs": bench(n) for n in (64, 1024)}
    notes = []
    for name, measured in metrics.items():
        rates = [one.median for other, one in measured.items() if other.startswith("envpool")]
        if rates:
            ratio = measured["VectorEnv"].median / max(rates)
            notes.append(f"{name}: {ratio:.1f} times EnvPool at its best batch size")
        else:
            notes.append("EnvPool is not installed: not compared with it")
    harness.report(
        "vector_env_throughput",
        unit="env steps/s on one core",
        ours="VectorEnv",
        metrics=metrics,
        config={"env": "CartPole-v1", "actions": "random"},
        notes=tuple(dict.fromkeys(notes)),
    )


if __name__ == "__main__":
    main()
