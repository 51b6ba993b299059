"""The host agent: one per machine, no torch; it owns the lives of its actors.

It starts the template, has it fork the host's actors, keeps the weights where they can map them,
and tells the learner of every death. When the learner's pipe closes, however that came about, it
kills template and actors, removes the run's sockets and shared files, and ends. Started by the
learner as `python -P -m rollout.host`, with the plan on standard input.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import zmq

from rollout import control, processes
from rollout.host_memory import HostPage, WeightsFiles
from rollout.plan import HostPlan, read_record, write_record

ROOM_FOR_MESSAGES = 1 << 16  # bytes; weights are the largest thing a learner sends
GRACE_S = 1.0  # for the template to end its actors; the kernel ends them with it in any case


def main() -> None:
    processes.set_name("rollout-host")
    processes.ignore_interrupts()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as with Ctrl-C: the learner decides
    processes.raise_open_files_limit()
    learner = sys.stdin.fileno()
    plan = read_record(learner, HostPlan)
    if plan is None:
        return
    try:
        agent = HostAgent(plan, learner)
        try:
            agent.run()
        finally:
            agent.close()
    finally:
        remove_run(plan)


def remove_run(plan: HostPlan) -> None:
    """Remove a run's sockets and shared files; nothing happens if they are gone."""
    for directory in (plan.socket_directory, plan.memory_directory):
        shutil.rmtree(directory, ignore_errors=True)


class HostAgent:
    """One host's part in a run."""

    def __init__(self, plan: HostPlan, learner_pipe: int) -> None:
        self._plan = plan
        self._learner_pipe = learner_pipe
        self._is_stopping = self._has_forked = False
        memory = Path(plan.memory_directory)
        self._page = HostPage(memory / "page", plan.num_actors, create=True)
        self._files = WeightsFiles(memory)
        self._announced: dict[int, control.Announce] = {}
        self._template = subprocess.Popen(
            [sys.executable, "-P", "-m", "rollout.template", str(os.getpid()), plan.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | processes.SINGLE_THREAD_ENVIRONMENT,
        )
        assert self._template.stdin is not None and self._template.stdout is not None
        self._commands, self._reports = (
            self._template.stdin.fileno(),
            self._template.stdout.fileno(),
        )
        self._template_end = os.pidfd_open(self._template.pid)
        write_record(self._commands, plan)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 1000)  # the last words
        self._socket.set(zmq.MAXMSGSIZE, 4 * plan.network.num_parameters + ROOM_FOR_MESSAGES)
        self._socket.connect(plan.control_endpoint)
        self._tell(control.Hello(plan.run))

    def run(self) -> None:
        """Serve until told to stop, or until the learner or the template is gone."""
        poller = zmq.Poller()
        for source in (self._socket, self._reports, self._learner_pipe, self._template_end):
            poller.register(source, zmq.POLLIN)
        while not self._is_stopping:
            ready = dict(poller.poll())
            if self._learner_pipe in ready:
                return
            if self._reports in ready:
                report = read_record(self._reports, control.FromTemplate)
                if report is None:  # all who could write have ended; the template's end tells why
                    poller.unregister(self._reports)
                else:
                    self._on_report(report)
            elif self._template_end in ready:
                poller.unregister(self._template_end)
                self._tell(control.Failed(self._death_of_template()))
            if self._socket in ready:
                self._on_message(self._socket.recv_multipart())

    def close(self) -> None:
        """End template and actors; their reaping is over when this returns."""
        self._end_template()
        self._context.destroy(linger=1000)

    def _end_template(self) -> None:
        assert self._template.stdin is not None
        with contextlib.suppress(OSError):
            self._template.stdin.close()  # it kills and reaps its actors, then ends
        if not self._has_forked:  # it imports or compiles, and would not notice
            self._template.kill()
        try:
            self._template.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._template.kill()
            self._template.wait()

    def _tell(self, message: control.ToLearner) -> None:
        self._socket.send(control.encode(message))

    def _on_report(self, report: control.FromTemplate) -> None:
        if isinstance(report, control.Ready):
            self._has_forked = True
            with contextlib.suppress(BrokenPipeError):  # it has been killed; its end will tell
                write_record(self._commands, control.Fork(0, self._plan.num_actors, incarnation=0))
        self._tell(report)

    def _on_message(self, frames: list[bytes]) -> None:
        message = control.decode_to_agent(frames[0])
        match message:
            case control.Announce():
                # Lockstep: every version, in order, whatever is newest by then.
                self._announced[message.version] = message
                self._tell(control.Pull(message.version))
            case control.Weights():
                self._keep(message.version, frames[1])
            case control.Stop():
                self._end_template()
                self._is_stopping = True
                self._tell(control.Stopped([int(count) for count in self._page.produced]))

    def _keep(self, version: int, weights: bytes) -> None:
        announced = self._announced.pop(version)
        if hashlib.sha256(weights).digest() != announced.digest:
            self._tell(control.Failed(f"weights version {version} arrived damaged"))
            return
        try:
            self._files.write(version, weights)
        except OSError as error:
            self._tell(
                control.Failed(
                    f"cannot write weights version {version} ({len(weights)} bytes) to "
                    f"{self._files.directory}: {error.strerror}; free some space there or set "
                    "ROLLOUT_SHM_DIR to another tmpfs"
                )
            )
            return
        self._page.publish(version)
        # While version v is the newest, unrolls may still be acted with v - policy_lag.
        self._files.remove(version - self._plan.policy_lag - 1)

    def _death_of_template(self) -> str:
        status = self._template.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the template process ended by {how}, and its actors with it; run.log may say why"


if __name__ == "__main__":
    main()
