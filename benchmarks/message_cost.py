"""What does it cost, at both ends together, to bring an unroll from an actor into a batch?

Processor time of an actor's end (header, crc32, ZeroMQ, credit) and of the learner's (ZeroMQ,
verdict, checks, copies into the batch), in two processes as in a run, per env step. Four actors,
CartPole's own unrolls; the same one again and again, but for the states behind it, which have to
go on. Baselines in the same run: ZeroMQ alone, with the same bytes and the same window, which
neither checks nor copies into a batch; and arrays pickled through a multiprocessing.Pipe.
"""

import multiprocessing
import queue
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import zmq

from rollout.acting import UnrollActor
from rollout.assembler import LockstepAssembler
from rollout.cluster import Cluster, make_plan
from rollout.env_states import EnvStates
from rollout.envs import Envs, find_env
from rollout.envs.philox import CLOCK
from rollout.experiment import Experiment
from rollout.inbox import Inbox
from rollout.learners.initialization import initial_parameters
from rollout.learners.unroll import COLUMNS, Batch, Unroll
from rollout.ledger import Account
from rollout.outbox import Outbox
from rollout.plan import HostPlan
from rollout.receiver import MOST_AT_ONCE, Receiver
from rollout.shares import Shares
from rollout.wire import ActorTimes

OURS = "rollout"
NUM_ACTORS = 4
SHAPES = ((16, 64), (64, 64), (128, 128))  # environments of an actor, steps of an unroll
REPEATS = 9
SECONDS = 0.4
WANTED_NS = 100
AHEAD = 2  # batches that actors may be ahead of the learner


class ClusterWithoutAgent(Cluster):
    """A run's sockets; the actors are ours."""

    def _start_agent(self, plan: HostPlan) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def plan_for(num_envs: int, unroll_length: int) -> HostPlan:
    """A run in which each of the actors has `num_envs` environments."""
    return make_plan(
        Experiment.from_dict(
            {
                "env": {"id": "CartPole-v1", "num_envs": NUM_ACTORS * num_envs},
                "fleet": {"num_actors": NUM_ACTORS, "unroll_length": unroll_length},
                "stop": {"env_steps": 1},
            }
        )
    )


def act_one(plan: HostPlan) -> tuple[bytes, int, int]:
    """A real unroll: its payload and the lengths of its tails."""
    envs = Envs(find_env(plan.env_source.id), plan.num_envs // NUM_ACTORS, seed=0)
    acting = UnrollActor(envs, plan.network, plan.schema)
    weights = initial_parameters(plan.network, 0)
    for _ in range(4):  # away from the start, where no episode has ended yet
        acting.act(weights)
    payload = acting.act(weights)
    return bytes(payload), acting.buffer.num_finals, acting.buffer.num_episodes


# The actors' side: a process that sends rounds of one message per actor, and says what it spent


def serve_rounds(send_round: Callable[[], None], pipe) -> None:
    while rounds := pipe.recv():
        before = time.process_time()
        for _ in range(rounds):
            send_round()
        pipe.send(time.process_time() - before)


class Sender:
    """One actor: its outbox, and an unroll of which only the states change."""

    def __init__(self, plan: HostPlan, actor: int, payload: bytes, counts: tuple[int, int]) -> None:
        self._outbox = Outbox(plan, actor, 0)
        share = self._outbox.wait_assignment((0, 0))
        self._policy_lag, self._counts = plan.policy_lag, counts
        self._payload = memoryview(bytearray(payload))
        unroll = Unroll.view(plan.schema, self._payload, share.num_envs, *counts)
        states = np.frombuffer(share.states, np.uint8)
        unroll.env_state[:] = states.reshape(unroll.env_state.shape)
        clocks = np.ndarray(
            share.num_envs, CLOCK, unroll.env_state, strides=(states.size // share.num_envs,)
        )
        self._episode, self._t = clocks["episode"], clocks["t"]
        ended = unroll.terminated | unroll.truncated
        self._num_ends = np.count_nonzero(ended, axis=0).astype(np.uint32)
        # Steps by which a clock goes on where nothing ends; where something does it says the same.
        self._steps = np.where(ended.any(axis=0), 0, len(ended)).astype(np.uint32)
        self._t[:] = np.where(ended.any(axis=0), ended[::-1].argmax(axis=0), self._t)

    def send(self, unroll_index: int) -> None:
        self._outbox.wait_credit()
        self._episode += self._num_ends
        self._t += self._steps
        version = max(0, unroll_index - self._policy_lag)
        self._outbox.send(self._payload, unroll_index, version, *self._counts, ActorTimes(0, 0, 0))

    def close(self) -> None:
        self._outbox.close()


def run_outboxes(pipe, ahead, plan: HostPlan, payload: bytes, *counts: int) -> None:
    """ahead: a semaphore in place of weights, without which actors do not run ahead."""
    num_finals, num_episodes = counts
    senders = [Sender(plan, a, payload, (num_finals, num_episodes)) for a in range(NUM_ACTORS)]
    unroll_index = 0

    def send_round() -> None:
        nonlocal unroll_index
        ahead.acquire()
        for sender in senders:
            sender.send(unroll_index)
        unroll_index += 1

    serve_rounds(send_round, pipe)
    for sender in senders:
        sender.close()


def run_raw(pipe, endpoint: str, window: int, payload: bytes) -> None:
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(NUM_ACTORS)]
    unacknowledged = dict.fromkeys(sockets, 0)
    for socket in sockets:
        socket.connect(endpoint)

    def send_round() -> None:
        for socket in sockets:
            if unacknowledged[socket] == window:
                socket.recv()
                unacknowledged[socket] -= 1
            socket.send(payload)
            unacknowledged[socket] += 1

    serve_rounds(send_round, pipe)
    context.destroy(linger=0)


def run_pickle(pipe, data, arrays: dict[str, np.ndarray]) -> None:
    def send_round() -> None:
        for _ in range(NUM_ACTORS):
            data.send(arrays)

    serve_rounds(send_round, pipe)


# The learner's side: `receive_round` returns when a round has arrived


class Way:
    """One way to bring unrolls over, with a process at its other end."""

    def __init__(self, receive_round: Callable[[], object], run, *arguments) -> None:
        self._receive_round = receive_round
        processes = multiprocessing.get_context("spawn")
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=run, args=(theirs, *arguments), daemon=True)
        self._process.start()

    def cpu_seconds(self, rounds: int) -> float:
        """Of both ends, for so many rounds."""
        before = time.process_time()
        self._pipe.send(rounds)
        for _ in range(rounds):
            self._receive_round()
        ours = time.process_time() - before
        return ours + self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(0)
        self._process.join()


def check(batch: Batch, plan: HostPlan, payload: bytes, counts: tuple[int, int]) -> None:
    """The batch holds the unroll of every actor."""
    num_envs = plan.num_envs // NUM_ACTORS
    unroll = Unroll.view(plan.schema, payload, num_envs, *counts)
    for actor in range(NUM_ACTORS):
        columns = slice(actor * num_envs, (actor + 1) * num_envs)
        for name in COLUMNS:
            np.testing.assert_array_equal(
                getattr(batch, name)[:, columns], getattr(unroll, name), err_msg=name
            )
    assert len(batch.episode_t) == NUM_ACTORS * counts[1]
    assert batch.env.tolist() == list(range(plan.num_envs))


def make_inbox(plan: HostPlan) -> Inbox:
    """A learner's, to which the host agent has said that its actors are there."""
    inbox = Inbox(
        run=plan.run,
        schema=plan.schema,
        choices=plan.network.head.choices,
        policy_lag=plan.policy_lag,
        shares=Shares(plan.num_envs, 0, is_lockstep=True),
        states=EnvStates(plan.num_envs, plan.schema.state_bytes, plan.seed),
        account=Account(plan.window),
    )
    inbox.num_actors = NUM_ACTORS
    inbox.account.add_actors(NUM_ACTORS)
    inbox.shares.join(range(NUM_ACTORS))
    inbox.newest_version = 2**62  # no weights are published here
    return inbox


def measure(num_envs: int, unroll_length: int, folder: Path) -> dict[str, harness.Measurement]:
    """Rates for actors with so many environments each."""
    plan = plan_for(num_envs, unroll_length)
    payload, *tails = act_one(plan)
    counts = (tails[0], tails[1])
    cluster = ClusterWithoutAgent(plan, folder / "log")
    # A batch is given back when the receiver's thread next looks, which may be some rounds later.
    spare = MOST_AT_ONCE // NUM_ACTORS
    batches = [Batch(plan.schema, plan.num_envs) for _ in range(AHEAD + spare + 1)]
    ahead = multiprocessing.get_context("spawn").Semaphore(AHEAD)
    assembler = LockstepAssembler(batches)
    receiver = Receiver(cluster, make_inbox(plan), assembler, queue.SimpleQueue(), folder)

    def receive_batch() -> Batch:
        batch = receiver.events.get(timeout=30).batch  # type: ignore[union-attr]
        receiver.trained(batch)
        ahead.release()
        return batch

    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    endpoint = f"ipc://{folder}/raw-{num_envs}"
    router.bind(endpoint)

    def receive_raw() -> None:
        for _ in range(NUM_ACTORS):
            sender, _ = router.recv_multipart(copy=False)
            router.send_multipart((sender.bytes, b"ok"))

    ours_end, data_end = multiprocessing.Pipe(duplex=False)
    unroll = Unroll.view(plan.schema, payload, num_envs, *counts)
    arrays = {name: getattr(unroll, name) for name in COLUMNS}
    ways = {
        OURS: Way(receive_batch, run_outboxes, ahead, plan, payload, *counts),
        "ZeroMQ alone": Way(receive_raw, run_raw, endpoint, plan.window, payload),
        "pickle through a Pipe": Way(
            lambda: [ours_end.recv() for _ in range(NUM_ACTORS)], run_pickle, data_end, arrays
        ),
    }
    steps = NUM_ACTORS * num_envs * unroll_length
    rounds = max(5, round(SECONDS / (steps * 150e-9)))
    ways[OURS].cpu_seconds(5)
    check(batches[-1], plan, payload, counts)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            rates[name].append(steps * rounds / way.cpu_seconds(rounds))
    for way in ways.values():
        way.close()
    context.destroy(linger=0)
    receiver.close()
    cluster.close()
    return {name: harness.Measurement(tuple(values)) for name, values in rates.items()}


def main() -> None:
    metrics, notes = {}, []
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        for num_envs, unroll_length in SHAPES:
            steps = num_envs * unroll_length
            measured = measure(num_envs, unroll_length, Path(folder))
            metrics[f"unrolls_of_{steps}_steps"] = measured
            ns = 1e9 / measured[OURS].median
            notes.append(
                f"unrolls of {steps} steps: {ns:.0f} ns per env step, {ns * steps / 1000:.0f} µs "
                f"per message (wanted: at most {WANTED_NS} ns)"
            )
    harness.report(
        "message_cost",
        unit="env steps per second of processor time, both ends",
        ours=OURS,
        metrics=metrics,
        config={"env": "CartPole-v1", "num_actors": NUM_ACTORS},
        notes=tuple(notes),
    )


if __name__ == "__main__":
    main()
