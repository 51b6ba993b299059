"""What a person sees of a run."""

import contextlib
import io
import os
import pty

import pytest

from rollout import live_view
from rollout.live_view import (
    LineView,
    QuietView,
    TableView,
    final_report,
    make_view,
    next_commands,
    progress_table,
)
from rollout.run_directory import RunDirectory


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test sets `clock.now`."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(live_view.time, "monotonic", lambda: Clock.now)
    return Clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_view_fits_where_it_is_shown(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_view(out=io.StringIO())) is LineView
    assert type(make_view(out=Terminal())) is TableView
    assert type(make_view(quiet=True, out=Terminal())) is QuietView
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_view(out=Terminal())) is LineView


def test_lines_come_at_once_then_every_two_seconds_and_at_the_end(clock, make_progress):
    out = io.StringIO()
    view = LineView(out)
    for update in range(1, 101):
        view.write(make_progress(update))
        clock.now += 0.1
    view.close()
    shown = [line.split("  ")[0] for line in out.getvalue().splitlines()]
    assert shown == ["update 1", "update 21", "update 41", "update 61", "update 81", "update 100"]


def test_last_line_is_said_once(clock, make_progress):
    out = io.StringIO()
    view = LineView(out)
    view.write(make_progress(1))
    view.write(make_progress(2, stop_reason="enough"))
    view.close()
    view.close()
    assert len(out.getvalue().splitlines()) == 2


def test_line_tells_how_the_run_goes(make_progress):
    out = io.StringIO()
    LineView(out).write(make_progress(4, num_actors_alive=1))
    assert out.getvalue() == (
        "update 4  2,048 steps  1,234 steps/s  return 24.0  lag 1  actors 1 of 2  "
        "episode_return 25%  env_steps 50%  2.0 s\n"
    )


def test_rate_that_is_not_known_yet_is_not_said_to_be_0(make_progress, make_summary, make_run):
    out = io.StringIO()
    LineView(out).write(make_progress(1, env_steps_per_s=0.0))
    assert "  – steps/s  " in out.getvalue()
    assert ("steps", "512  (– per second)") in live_view._rows(
        make_progress(1, env_steps_per_s=0.0)
    )
    report = final_report(make_summary(env_steps_per_s=0.0), make_run(), None)
    assert "steps at – per second." in report


def test_table_shows_return_speed_lag_losses_actors_time_and_stop_conditions(make_progress):
    from rich.console import Console

    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(progress_table(make_progress(4)))
    rows = [line.split(maxsplit=1) for line in console.export_text().splitlines()]
    table = {name: what.strip() for name, what in rows}
    assert table["return"] == "24.0  (last 100 of 12 episodes, length 25.0)"
    assert table["steps"] == "2,048  (1,234 per second)"
    assert table["updates"] == "4  in 2.0 s, policy lag 1"
    assert table["losses"] == "policy_loss -0.25"
    assert table["actors"] == "2 of 2 alive"
    assert table["learner"] == "time         update 80%  wait 20%"
    assert table["stop.episode_return"] == "██████░░░░░░░░░░░░░░░░░░  25%"
    assert table["stop.env_steps"] == "████████████░░░░░░░░░░░░  50%"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_table_fits_narrow_terminals(make_progress, width):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(progress_table(make_progress(1, episode_return_mean=None, stop={"wall_s": 2.0})))
    assert all(len(line) <= width for line in console.export_text().splitlines())


def test_table_is_drawn_five_times_a_second_at_most(clock, make_progress, monkeypatch):
    drawn = []
    monkeypatch.setattr(TableView, "_draw", lambda view: drawn.append(clock.now))
    view = TableView(Terminal())
    for update in range(1, 101):
        view.write(make_progress(update))
        clock.now += 0.01
    assert len(drawn) == 5


def show_on_terminal(show) -> str:
    """What a terminal receives while show(out) runs."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as out:
        show(out)
        out.flush()
        shown = os.read(master, 1 << 16)
    os.close(master)
    return shown.decode()


def test_terminal_is_left_as_it_was_after_an_error(make_progress, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def show(out):
        with contextlib.suppress(KeyboardInterrupt), make_view(out=out) as view:
            view.phase("forking 2 actors")
            view.write(make_progress(1))
            raise KeyboardInterrupt

    shown = show_on_terminal(show)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
    assert "forking 2 actors" in shown
    assert "\x1b[32m" in shown


def test_no_color_is_respected(make_progress, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")

    def show(out):
        with make_view(out=out) as view:
            view.write(make_progress(1))

    shown = show_on_terminal(show)
    assert "stop.env_steps" in shown
    assert "\x1b[32m" not in shown and "\x1b[90m" not in shown


def test_reader_who_leaves_does_not_end_the_run(make_progress, make_summary, make_run):
    reader, writer = os.pipe()
    os.close(reader)
    out = os.fdopen(writer, "w")
    view = make_view(out=out)
    view.phase("starting")
    view.write(make_progress(1))
    view.finish(make_summary(), make_run())
    with pytest.raises(BrokenPipeError):
        out.close()


def test_encoding_without_our_characters_does_not_end_the_run(make_progress):
    raw = io.BytesIO()
    view = make_view(out=io.TextIOWrapper(raw, encoding="ascii"))
    view.write(make_progress(1, episode_return_mean=None))
    assert b"return ?" in raw.getvalue()


def test_report_says_that_the_goal_was_reached_where_the_run_is_and_what_to_type_next(
    make_run, make_summary
):
    run = make_run(where="my run")
    report = final_report(make_summary(), run, "mean return")
    assert report.splitlines() == [
        "Goal reached after 3.2 s: mean return 480.5 over the last 100 episodes (goal: 475).",
        "100 updates, 51,200 steps at 812,345 per second.",
        f"Run: {run.path}",
        "",
        "Next:",
        f"  rollout eval '{run.path}'",
        f"  rollout eval '{run.path}' --video cartpole.gif",
        f"  rollout plot '{run.path}'",
        f"  tensorboard --logdir '{run.path}'",
    ]


def test_video_of_an_environment_in_a_namespace_needs_no_folder(make_experiment, tmp_path):
    experiment = make_experiment("gymnasium:rollout/CartPole-v1")
    with RunDirectory.create(experiment, tmp_path / "run") as run:
        commands = list(next_commands(run))
    assert f"rollout eval {run.path} --video cartpole.gif" in commands


def test_report_says_why_episodes_were_lost(make_run, make_summary):
    lost = {"exception": 1200, "learner_died": 3, "hang": 0}
    report = final_report(make_summary(episodes_lost=lost), make_run(), None).splitlines()
    assert report[2] == "1,203 episodes lost: 1,200 by exception, 3 by learner died."


def test_report_says_why_a_run_ended_without_its_goal(make_run, make_summary):
    summary = make_summary(goal_reached=False, goal_reached_s=None, episode_return_mean=None)
    report = final_report(summary, make_run("tests.rollout.rich_envs:Arm"), "1000 steps reached")
    assert report.startswith(
        "Ended after 4.0 s (1000 steps reached): mean return – over the last 100 episodes; "
        "the goal, 475, was not reached."
    )
    assert "--video" not in report  # there is no render
