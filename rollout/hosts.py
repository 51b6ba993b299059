"""The learner's side of its host agents: who is there, what their actors died of, what follows.

Used by the receiver's thread only, which owns the sockets. Every host has a range of actor numbers
for as long as the run lasts; a host agent that dies is started again under the same numbers if it
is this machine's, and its environments go to the others if it came from elsewhere.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import zmq

from rollout import control, run_places
from rollout.cluster import Cluster
from rollout.env_states import MEMORY, OTHER
from rollout.envs.errors import EnvError
from rollout.errors import RunFailed
from rollout.events import Event, FleetFailed, FleetStopped, Notice, PhaseChanged
from rollout.failing_envs import FailingEnvs, ending
from rollout.host_memory import NOWHERE, HostPage
from rollout.inbox import LIVES_PER_AGENT, NO_LIFE, Inbox
from rollout.published_weights import PublishedWeights
from rollout.supervisor import how_ended

log = logging.getLogger(__name__)

LAST_WORDS_MS = 100  # for what an agent sent before it ended to come in
MOST_LAST_WORDS_S = 2.0  # for all of it, whoever else is talking
MOST_ACTORS = 1 << 20  # of one host
DEATH_S = 2.0  # for the processes of a dead agent to end, which the kernel sees to
MOST_AGENT_RESTARTS = 3  # without an unroll in between


@dataclass
class Host:
    """A host agent. routing_id: of its control socket. end: readable once it has ended."""

    routing_id: bytes
    pid: int
    actors: range
    page: HostPage
    memory_directory: Path
    end: int
    is_local: bool
    newest_pulled: int = NOWHERE
    is_leaving: bool = False
    is_told_to_stop: bool = False
    has_stopped: bool = False


class Hosts:
    """All host agents of a run.

    failures_folder: for files that replay what an environment did. watch, unwatch: of a file
    descriptor, by the receiver's poller.
    """

    def __init__(
        self,
        cluster: Cluster,
        inbox: Inbox,
        failures_folder: Path,
        sets_aside: bool,
        put_event: Callable[[Event], None],
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
        drain_unrolls: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._inbox = inbox
        self._sets_aside = sets_aside
        self._put_event = put_event
        self._watch, self._unwatch, self._drain_unrolls = watch, unwatch, drain_unrolls
        self._hosts: dict[bytes, Host] = {}
        plan = cluster.plan
        self._weights = PublishedWeights(plan.policy_lag if plan.is_lockstep else 0)
        self._failing = FailingEnvs(plan, inbox.states, self._weights, failures_folder)
        self._agent_lives = 0
        self._unrolls_at_restart = -1
        self._vain_restarts = 0
        self._num_actors = cluster.plan.num_actors
        self._is_stopping = self._is_local_over = self._is_over = False
        self._logged: set[str] = set()
        self._endings: dict[int, str] = {}  # of former lives, by actor
        self.alive: set[int] = set()
        self.actor_restarts = 0
        self.memory_restarts = 0  # of those
        self.host_restarts = 0
        self.set_aside: set[int] = set()  # environments
        self.refused = 0
        watch(cluster.agent_end)

    def __repr__(self) -> str:
        return f"Hosts({len(self._hosts)} hosts, {len(self.alive)} actors alive)"

    @property
    def num_actors(self) -> int:
        """Actors that have shares, or are to have some; before the first agent came: wanted."""
        return self._inbox.shares.num_members or self._cluster.plan.num_actors

    # What the learner wants

    def announce(self, version: int, weights: bytes) -> None:
        """Let all hosts have these weights."""
        self._weights.put(version, weights, self._versions_in_use())
        self._inbox.newest_version = max(version, self._inbox.newest_version)
        announcement = self._weights.announcement(version)
        for host in self._hosts.values():
            self._tell(host.routing_id, announcement)

    def stop(self) -> None:
        """End all actors; FleetStopped follows."""
        self._is_stopping = True
        for host in self._hosts.values():
            self._tell_to_stop(host)
        self._check_over()

    # What the receiver hears

    def cut_anew(self) -> None:
        """Share the environments out anew, if actors have come or gone."""
        shares = self._inbox.shares
        cut = shares.cut_anew(self._inbox.newest_version + self._cluster.plan.policy_lag + 1)
        if cut is not None:
            for host in self._hosts.values():
                self._tell(host.routing_id, control.Cut(cut.number, cut.first_unroll))

    def release(self) -> None:
        """End the hosts that want to leave and have nothing to do any more."""
        shares = self._inbox.shares
        for host in self._hosts.values():
            if host.is_leaving and not host.is_told_to_stop and not shares.is_unsettled:
                self._tell_to_stop(host)

    def observe(self) -> None:
        """Bring the account up to what the hosts' pages say."""
        for host in self._hosts.values():
            if not host.has_stopped:
                page = host.page
                self._inbox.account.observe(
                    host.actors.start, page.produced(), page.produced_steps()
                )

    def on_message(self, agent: bytes, frames: list[bytes]) -> None:
        """A message on the control socket."""
        try:
            message = control.decode_to_learner(frames[0])
        except (IndexError, msgspec.DecodeError) as error:
            self._refuse("unreadable", f"{agent!r}: {error}"[:1000])
            return
        host = self._hosts.get(agent)
        if isinstance(message, control.Hello):
            if host is None and message.run == self._cluster.plan.run:
                self._on_hello(agent, message)
            else:
                self._refuse("Hello", f"{agent!r}: {message}"[:1000])
        elif host is None or not self._is_possible(host, message):
            self._refuse(type(message).__name__, f"{agent!r}: {message}"[:1000])
        else:
            self._on_host_message(host, message)

    def on_actor_hello(self, actor: int, lost: int) -> None:
        """A new life of an actor has begun; `lost` unrolls died with the former one."""
        failing = self._failing.settle(actor, lost)
        if failing is None or failing.env in self.set_aside:
            return
        shares = self._inbox.shares
        if self._sets_aside and failing.env != NOWHERE and shares.num_envs > shares.group:
            self.set_aside.update(shares.set_aside(failing.env))
            self._notice(f"{failing.text}; it is set aside")
        else:
            self._fail(failing.text)

    def take_ending(self, actor: int) -> str:
        """How the actor's former life ended, said once."""
        return self._endings.pop(actor, OTHER)

    def on_end(self, end: int) -> None:
        """A process that was watched has ended."""
        self._unwatch(end)
        deadline_s = time.monotonic() + MOST_LAST_WORDS_S
        while time.monotonic() < deadline_s and self._cluster.control.poll(LAST_WORDS_MS):
            sender, *frames = self._cluster.control.recv_multipart()
            self.on_message(sender, frames)
        is_local = end == self._cluster.agent_end
        host = next((host for host in self._hosts.values() if host.end == end), None)
        if host is not None:
            self._forget(host)
        if is_local:
            self._is_local_over = True
            if not self._is_stopping:
                self._restart_agent()
        self._check_over()

    def close(self) -> None:
        for host in self._hosts.values():
            if not host.is_local:
                os.close(host.end)

    # Hosts

    def _on_hello(self, agent: bytes, message: control.Hello) -> None:
        is_local = message.pid == self._cluster.agent_pid
        directory = Path(message.memory_directory)
        try:
            self._check_offer(message, directory, is_local)
            page = HostPage(directory / "page", message.num_actors)
            end = self._cluster.agent_end if is_local else os.pidfd_open(message.pid)
        except (OSError, ValueError, OverflowError) as error:
            self._refuse("Hello", f"{agent!r}: {error}: {message}"[:1000])
            return
        if is_local:
            actors = range(self._cluster.plan.num_actors)
            first_incarnation = self._agent_lives * LIVES_PER_AGENT
        else:
            actors = range(self._num_actors, self._num_actors + message.num_actors)
            self._num_actors = actors.stop
            first_incarnation = 0
            self._watch(end)
            self._notice(f"{len(actors)} more actors, of process {message.pid}")
        host = Host(agent, message.pid, actors, page, directory, end, is_local)
        self._hosts[agent] = host
        self._inbox.num_actors = max(self._inbox.num_actors, actors.stop)
        self._inbox.account.add_actors(actors.stop)
        self._inbox.first_incarnation.update(dict.fromkeys(actors, first_incarnation))
        self._tell(agent, control.Take(actors.start, first_incarnation))
        cut = self._inbox.shares.cut
        if cut.number:  # its page is new, and the shares to finish before this cut are older
            self._tell(agent, control.Cut(cut.number, cut.first_unroll))
        for announcement in self._weights.announcements():
            self._tell(agent, announcement)
        if self._is_stopping:
            self._tell_to_stop(host)
        elif is_local:
            self._inbox.shares.join(actors)

    def _check_offer(self, message: control.Hello, directory: Path, is_local: bool) -> None:
        """Raise ValueError if this is no host of this run, or one that has said hello already.

        Its directory will be removed when it has ended, so it had better be one of ours.
        """
        plan = self._cluster.plan
        if is_local:
            offer = (message.num_actors, message.memory_directory)
            if offer != (plan.num_actors, plan.memory_directory):
                raise ValueError("not what this machine's host agent was started with")
        elif not 1 <= message.num_actors <= MOST_ACTORS:
            raise ValueError(f"num_actors={message.num_actors}, wanted 1 to {MOST_ACTORS}")
        elif not run_places.is_ours(directory, plan.name):
            raise ValueError("not a directory that a host of this run has made")
        for host in self._hosts.values():
            if message.pid == host.pid or directory == host.memory_directory:
                raise ValueError(f"process {host.pid} has said hello from there already")

    def _on_host_message(self, host: Host, message: control.ToLearner) -> None:
        match message:
            case control.Pull():
                self._on_pull(host, message.version)
            case control.Leave():
                host.is_leaving = True
                self._notice(f"{len(host.actors)} actors leave, of process {host.pid}")
                self._inbox.shares.leave(host.actors)
                self._check_members()
            case control.Ready():
                if not host.is_local:  # not before: the others would wait for them to act
                    if not host.is_leaving:
                        self._inbox.shares.join(host.actors)
                elif self._agent_lives == 0:
                    text = f"compiled in {message.compile_s:.1f} s; forking actors"
                    self._put_event(PhaseChanged(text))
                    if message.notice:
                        self._notice(message.notice)
            case control.ActorStarted():
                self.alive.add(message.actor)
            case control.ActorEnded():
                self._on_actor_end(host, message)
            case control.TemplateEnded():
                self._notice(f"{message.how}; another is started")
            case control.GaveUp():
                self._on_giving_up(message)
            case control.Unprepared():
                self._on_unprepared(host, message)
            case control.Failed():
                self._lose(host, message.reason)
            case control.Stopped():
                host.has_stopped = True
                self._inbox.account.observe(
                    host.actors.start, *_arrays(message.produced, message.produced_steps)
                )
                self.alive.difference_update(host.actors)
                self._check_over()

    def _is_possible(self, host: Host, message: control.ToLearner) -> bool:
        """Whether this host's agent can have said that."""
        newest = self._inbox.newest_version
        match message:
            case control.Pull():
                return host.newest_pulled < message.version <= newest
            case control.Leave():
                return not (host.is_local or host.is_leaving)
            case control.ActorStarted() | control.GaveUp():
                return message.actor in host.actors
            case control.ActorEnded():
                return (
                    message.actor in host.actors
                    and message.actor in self.alive
                    and NOWHERE <= message.place < self._cluster.plan.num_envs
                    and NOWHERE <= message.t < self._cluster.plan.schema.unroll_length
                    and (message.t < 0 or 0 <= message.weights_version <= newest)
                    and NOWHERE <= message.episode < 2**31
                    and NOWHERE <= message.episode_t < 2**31
                    and message.outgrown_bytes >= 0
                )
            case control.Stopped():
                counts = (message.produced, message.produced_steps)
                return (host.is_told_to_stop and not host.has_stopped) and all(
                    len(each) == len(host.actors) and min(each) >= 0 and max(each) < 2**62
                    for each in counts
                )
            case _:
                return True

    def _forget(self, host: Host) -> None:
        """A host's agent has ended, and its actors with it: close its account."""
        if not run_places.wait_unheld(host.memory_directory, DEATH_S):
            log.warning("processes of host agent %d have outlived it", host.pid)
        self._drain_unrolls()
        page = host.page
        self._inbox.account.settle_host(host.actors.start, page.produced(), page.produced_steps())
        shutil.rmtree(host.memory_directory, ignore_errors=True)
        if not (self._is_stopping or host.is_told_to_stop):
            self.actor_restarts += len(self.alive.intersection(host.actors))
        self.alive.difference_update(host.actors)
        for actor in host.actors:
            self._failing.forget(actor)
            self._inbox.first_incarnation[actor] = NO_LIFE
        del self._hosts[host.routing_id]
        if host.is_local:
            return
        os.close(host.end)
        if not self._is_stopping:
            if not host.has_stopped:
                self._notice(f"process {host.pid} ended, and {len(host.actors)} actors with it")
            self._give_up(host.actors)

    def _restart_agent(self) -> None:
        unrolls = int(self._inbox.states.num_unrolls.sum())
        self._vain_restarts = self._vain_restarts + 1 if unrolls == self._unrolls_at_restart else 0
        self._unrolls_at_restart = unrolls
        if self._vain_restarts >= MOST_AGENT_RESTARTS:
            self._fail("the host agent process ended again and again; see run.log")
            return
        self.host_restarts += 1
        self._agent_lives += 1
        self._notice("the host agent process ended; another is started")
        try:
            self._cluster.restart_agent()
        except Exception as error:
            self._fail(f"the host agent process ended, and no other can be started: {error}")
            return
        self._is_local_over = False
        self._watch(self._cluster.agent_end)

    def _tell_to_stop(self, host: Host) -> None:
        host.is_told_to_stop = True
        self._tell(host.routing_id, control.Stop())

    def _check_over(self) -> None:
        """Once every host has given its last account, or has ended, the fleet has stopped."""
        is_over = self._is_stopping and all(host.has_stopped for host in self._hosts.values())
        has_local = self._is_local_over or any(host.is_local for host in self._hosts.values())
        if is_over and not self._is_over and (has_local or self._inbox.num_actors == 0):
            self._is_over = True
            self._put_event(FleetStopped())

    # Actors

    def _on_actor_end(self, host: Host, ended: control.ActorEnded) -> None:
        self.alive.discard(ended.actor)
        if self._is_stopping or host.is_told_to_stop:
            return
        self.actor_restarts += 1
        self._endings[ended.actor] = MEMORY if ended.outgrown_bytes else ending(ended)
        text = f"actor {ended.actor} (process {ended.pid}) {how_ended(ended)}"
        if ended.outgrown_bytes:
            self._on_outgrown(text)
            return
        share = self._inbox.shares.of(ended.actor)
        is_env_failure = ended.hung_s > 0 or ended.status not in (-signal.SIGKILL, -signal.SIGTERM)
        if share is not None and is_env_failure and ended.t >= 0 and ended.place < share.num_envs:
            # A vector environment fails as a whole; the first of its environments stands for it.
            env = int(self._inbox.shares.order[share.first_env + max(0, ended.place)])
            self._failing.suspect(env, ended)
            text += f", in {self._failing.place(env, ended)}"
        self._notice(text)

    def _on_outgrown(self, text: str) -> None:
        """People are told of the first one; the rest is in the log, and in metrics."""
        self.memory_restarts += 1
        if self.memory_restarts == 1:
            self._notice(f"{text} (fleet.max_actor_memory); it begins anew, as will others")
        else:
            log.warning(text)

    def _on_giving_up(self, message: control.GaveUp) -> None:
        self._notice(f"actor {message.actor} is given up; it first {message.first_error}")
        self._give_up(range(message.actor, message.actor + 1))
        self._check_members(f"; actor {message.actor} {message.first_error}")

    def _check_members(self, why: str = "") -> None:
        if not self._inbox.shares.num_members:
            self._fail(f"no actor is left{why}")

    def _give_up(self, actors: range) -> None:
        """These will not come back: others take their environments."""
        self._inbox.shares.leave(actors)
        self._inbox.shares.end(actors)

    def _on_unprepared(self, host: Host, message: control.Unprepared) -> None:
        if not host.is_local:
            self._notice(f"process {host.pid} could not prepare: {message.error}")
        elif message.is_authors and self._agent_lives == 0:
            self._put_event(FleetFailed(EnvError(message.error)))
        else:
            self._fail(f"the environment could not be prepared: {message.error}")

    def _lose(self, host: Host, reason: str) -> None:
        if host.is_local:
            self._fail(reason)
        else:
            self._notice(f"process {host.pid}: {reason}")
            self._tell_to_stop(host)

    # Weights

    def _on_pull(self, host: Host, version: int) -> None:
        host.newest_pulled = version  # each is sent once: they are large
        if version in self._weights:
            self._tell(host.routing_id, control.Weights(version), self._weights.get(version))
        else:  # it was announced, but newer ones have taken its place (async)
            self._tell(host.routing_id, self._weights.announcement(self._weights.newest))

    def _tell(self, agent: bytes, message: control.ToAgent, *frames: bytes) -> None:
        try:
            self._cluster.control.send_multipart((agent, control.encode(message), *frames))
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:  # it is gone; its end is noticed
                raise

    def _versions_in_use(self) -> set[int]:
        """What actors may be acting with, or have died of."""
        in_use = self._failing.versions
        if not self._cluster.plan.is_lockstep:
            for host in self._hosts.values():
                in_use.update(np.unique(host.page.slots["version"]).tolist())
        return in_use

    # What people are told

    def _fail(self, reason: str) -> None:
        if not self._is_stopping:
            self._put_event(FleetFailed(RunFailed(reason)))

    def _notice(self, text: str) -> None:
        log.warning(text)
        self._put_event(Notice(text))

    def _refuse(self, kind: str, text: str) -> None:
        self.refused += 1
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("refused a control message of %s; others like it are only counted", text)


def _arrays(produced: list[int], produced_steps: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(produced, np.int64), np.array(produced_steps, np.int64)
