"""The host agent: one per machine, no torch; it owns the lives of its actors.

It starts the template, has it fork the host's actors, starts anew whoever dies, kills who hangs,
keeps the weights where actors can map them, and tells the learner of every death. When the learner
is gone, however that came about, it kills template and actors, removes what the run has left, and
ends. The learner starts it as `python -P -m rollout.host`, with the plan on standard input.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import zmq

from rollout import control, processes, run_places
from rollout.hang_killer import HangKiller, Life
from rollout.host_memory import NOWHERE, HostPage, WeightsFiles
from rollout.host_weights import HostWeights
from rollout.plan import HostPlan, HostStart, read_record
from rollout.sizes import show_size
from rollout.supervisor import Lives, Supervisor, how_ended
from rollout.template_process import TemplateProcess

ROOM_FOR_MESSAGES = 1 << 16  # bytes; weights are the largest thing a learner sends
REAP_S = 0.01  # between two looks for those that a dead template has left
LAST_REAP_S = 10.0  # for what has been killed to be gone at the end, thousands perhaps
MOST_OUTGROWN = 3  # lives in a row whose memory has grown too far in the first unroll
MOST_FORKING = 256  # actors asked for and not there yet: neither pipe can fill up


def main() -> None:
    processes.set_name("rollout-host")
    processes.ignore_interrupts()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as with Ctrl-C: the learner decides
    processes.raise_open_files_limit()
    learner = sys.stdin.fileno()
    start = read_record(learner, HostStart)
    if start is None:
        return
    plan = start.plan
    try:
        agent = HostAgent(plan, learner, start.env, start.network)
        try:
            agent.run()
        finally:
            agent.close()
    finally:
        shutil.rmtree(plan.memory_directory, ignore_errors=True)
        if processes.is_readable(learner):  # it is gone, and cannot do that itself
            shutil.rmtree(plan.socket_directory, ignore_errors=True)


class HostAgent:
    """One host's part in a run; must be made and run by its process's main thread.

    It takes care of every child that its process gets from now on. learner_end: becomes readable
    when the learner is gone. env, network: see HostStart.
    """

    def __init__(
        self,
        plan: HostPlan,
        learner_end: int | None = None,
        env: bytes = b"",
        network: bytes = b"",
    ) -> None:
        self._plan = plan
        self._given = env, network
        self._learner_end = learner_end
        self._not_ours = processes.children()
        processes.adopt_orphans()
        memory = Path(plan.memory_directory)
        self._hold = run_places.hold(memory)
        self._page = HostPage(memory / "page", plan.num_actors, create=True)
        self._weights = HostWeights(plan, self._page, WeightsFiles(memory), self._tell)
        jitter = random.Random()  # hosts must not go in step
        self._supervisor = Supervisor(plan.num_actors, jitter)
        self._hangs = HangKiller(self._page, plan.hang_s)
        self._template_lives = Lives(jitter)
        self._take: control.Take | None = None
        self._next_incarnation = [0] * plan.num_actors
        self._lives: dict[int, Life] = {}  # by pid
        self._forking: set[int] = set()  # slots
        self._outgrown: dict[int, int] = {}  # by slot: lives in a row whose memory grew at once
        self._is_over = self._is_leaving = self._has_been_ready = False
        self._is_hopeless = False  # no other template will do better
        self._start_template_at_s: float | None = None
        self._orphans_ends: dict[int, int] = {}  # how they ended, by pid
        self._poller = zmq.Poller()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._template: TemplateProcess | None = None
        self._start_template()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 1000)  # the last words
        self._socket.set(zmq.MAXMSGSIZE, 4 * plan.network.num_parameters + ROOM_FOR_MESSAGES)
        self._socket.connect(plan.control_endpoint)
        for source in (self._socket, self._wake, self._learner_end):
            if source is not None:
                self._poller.register(source, zmq.POLLIN)
        self._tell(control.Hello(plan.run, os.getpid(), plan.num_actors, plan.memory_directory))

    def __repr__(self) -> str:
        return f"HostAgent({len(self._lives)} of {self._plan.num_actors} actors, {self._template})"

    def run(self) -> None:
        """Serve until told to stop, or until the learner is gone."""
        while not self._is_over:
            ready = dict(self._poller.poll(self._timeout_ms()))
            if self._learner_end in ready:
                return
            if self._wake in ready:
                os.eventfd_read(self._wake)
                self._tell(control.Leave())
            template = self._template
            if template is not None and template.reports in ready:
                if not self._on_reports(template):  # all who could report have ended
                    self._poller.unregister(template.reports)
            elif template is not None and template.end in ready:
                self._on_template_end(template)
            if self._socket in ready:
                self._on_message(self._socket.recv_multipart())
            self._do_what_is_due()

    def leave(self) -> None:
        """Ask the learner to do without this host, whereupon `run` ends. For signal handlers."""
        if not self._is_leaving:
            self._is_leaving = True
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End template and actors; their reaping is over when this returns."""
        self._end_processes()
        self._context.destroy(linger=1000)
        for descriptor in (self._wake, self._hold):
            os.close(descriptor)

    def _end_processes(self) -> None:
        if self._template is not None:
            self._unwatch(self._template)
            self._template.stop()
            self._template = None
        self._start_template_at_s = None
        deadline = time.monotonic() + LAST_REAP_S
        while self._kill_orphans() and time.monotonic() < deadline:
            time.sleep(REAP_S)

    def _tell(self, message: control.ToLearner) -> None:
        self._socket.send(control.encode(message))

    # Time

    def _timeout_ms(self) -> int | None:
        """Until there is something to do that nobody tells us of."""
        times = [
            self._start_template_at_s,
            self._weights.next_due_s(),
        ]
        if self._can_fork():
            times.append(self._supervisor.next_due_s())
        if self._lives:
            times.append(self._hangs.next_due_s())
        now_s = time.monotonic()
        if self._template is not None and self._template.has_ended:
            times.append(now_s + REAP_S)
        first_s = min((at_s for at_s in times if at_s is not None), default=None)
        return None if first_s is None else max(0, int(1000 * (first_s - now_s)) + 1)

    def _do_what_is_due(self) -> None:
        now_s = time.monotonic()
        self._weights.write_due(now_s)
        if self._template is not None and self._template.has_ended:
            self._on_template_end(self._template)
        if self._start_template_at_s is not None and self._start_template_at_s <= now_s:
            self._start_template()
        if self._can_fork():
            for slot in self._supervisor.take_due(now_s, MOST_FORKING - len(self._forking)):
                self._fork(slot)
        if self._template is not None and self._lives:
            self._hangs.do_what_is_due(now_s, self._lives.values(), self._template)

    # The template

    def _start_template(self) -> None:
        self._start_template_at_s = None
        self._template = TemplateProcess(HostStart(self._plan, *self._given))
        self._poller.register(self._template.reports, zmq.POLLIN)
        self._poller.register(self._template.end, zmq.POLLIN)

    def _unwatch(self, template: TemplateProcess) -> None:
        for source in (template.reports, template.end):
            with contextlib.suppress(KeyError):
                self._poller.unregister(source)

    def _on_reports(self, template: TemplateProcess) -> bool:
        """Whether more may come."""
        while template.has_report():
            report = read_record(template.reports, control.FromTemplate)
            if report is None:
                return False
            self._on_report(template, report)
        return True

    def _on_report(self, template: TemplateProcess, report: control.FromTemplate) -> None:
        match report:
            case control.Ready():
                template.is_ready = True
                if not self._has_been_ready:  # what comes later is news to nobody
                    self._has_been_ready = True
                    self._tell(report)
            case control.Unprepared():
                self._is_hopeless = True
                self._tell(report)
            case control.ActorStarted():
                slot = report.actor - self._first_actor
                self._forking.discard(slot)
                self._lives[report.pid] = Life(report.actor, report.incarnation, slot, report.pid)
                self._tell(report)
            case control.NotForked():
                self._forking.discard(report.actor - self._first_actor)
                self._supervise(report.actor, f"could not be forked: {report.error}")
            case control.ActorError():
                if report.pid in self._lives:
                    life = self._lives[report.pid]
                    life.error, life.raised_at = report.error, report.raised_at
            case control.ActorOutgrew():
                if report.pid in self._lives:
                    self._lives[report.pid].outgrew = report
            case control.ActorPaused():
                if report.pid in self._lives:
                    paused_ns = time.monotonic_ns() if report.is_paused else 0
                    self._lives[report.pid].paused_ns = paused_ns
            case control.ActorExited():
                self._on_actor_end(report.pid, report.status)

    def _on_template_end(self, template: TemplateProcess) -> None:
        """It has died. The kernel kills its actors with it; the next one has to wait for that."""
        self._unwatch(template)
        how = template.wait()
        if self._kill_orphans():
            return  # and comes back here
        self._on_reports(template)
        template.close()
        self._template = None
        unstarted = self._forking | {life.slot for life in self._lives.values()}
        for pid in list(self._lives):
            self._end_life(pid, self._orphans_ends.get(pid, -signal.SIGKILL))
        self._orphans_ends.clear()
        self._forking.clear()
        self._tell(control.TemplateEnded(how))
        if self._is_hopeless:
            return
        now_s = time.monotonic()
        self._supervisor.begin(unstarted, now_s)
        delay_s = self._template_lives.end(int(self._page.produced().sum()), how)
        if delay_s is None:
            self._is_hopeless = True
            first = self._template_lives.first_error
            self._tell(control.Failed(f"no template process lives for long; the first: {first}"))
        else:
            self._start_template_at_s = now_s + delay_s

    def _kill_orphans(self) -> bool:
        """End the children that are not the template; whether there are some left to be reaped.

        They are what a dead actor or template had started: actors, and processes of environments.
        """
        orphans = processes.children() - self._not_ours
        if self._template is None or self._template.has_ended:
            orphans |= self._lives.keys() - self._orphans_ends.keys()
        if self._template is not None:
            orphans.discard(self._template.pid)  # reaped by TemplateProcess
        is_one_left = False
        for pid in orphans:
            status = processes.reap(pid)
            if status is None:  # it is still our child, so the number is still its own
                os.kill(pid, signal.SIGKILL)
                is_one_left = True
            elif self._template is None or self._template.has_ended:
                self._orphans_ends[pid] = status
        return is_one_left

    # Actors

    @property
    def _first_actor(self) -> int:
        return self._take.first_actor if self._take is not None else 0

    def _can_fork(self) -> bool:
        template = self._template
        is_ready = template is not None and template.is_ready and not template.has_ended
        return is_ready and self._take is not None and len(self._forking) < MOST_FORKING

    def _fork(self, slot: int) -> None:
        assert self._template is not None
        self._forking.add(slot)
        self._template.fork(self._first_actor + slot, slot, self._next_incarnation[slot])
        self._next_incarnation[slot] += 1

    def _on_actor_end(self, pid: int, status: int) -> None:
        life = self._lives.get(pid)
        ended = self._end_life(pid, status)
        if life is None or ended is None:
            return
        self._kill_orphans()
        if life.outgrew is None:
            self._supervise(ended.actor, how_ended(ended))
            return
        row = self._outgrown.get(life.slot, 0) + 1 if life.outgrew.is_at_once else 0
        self._outgrown[life.slot] = row
        self._supervisor.begin([life.slot], time.monotonic())
        if row >= MOST_OUTGROWN:
            self._tell(
                control.Failed(
                    f"actor {life.actor} has more than fleet.max_actor_memory = "
                    f"{self._plan.max_actor_memory} bytes after the first unroll of each of {row} "
                    f"lives, the last one {show_size(ended.outgrown_bytes)}; raise the limit, or "
                    "mend what leaks in the environment"
                )
            )

    def _supervise(self, actor: int, error: str) -> None:
        """Have the actor's next life begin in good time, if there is to be one."""
        slot = actor - self._first_actor
        produced = int(self._page.slots["produced"][slot])
        first_error = self._supervisor.end(slot, produced, error, time.monotonic())
        if first_error is not None:
            self._tell(control.GaveUp(actor, first_error))

    def _end_life(self, pid: int, status: int) -> control.ActorEnded | None:
        """Tell the learner of a life that is over."""
        life = self._lives.pop(pid, None)
        if life is None:
            return None
        self._hangs.let_go(pid)
        moment = self._page.end_life(life.slot)
        place, t = divmod(moment.position, self._plan.schema.unroll_length)
        if moment.position < 0:  # see ForeignEnvs.say_position
            place, t = NOWHERE, max(NOWHERE, -2 - moment.position)
        ended = control.ActorEnded(
            actor=life.actor,
            incarnation=life.incarnation,
            pid=pid,
            status=status,
            error=life.error,
            hung_s=life.hung_s,
            place=place,
            t=t,
            weights_version=moment.weights_version,
            raised_at=life.raised_at,
            episode=moment.episode,
            episode_t=moment.episode_t,
            outgrown_bytes=life.outgrew.size_bytes if life.outgrew else 0,
        )
        self._tell(ended)
        return ended

    # The learner

    def _on_message(self, frames: list[bytes]) -> None:
        message = control.decode_to_agent(frames[0])
        match message:
            case control.Take():
                if self._take is None:
                    self._take = message
                    self._next_incarnation = [message.incarnation] * self._plan.num_actors
                    self._supervisor.begin(range(self._plan.num_actors), time.monotonic())
            case control.Cut():
                self._page.publish_cut(message.number, message.first_unroll)
            case control.Announce():
                self._weights.on_announce(message)
            case control.Weights():
                self._weights.on_weights(message.version, frames[1])
            case control.Stop():
                self._end_processes()
                produced, steps = self._page.produced(), self._page.produced_steps()
                self._tell(control.Stopped(produced.tolist(), steps.tolist()))
                self._is_over = True


if __name__ == "__main__":
    main()
