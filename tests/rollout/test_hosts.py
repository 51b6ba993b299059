"""What the learner makes of its host agents: deaths, restarts, and what no agent can say."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rollout import control
from rollout.envs.errors import EnvError
from rollout.errors import RunFailed
from rollout.events import FleetFailed, FleetStopped, Notice, PhaseChanged
from rollout.failures import load_failure
from rollout.hosts import LIVES_PER_AGENT, MOST_AGENT_RESTARTS
from tests.rollout.conftest import wait_until
from tests.rollout.fakes import WEIGHTS, Agent, Fleet


@pytest.fixture
def make_fleet(make_plan, tmp_path) -> Iterator:
    fleets = []

    def make(sets_aside: bool = False, **others) -> Fleet:
        fleets.append(Fleet(make_plan(**others), tmp_path, sets_aside))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet) -> Fleet:
    return make_fleet()


def wait_refused(fleet: Fleet, count: int) -> None:
    """Until so many control messages have been refused, and not one more."""
    what = f"{count} refused control messages"
    wait_until(lambda: fleet.receiver._hosts.refused >= count, 20, what)
    assert fleet.receiver._hosts.refused == count


def wait_alive(fleet: Fleet, count: int) -> None:
    alive = fleet.receiver._hosts.alive
    wait_until(lambda: len(alive) == count, 20, f"{count} actors alive")


def restart(fleet: Fleet) -> Agent:
    """Kill the local agent; the next one says hello."""
    pid = fleet.cluster.agent_pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fleet.cluster.agent_pid != pid, 20, "another agent")
    return fleet.agent()


# Weights


def test_agent_is_taken_in_and_told_of_every_version(fleet):
    fleet.receiver.publish(0, b"first weights...")
    agent = fleet.agent()
    fleet.receiver.publish(1, b"second")
    assert agent.take == control.Take(0, 0)
    versions = [agent.hear(control.Announce)[0] for _ in range(2)]
    assert [(v.version, v.size_bytes) for v in versions] == [(0, 16), (1, 6)]
    for version, weights in enumerate((b"first weights...", b"second")):
        agent.say(control.Pull(version))
        assert agent.hear(control.Weights) == (control.Weights(version), [weights])


def test_agent_that_comes_late_is_told_of_the_versions_that_are_kept(fleet):
    for version in range(10):
        fleet.receiver.publish(version, bytes([version]))
    agent = fleet.agent()
    assert [agent.hear(control.Announce)[0].version for _ in range(4)] == [6, 7, 8, 9]


def test_version_that_is_kept_no_more_is_answered_with_the_newest(fleet):
    for version in range(10):
        fleet.receiver.publish(version, bytes([version]))
    agent = fleet.agent()
    agent.say(control.Pull(2))
    assert [agent.hear(control.Announce)[0].version for _ in range(5)] == [6, 7, 8, 9, 9]


# Who is there


def test_first_agent_has_the_environments_shared_out(fleet):
    agent = fleet.agent()
    assert agent.hear(control.Cut)[0] == control.Cut(1, 0)
    agent.say(control.Ready(1.25))
    assert fleet.event() == PhaseChanged("compiled in 1.2 s; forking actors")


def test_actors_of_a_second_agent_have_the_numbers_that_follow(fleet):
    local = fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    fleet.ledger()  # an answer: all that was asked before has been done
    other = fleet.joining_agent(num_actors=3)
    assert other.join() == control.Take(2, 0)
    assert fleet.receiver.statistics().num_actors == 2  # they are not ready
    other.say(control.Ready(0.1))
    for agent in (local, other):
        while (cut := agent.hear(control.Cut)[0]).number == 1:
            pass
        assert cut == control.Cut(2, 2)  # version 0 is out, and the policy lag is 1
    assert fleet.receiver.statistics().num_actors == 5
    assert "3 more actors" in fleet.event(Notice).text


def test_third_agents_numbers_are_never_used_twice(fleet):
    fleet.agent()
    second = fleet.joining_agent(num_actors=3)
    second.join()
    assert second.process is not None
    os.kill(second.process.pid, signal.SIGKILL)
    wait_until(lambda: len(fleet.receiver._hosts._hosts) == 1, 20, "end of the second agent")
    assert fleet.joining_agent(num_actors=1).join() == control.Take(5, 0)


def test_agent_that_leaves_is_stopped_when_its_environments_are_given_away(make_fleet):
    fleet = make_fleet(mode="async")
    fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    other = fleet.joining_agent()
    other.join()
    other.say(control.Ready(0.1))
    actors = [fleet.actor(number) for number in range(4)]
    for actor in actors:
        actor.join()
    other.say(control.Leave())
    while other.hear(control.Cut)[0].number < 3:
        pass
    for actor in actors[:2]:
        actor.outbox._send(1, b"")  # malformed: they go on with what they have
    wait_until(lambda: fleet.refused() == 2, 20, "two malformed greetings")
    for number in (2, 3):
        fleet.receiver._request(fleet.inbox.shares.end, range(number, number + 1))
    fleet.receiver._request(fleet.inbox.shares.ask, 0)
    fleet.receiver._request(fleet.inbox.shares.ask, 1)
    fleet.receiver._request(fleet.receiver._share_out)
    other.hear(control.Stop)
    other.say(control.Stopped([0, 0], [0, 0]))
    assert fleet.ledger().is_balanced


def test_agent_that_comes_while_the_run_ends_is_stopped_at_once(fleet):
    local = fleet.agent()
    fleet.receiver.stop_fleet()
    local.hear(control.Stop)
    late = fleet.joining_agent()
    late.join()
    late.hear(control.Stop)
    local.say(control.Stopped([0, 0], [0, 0]))
    late.say(control.Stopped([0, 0], [0, 0]))
    fleet.event(FleetStopped)


# Agents that die


def test_local_agent_that_dies_is_started_again_under_the_same_numbers(fleet):
    agent = fleet.agent()
    for actor in (0, 1):
        agent.start(actor)
    wait_alive(fleet, 2)
    first = fleet.cluster.plan.memory_directory
    second = restart(fleet)
    assert second.take == control.Take(0, LIVES_PER_AGENT)
    assert second.hello.memory_directory != first and not Path(first).exists()
    statistics = fleet.receiver.statistics()
    assert (statistics.host_restarts, statistics.num_actors_alive) == (1, 0)
    assert "another is started" in fleet.event(Notice).text


def test_what_died_with_an_agent_is_read_from_its_page(fleet, make_payload):
    agent = fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    actor = fleet.actor(0)
    actor.join()
    actor.send(make_payload)
    actor.outbox.wait_credit()
    wait_until(lambda: fleet.inbox.states.num_unrolls[0] == 1, 20, "the unroll")
    agent.page.slots["produced"][0] = 2  # one of them never arrived
    agent.page.slots["produced_steps"][0] = (30, 15)
    restart(fleet)
    ledger = fleet.ledger()
    assert ledger.is_balanced
    assert (ledger.unrolls.produced, ledger.unrolls.dropped) == (2, {"actor_died": 1})
    fleet.actor(0, LIVES_PER_AGENT).join()


def test_agents_that_die_without_an_unroll_in_between_end_the_run(fleet):
    """Greetings of their actors are no progress."""
    fleet.receiver.publish(0, WEIGHTS)
    fleet.agent()
    for life in range(1, 1 + MOST_AGENT_RESTARTS):
        restart(fleet)
        fleet.actor(0, life * LIVES_PER_AGENT).join()
    assert not [event for event in fleet.events() if isinstance(event, FleetFailed)]
    os.kill(fleet.cluster.agent_pid, signal.SIGKILL)
    failed = fleet.event(FleetFailed)
    assert "host agent process ended again and again" in str(failed.error)
    assert fleet.receiver.statistics().host_restarts == MOST_AGENT_RESTARTS


def test_agent_that_cannot_be_started_again_ends_the_run(fleet, monkeypatch):
    def fail() -> None:
        raise OSError("no processes left")

    fleet.agent()
    monkeypatch.setattr(fleet.cluster, "restart_agent", fail)
    os.kill(fleet.cluster.agent_pid, signal.SIGKILL)
    assert "no processes left" in str(fleet.event(FleetFailed).error)


def test_joined_agent_that_dies_leaves_its_environments_to_the_others(fleet):
    fleet.agent()
    other = fleet.joining_agent()
    other.join()
    other.say(control.Ready(0.1))
    other.start(2)
    wait_alive(fleet, 1)
    assert fleet.receiver.statistics().num_actors == 4
    assert other.process is not None
    os.kill(other.process.pid, signal.SIGKILL)
    wait_alive(fleet, 0)
    wait_until(lambda: fleet.inbox.shares.num_members == 2, 20, "two members")
    assert not Path(other.hello.memory_directory).exists()
    assert fleet.receiver.statistics().host_restarts == 0


def test_actors_of_a_dead_agent_are_heard_no_more(fleet):
    fleet.agent()
    other = fleet.joining_agent()
    other.join()
    assert other.process is not None
    os.kill(other.process.pid, signal.SIGKILL)
    wait_until(lambda: len(fleet.receiver._hosts._hosts) == 1, 20, "end of the other agent")
    for incarnation in (0, 1, 2**32 - 1):
        fleet.actor(2, incarnation).outbox._send(1, b"")
    verdicts = fleet.receiver.statistics
    wait_until(lambda: verdicts().verdicts.get("stale_incarnation") == 3, 20, "stale greetings")


# Actors that die


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        ({"status": 1, "error": "ValueError: no pole"}, "ended with status 1: ValueError: no pole"),
        ({"status": 0}, "ended with status 0"),
        ({"status": -9}, "was killed by SIGKILL"),
        ({"status": -11}, "was killed by SIGSEGV: an environment probably wrote outside"),
        ({"status": -40}, "was killed by signal 40"),
        ({"status": -(2**62)}, f"was killed by signal {2**62}"),
        ({"status": -9, "hung_s": 12.34}, "hung for 12.3 s and was killed"),
        ({"status": -9, "hung_s": float("inf")}, "hung for inf s and was killed"),
        ({"status": -9, "hung_s": float("nan")}, "was killed by SIGKILL"),
    ],
)
def test_death_of_an_actor_is_told_with_its_reason_and_counted(fleet, ended, text):
    agent = fleet.agent()
    for actor in (0, 1):
        agent.start(actor)
    agent.end(1, **ended)
    assert f"actor 1 (process 1001) {text}" in fleet.event(Notice).text
    statistics = fleet.receiver.statistics()
    assert (statistics.num_actors_alive, statistics.actor_restarts) == (1, 1)


def test_actor_that_is_given_up_leaves_its_environments_to_the_others(fleet):
    agent = fleet.agent()
    agent.say(control.GaveUp(1, "ended with status 1: ValueError: first"))
    assert "actor 1 is given up; it first ended with status 1" in fleet.event(Notice).text
    assert fleet.receiver.statistics().num_actors == 1


def test_last_actor_that_is_given_up_ends_the_run_with_its_first_error(fleet):
    agent = fleet.agent()
    agent.say(control.GaveUp(1, "ended with status 1: OSError: of the other"))
    agent.say(control.GaveUp(0, "ended with status 1: ValueError: first"))
    failed = fleet.event(FleetFailed)
    assert isinstance(failed.error, RunFailed)
    assert str(failed.error) == ("no actor is left; actor 0 ended with status 1: ValueError: first")


@pytest.mark.parametrize(("is_authors", "kind"), [(True, EnvError), (False, RunFailed)])
def test_environment_that_cannot_be_prepared_ends_the_run(fleet, is_authors, kind):
    fleet.agent().say(control.Unprepared("no such field: pole", is_authors))
    error = fleet.event(FleetFailed).error
    assert isinstance(error, kind) and "no such field: pole" in str(error)


def test_host_that_cannot_go_on_ends_the_run_only_if_it_is_this_one(fleet):
    local = fleet.agent()
    other = fleet.joining_agent()
    other.join()
    other.say(control.Failed("no memory there"))
    other.hear(control.Stop)
    assert not [event for event in fleet.events() if isinstance(event, FleetFailed)]
    local.say(control.Failed("no memory here"))
    assert str(fleet.event(FleetFailed).error) == "no memory here"


# Environments that fail


def die_in_env(fleet: Fleet, agent: Agent, life: int, place: int = 1, t: int = 3, **others) -> None:
    """Actor 0 begins its next life, and dies while it steps the environment at `place`."""
    actor = fleet.actor(0, incarnation=life)
    actor.join()
    actor.close()
    agent.start(0, life)
    agent.end(0, **({"place": place, "t": t, "error": "KeyError: 3"} | others))
    wait_until(lambda: fleet.receiver._hosts.actor_restarts == life + 1, 20, "the death")


def begin_next(fleet: Fleet, life: int) -> None:
    fleet.actor(0, incarnation=life).outbox.wait_assignment((0, 0))


def some_weights(fleet: Fleet) -> bytes:
    return np.arange(fleet.plan.network.num_parameters, dtype=np.float32).tobytes()


def test_environment_that_fails_three_times_at_one_step_ends_the_run_with_a_file(fleet):
    agent = fleet.agent()
    fleet.receiver.publish(0, some_weights(fleet))
    for life in range(3):
        assert not [event for event in fleet.events() if isinstance(event, FleetFailed)]
        die_in_env(fleet, agent, life)
    begin_next(fleet, 3)
    failed = fleet.event(FleetFailed)
    file = fleet.failures / "env-1-step-3.safetensors"
    assert f"rollout replay {file}" in str(failed.error) and "KeyError: 3" in str(failed.error)
    failure = load_failure(file)
    assert (failure.env, failure.t, failure.unroll_index, failure.ended) == (1, 3, 0, "exception")
    assert failure.weights.tobytes() == some_weights(fleet)
    np.testing.assert_array_equal(failure.env_state, fleet.inbox.states.newest[1])


@pytest.mark.parametrize(
    "others",
    [
        {"t": lambda life: life},
        {"place": lambda life: life},
        {"place": lambda life: -1, "t": lambda life: -1},
        {"status": lambda life: -signal.SIGKILL},  # by someone else: no fault of its own
    ],
    ids=["steps", "environments", "elsewhere", "kills"],
)
def test_deaths_that_are_not_at_one_step_do_not_end_the_run(fleet, others):
    agent = fleet.agent()
    fleet.receiver.publish(0, some_weights(fleet))
    for life in range(3):
        die_in_env(fleet, agent, life, **{name: of(life) for name, of in others.items()})
    begin_next(fleet, 3)
    assert not [event for event in fleet.events() if isinstance(event, FleetFailed)]
    assert not fleet.failures.exists()


def test_hang_at_one_step_is_a_failure_of_its_environment(fleet):
    agent = fleet.agent()
    fleet.receiver.publish(0, some_weights(fleet))
    for life in range(3):
        die_in_env(fleet, agent, life, status=-signal.SIGKILL, hung_s=7.0, error="")
    begin_next(fleet, 3)
    assert "hung for 7.0 s" in str(fleet.event(FleetFailed).error)
    assert load_failure(fleet.failures / "env-1-step-3.safetensors").ended == "hang"


def test_environment_that_fails_is_set_aside_if_that_was_asked_for(make_fleet):
    fleet = make_fleet(mode="async", sets_aside=True)
    agent = fleet.agent()
    fleet.receiver.publish(0, some_weights(fleet))
    for life in range(3):
        die_in_env(fleet, agent, life)
    begin_next(fleet, 3)
    count = fleet.receiver.statistics
    wait_until(lambda: count().envs_set_aside == 1, 20, "environment set aside")
    events = fleet.events()
    assert not [event for event in events if isinstance(event, FleetFailed)]
    assert "it is set aside" in [e for e in events if isinstance(e, Notice)][-1].text
    assert (fleet.failures / "env-1-step-3.safetensors").exists()
    fleet.actor(1).outbox._send(1, b"")
    while agent.hear(control.Cut)[0].number < 2:
        pass


def test_failure_that_cannot_be_saved_ends_the_run_all_the_same(fleet):
    fleet.failures.write_text("a file where the folder goes")
    agent = fleet.agent()
    fleet.receiver.publish(0, some_weights(fleet))
    for life in range(3):
        die_in_env(fleet, agent, life)
    begin_next(fleet, 3)
    assert "no replay file" in str(fleet.event(FleetFailed).error)


# What no agent of this run can say


def forged_hellos(fleet: Fleet, agent: Agent, tmp_path: Path) -> dict[str, control.Hello]:
    """`agent` has not said hello; its own hello would be taken."""
    run, pid, memory = fleet.plan.run, agent.hello.pid, agent.hello.memory_directory
    local = fleet.cluster.plan.memory_directory
    ours = f"rollout-{fleet.plan.name}-"
    (tmp_path / "page").write_bytes(bytes(4096))
    link = Path(memory).parent / f"{ours}link"
    return {
        "another run": control.Hello(bytes(16), pid, 2, memory),
        "no run": control.Hello(b"", pid, 2, memory),
        "nobody's pid": control.Hello(run, 2**22 + 1, 2, memory),
        "pid 0": control.Hello(run, 0, 2, memory),
        "negative pid": control.Hello(run, -pid, 2, memory),
        "large pid": control.Hello(run, 2**31, 2, memory),
        "very large pid": control.Hello(run, 2**64 - 1, 2, memory),
        "this machine's agent": control.Hello(run, fleet.cluster.agent_pid, 2, memory),
        "and its directory": control.Hello(run, fleet.cluster.agent_pid, 3, local),
        "directory of the local agent": control.Hello(run, pid, 2, local),
        "no actors": control.Hello(run, pid, 0, memory),
        "negative actors": control.Hello(run, pid, -1, memory),
        "more actors than the page has": control.Hello(run, pid, 3, memory),
        "many actors": control.Hello(run, pid, 10**6, memory),
        "very many actors": control.Hello(run, pid, 2**63 - 1, memory),
        "more than there are": control.Hello(run, pid, 2**64 - 1, memory),
        "no directory": control.Hello(run, pid, 2, ""),
        "relative directory": control.Hello(run, pid, 2, "."),
        "root": control.Hello(run, pid, 2, "/"),
        "somebody's folder": control.Hello(run, pid, 2, str(tmp_path)),
        "missing": control.Hello(run, pid, 2, f"{memory}0"),
        "around a corner": control.Hello(run, pid, 2, f"{memory}/../{Path(memory).name}"),
        "out of it": control.Hello(run, pid, 2, f"{memory}/../../{tmp_path}"),
        "a link": control.Hello(run, pid, 2, str(link)),
        "a file": control.Hello(run, pid, 2, f"{memory}/page"),
        "a device": control.Hello(run, pid, 2, "/dev/zero"),
        "nul": control.Hello(run, pid, 2, f"{memory}\0"),
        "long": control.Hello(run, pid, 2, memory + "x" * 100_000),
        "much too deep": control.Hello(run, pid, 2, "/x" * 100_000),
    }


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_hello_that_no_agent_of_this_run_says_is_refused(fleet, tmp_path):
    fleet.agent()
    agent = fleet.joining_agent()
    memory = Path(agent.hello.memory_directory)
    link = memory.parent / f"rollout-{fleet.plan.name}-link"
    link.symlink_to(memory)
    try:
        hellos = forged_hellos(fleet, agent, tmp_path)
        agent.socket.send(b"")  # so that the connection is there when descriptors are counted
        wait_refused(fleet, 1)
        before, descriptors = fleet.everything(), num_descriptors()
        for hello in (*hellos.values(), *hellos.values()):
            agent.say(hello)
        wait_refused(fleet, 1 + 2 * len(hellos))
        assert fleet.everything() == before
        assert num_descriptors() <= descriptors  # what earlier tests left may be closed meanwhile
        assert len(fleet.receiver._hosts._hosts) == 1
        assert fleet.events() == []
        agent.join()  # and its own is taken
    finally:
        link.unlink()
    for hello in (agent.hello, fleet.joining_agent().hello):  # from the same socket: once
        agent.say(hello)
    stranger = fleet.agent(says_hello=False)
    stranger.say(agent.hello)  # the same process or directory, from another one
    wait_refused(fleet, 4 + 2 * len(hellos))
    assert (tmp_path / "page").exists()


def test_second_hello_for_the_local_agent_is_refused(fleet):
    fleet.agent()
    second = fleet.agent(says_hello=False)
    second.say(second.hello)
    wait_refused(fleet, 1)
    assert len(fleet.receiver._hosts._hosts) == 1


def impossible_messages(actor: int = 2) -> list[bytes]:
    """Of a host that has actors 0 and 1, that was not told to stop and that is not the local one.

    Version 0 is published, and actor 0 was started.
    """
    ended = control.ActorEnded(0, 0, 1, 1, "", 0.0, 0, 0, 0)
    replace = {
        "actor": (-1, actor, 1, 2**64 - 1),  # 1 was not started
        "place": (-2, 6, 2**32, 2**64 - 1),
        "t": (-2, 5, 2**64 - 1),
        "weights_version": (-1, 1, 2**64 - 1),
    }
    fields = {name: getattr(ended, name) for name in ended.__struct_fields__}
    messages: list[control.ToLearner] = [
        control.ActorEnded(**(fields | {name: value}))
        for name, values in replace.items()
        for value in values
    ]
    messages += [control.Pull(version) for version in (-1, 1, 2**64 - 1)]
    messages += [control.ActorStarted(n, 0, 1) for n in (-1, actor, 2**63)]
    messages += [control.GaveUp(n, "error") for n in (-1, actor, 2**64 - 1)]
    messages += [control.Stopped([0, 0], [0, 0]), control.Stopped([], []), control.Leave()]
    return [control.encode(message) for message in messages]


def test_what_no_agent_can_say_is_refused_and_changes_nothing(fleet):
    agent = fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    agent.start(0)
    wait_alive(fleet, 1)
    agent.hear(control.Announce)
    before = fleet.everything()
    impossible = [*impossible_messages(), b"", b"\xc1", b"x" * 1000, control.encode(agent.hello)]
    for message in impossible:
        agent.socket.send(message)
    agent.socket.send_multipart([b"", b"", b""])
    wait_refused(fleet, len(impossible) + 1)
    assert fleet.everything() == before
    assert fleet.events() == []
    assert fleet.receiver._hosts.alive == {0}
    assert fleet.receiver.statistics().actor_restarts == 0


def test_whoever_has_not_said_hello_is_not_listened_to(fleet):
    agent = fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    agent.start(0)
    wait_alive(fleet, 1)
    stranger = fleet.joining_agent()
    said = [
        control.Failed("everything"),
        control.ActorStarted(1, 0, 1),
        control.ActorEnded(0, 0, 1, 1, "", 0.0, 0, 0, 0),
        control.TemplateEnded("ended"),
        control.GaveUp(0, "error"),
        control.Stopped([0, 0], [0, 0]),
        control.Unprepared("error", True),
        control.Pull(0),
        control.Leave(),
        control.Ready(1.0),
    ]
    for message in said:
        stranger.say(message)
    wait_refused(fleet, len(said))
    assert fleet.events() == []
    assert fleet.receiver._hosts.alive == {0}


def test_version_is_sent_to_an_agent_once(fleet):
    """Else whoever pulls and does not read would have the learner's memory filled with weights."""
    agent = fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    agent.hear(control.Announce)
    for _ in range(3):
        agent.say(control.Pull(0))
    wait_refused(fleet, 2)


def test_last_account_is_taken_once_and_only_when_asked_for(fleet):
    agent = fleet.agent()
    agent.say(control.Stopped([9, 9], [9, 9]))
    wait_refused(fleet, 1)
    fleet.receiver.stop_fleet()
    agent.hear(control.Stop)
    bad = [
        ([1], [1]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, -2], [1, 2]),
        ([1, 2], [1, -2]),
        ([1, 2], [1]),
        ([], []),
        ([2**63, 0], [0, 0]),
        ([0, 0], [0, 2**64 - 1]),
        ([0] * 100_000, [0] * 100_000),
    ]
    for produced, steps in bad:
        agent.say(control.Stopped(produced, steps))
    wait_refused(fleet, 1 + len(bad))
    agent.say(control.Stopped([3, 4], [45, 60]))
    fleet.event(FleetStopped)
    agent.say(control.Stopped([30, 40], [45, 60]))
    wait_refused(fleet, 2 + len(bad))
    assert fleet.ledger().unrolls.produced == 7


def test_chatter_does_not_keep_the_end_of_an_agent_from_being_noticed(fleet, monkeypatch):
    monkeypatch.setattr("rollout.hosts.MOST_LAST_WORDS_S", 0.3)
    fleet.agent()
    chatter = fleet.joining_agent()
    pid = fleet.cluster.agent_pid
    os.kill(pid, signal.SIGKILL)

    def is_restarted() -> bool:
        chatter.socket.send(b"blah")
        return fleet.cluster.agent_pid != pid

    wait_until(is_restarted, 20, "another agent, for all the talk")


def test_hosts_say_how_they_are_on_one_line(fleet):
    fleet.agent()
    assert repr(fleet.receiver._hosts) == "Hosts(1 hosts, 0 actors alive)"
