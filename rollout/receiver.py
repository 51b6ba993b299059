"""The learner's end of the stream: a thread that receives while the learner trains.

It owns both sockets. Unrolls go by the inbox's verdict to the assembler; full batches go to the
learner; what host agents say goes to `Hosts`. What happened is told to the learner as events, in
one queue; what the learner wants comes the other way as requests.
"""

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from rollout.assembler import Arrival, Assembler, Placed
from rollout.cluster import Cluster
from rollout.errors import RunFailed
from rollout.events import Event, FleetFailed
from rollout.hosts import Hosts
from rollout.inbox import Inbox, Judgement
from rollout.learners.unroll import Batch
from rollout.ledger import LEARNER_DIED, RUN_ENDED, Ledger
from rollout.shares import Share
from rollout.wire import (
    Answer,
    Header,
    Kind,
    Malformed,
    Reply,
    Verdict,
    decode_header,
    encode_reply,
    routing_id,
)

log = logging.getLogger(__name__)
MOST_DRAINED = 100_000  # so that nobody can keep us from going on
MOST_MESSAGES = 10_000  # so that nobody can keep us with it; a host's actors may all die at once
MOST_AT_ONCE = 64  # unrolls received before the other sockets get a look
LOOK_EVERY_S = 0.5  # for the thread's death, while an answer is waited for


@dataclass(frozen=True)
class ReceiverStatistics:
    """Counts since the start. control_refused: messages no host agent of this run can have sent."""

    verdicts: dict[str, int]
    control_refused: int
    num_actors_alive: int
    num_actors: int
    actor_restarts: int
    memory_restarts: int
    host_restarts: int
    envs_set_aside: int
    episodes_lost: dict[str, int]


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint needs of the receiver, at one moment between two updates.

    env_state: after what was trained on, uint8 [num_envs, state_bytes]. state_fields: what each is
    made of (UnrollSchema). env_unrolls: of each environment, trained on: int64 [num_envs]. account:
    Account.state(). set_aside: environments. episodes_lost: by reason.
    """

    env_state: np.ndarray
    state_fields: str
    env_unrolls: np.ndarray
    account: dict[str, Any]
    set_aside: list[int]
    episodes_lost: dict[str, int]


class Receiver:
    """Receives for one run. `events` is for the learner to read; the methods are its to call."""

    def __init__(
        self,
        cluster: Cluster,
        inbox: Inbox,
        assembler: Assembler,
        events: "queue.SimpleQueue[Event]",
        failures_folder: Path,
        sets_aside: bool = False,
        set_aside: Sequence[int] = (),
    ) -> None:
        """failures_folder, sets_aside: see Hosts. set_aside: environments that are, already."""
        self.events = events
        self._cluster = cluster
        self._inbox = inbox
        self._assembler = assembler
        self._poller = zmq.Poller()
        self._watched: set[int] = set()
        self._hosts = Hosts(
            cluster,
            inbox,
            failures_folder,
            sets_aside,
            events.put,
            self._watch,
            self._unwatch,
            self._drain_unrolls,
        )
        self._hosts.set_aside.update(set_aside)
        self._logged: set[str] = set()
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Receiver({self._inbox!r}, {self._assembler!r}, {self._hosts!r})"

    def statistics(self) -> ReceiverStatistics:
        return ReceiverStatistics(
            verdicts=self._inbox.statistics().verdicts,
            control_refused=self._hosts.refused,
            num_actors_alive=len(self._hosts.alive),
            num_actors=self._hosts.num_actors,
            actor_restarts=self._hosts.actor_restarts,
            memory_restarts=self._hosts.memory_restarts,
            host_restarts=self._hosts.host_restarts,
            envs_set_aside=len(self._hosts.set_aside),
            episodes_lost=dict(self._inbox.states.episodes_lost),
        )

    # What the learner asks for

    def publish(self, version: int, weights: bytes) -> None:
        """Let the fleet have these weights (float32, flat)."""
        self._request(self._hosts.announce, version, weights)

    def trained(self, batch: Batch) -> None:
        """Count a batch as trained on, and have it filled again."""
        self._request(self._on_trained, batch)

    def stop_fleet(self) -> None:
        """End the actors; FleetStopped (or FleetFailed) follows."""
        self._request(self._hosts.stop)

    def end_account(self) -> Ledger:
        """The account of a fleet that has stopped: what was not trained on will never be."""
        return self._ask(self._end_account)

    def snapshot(self, is_last: bool = False) -> Snapshot:
        """What a checkpoint needs. is_last: the run ends with it."""
        return self._ask(lambda: self._snapshot(RUN_ENDED if is_last else LEARNER_DIED))

    def close(self) -> None:
        """End the thread."""
        self._request(None)
        self._thread.join()
        self._hosts.close()
        os.close(self._wake)

    def _request(self, action, *arguments) -> None:
        self._requests.put((action, arguments))
        os.eventfd_write(self._wake, 1)

    def _ask(self, question: Callable[[], Any]) -> Any:
        answers: queue.SimpleQueue = queue.SimpleQueue()
        self._request(lambda: answers.put(question()))
        while True:
            is_alive = self._thread.is_alive()  # asked first: its last answer may be on the way
            try:
                return answers.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                if not is_alive:
                    raise RunFailed("the receiver has failed; see run.log") from None

    # The thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            log.exception("the receiver failed")
            self.events.put(FleetFailed(RunFailed(f"the receiver failed: {error!r}; see run.log")))

    def _serve(self) -> None:
        unrolls, messages = self._cluster.unrolls, self._cluster.control
        for source in (unrolls, messages, self._wake):
            self._poller.register(source, zmq.POLLIN)
        while True:
            ready = dict(self._poller.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
                while not self._requests.empty():
                    action, arguments = self._requests.get()
                    if action is None:
                        return
                    action(*arguments)
            if messages in ready:
                self._receive_messages()
            if unrolls in ready:
                self._receive_unrolls()
            for end in self._watched.intersection(ready):
                self._hosts.on_end(end)
                self._share_out()

    def _watch(self, end: int) -> None:
        self._watched.add(end)
        self._poller.register(end, zmq.POLLIN)

    def _unwatch(self, end: int) -> None:
        self._watched.discard(end)
        self._poller.unregister(end)

    def _receive_messages(self) -> None:
        """All there are: what became of an actor was sent before its next life's hello."""
        with contextlib.suppress(zmq.Again):
            for _ in range(MOST_MESSAGES):
                sender, *frames = self._cluster.control.recv_multipart(zmq.NOBLOCK)
                self._hosts.on_message(sender, frames)
                self._share_out()

    # Unrolls

    def _receive_unrolls(self, most: int = MOST_AT_ONCE, is_drained: bool = False) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(most):
                sender, *parts = self._cluster.unrolls.recv_multipart(zmq.NOBLOCK, copy=False)
                self._on_unroll(sender.bytes, parts, is_drained)

    def _drain_unrolls(self) -> None:
        """What those who have ended have sent: all that has come in."""
        self._receive_unrolls(MOST_DRAINED, is_drained=True)

    def _on_unroll(self, sender: bytes, parts: list[zmq.Frame], is_drained: bool) -> None:
        """is_drained: a message of a host agent is being dealt with, no other may come between."""
        try:
            if len(parts) != 2:
                raise Malformed(f"{len(parts)} frames, wanted 2")
            payload = parts[1].buffer
            header = decode_header(parts[0].buffer, payload)
        except Malformed as error:
            self._inbox.count(Verdict.MALFORMED)
            self._log_once("unreadable", f"refused a message from {sender!r}: {error}")
            return
        if header.kind == Kind.HELLO and not is_drained:
            self._receive_messages()  # before anything can be given to the life that begins
        judgement = self._inbox.judge(header, sender, payload)
        if judgement.verdict == Verdict.DUPLICATE:
            self._reply(sender, Answer.ACKNOWLEDGED, header.sequence)
        elif judgement.verdict != Verdict.ACCEPTED:
            self._reply(sender, Answer.REFUSED, judgement.verdict)
            name, reason = judgement.verdict.name, judgement.reason
            why = f"{name} ({reason})" if reason else name
            self._log_once(name, f"refused a message as {why}: {header}")
        elif header.kind == Kind.HELLO:
            self._hosts.on_actor_hello(header.actor, judgement.lost)
            self._share_out()
        else:
            self._put(sender, header, judgement)

    def _put(self, sender: bytes, header: Header, judgement: Judgement) -> None:
        assert judgement.unroll is not None and judgement.env is not None
        arrival = Arrival(sender, header, judgement.unroll, judgement.env)
        self._on_placed(self._assembler.put(arrival))
        if self._inbox.shares.is_unsettled:
            self._share_out()

    def _on_placed(self, placed: Placed) -> None:
        for arrival in placed.acknowledge:
            self._inbox.acknowledge(arrival.header)
            self._reply(arrival.sender, Answer.ACKNOWLEDGED, arrival.header.sequence)
        for full in placed.full:
            full.ledger = self._ledger()
            self.events.put(full)

    def _share_out(self) -> None:
        """Give shares to all actors that ask, as far as there are any."""
        self._hosts.cut_anew()
        # A new life has a window of its own: it begins when its former lives' unrolls are in
        # batches, or the two together would be more than one window.
        grants = self._inbox.shares.grants(
            self._assembler.is_settled, self._assembler.is_settled_for
        )
        for actor, share in grants:
            self._welcome(actor, share)
        self._hosts.release()

    def _welcome(self, actor: int, share: Share) -> None:
        inbox = self._inbox
        envs = inbox.shares.order[share.first_env : share.first_env + share.num_envs]
        inbox.account.grant(actor, inbox.schema.unroll_length * share.num_envs)
        states = inbox.states.give(envs, share.cut, self._hosts.take_ending(actor))
        receiver = routing_id(actor, inbox.actors[actor].incarnation)
        place = (share.next_unroll, share.cut, share.first_env, share.num_envs)
        self._reply(receiver, Answer.WELCOME, *place, payload=states)

    def _reply(self, receiver: bytes, answer: Answer, *numbers: int, payload: bytes = b"") -> None:
        reply = encode_reply(Reply(answer, self._inbox.run, *numbers), payload)
        try:
            self._cluster.unrolls.send_multipart((receiver, reply, payload), zmq.NOBLOCK)
        except zmq.Again:  # it sends without reading, as no actor does
            self._log_once("unread", f"{receiver!r} does not read its answers")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:  # it is gone; its end is told by its host
                raise

    def _log_once(self, kind: str, text: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("%s; others like it are only counted", text)

    # The account

    def _on_trained(self, batch: Batch) -> None:
        self._inbox.states.train(batch)
        parts, placed = self._assembler.recycle(batch)
        self._inbox.account.train(parts)
        self._on_placed(placed)
        self._share_out()

    def _ledger(self, with_actors: bool = False) -> Ledger:
        self._hosts.observe()
        return self._inbox.account.ledger(with_actors)

    def _end_account(self) -> Ledger:
        self._drain_unrolls()
        self._hosts.observe()
        self._inbox.account.drop_missing()
        self._inbox.account.drop_held(self._assembler.held())
        return self._ledger(with_actors=True)

    def _snapshot(self, reason: str) -> Snapshot:
        self._hosts.observe()
        states = self._inbox.states
        return Snapshot(
            env_state=states.trained.copy(),
            state_fields=self._inbox.schema.state_fields,
            env_unrolls=states.num_trained.copy(),
            account=self._inbox.account.state(reason),
            set_aside=sorted(self._hosts.set_aside),
            episodes_lost=dict(states.episodes_lost),
        )
