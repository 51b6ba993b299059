"""`rollout chaos`: what becomes of an experiment whose processes are killed, stopped and slowed."""

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollout.chaos_faults import Kind, plan_faults
from rollout.commands.arguments import AsJson, ExperimentFile, Overrides
from rollout.errors import OperatorError, RunFailed

if TYPE_CHECKING:
    from rollout.chaos import Outcome
    from rollout.experiment import Experiment

LINE_EVERY_S = 2.0
CHECKPOINTS = 25  # in a run whose learner will be killed, unless its settings say otherwise
UNKNOWN_EVERY = 50  # updates between them where nobody knows how many there will be


def chaos(
    file: ExperimentFile,
    overrides: Overrides = None,
    kills: Annotated[
        int, typer.Option("--kills", metavar="N", min=0, help="Faults, of all kinds.")
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Begins what is random.")] = 0,
    only: Annotated[
        list[Kind] | None,
        typer.Option("--only", help="Faults of this kind; more than once for several kinds."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="A new or empty directory for both runs; else runs/NAME-chaos-TIME.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference/--no-reference",
            help="Whether to run the experiment undisturbed as well, to compare with.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Run an experiment while its processes are killed, stopped and slowed at random.

    Before, it is run undisturbed. actor, template, host and learner are killed (SIGKILL); the
    learner then goes on from its newest checkpoint. stop and slow hit any of them (SIGSTOP and
    SIGCONT). Shown are the account of all unrolls, how long the run took to recover, what
    throughput was lost, and in lockstep whether the parameters are the same.

    Exit status: 0 if the account balances, every process came back, nothing is left behind, and in
    lockstep the parameters are equal; 1 if not, 2 for bad input, 130 after Ctrl-C.

    \b
    Example:
      rollout chaos configs/cartpole_ppo.toml --kills 30 --seed 1
      rollout chaos configs/cartpole_ppo.toml --kills 200 --only actor fleet.num_actors=3
    """
    from rollout.chaos import make_place
    from rollout.experiment import load_experiment
    from rollout.run_directory import RUNS

    experiment = load_experiment(file, overrides or [])
    kinds = sorted(set(only or Kind))
    if not reference and experiment.stop.env_steps is None:
        raise OperatorError(
            f"{file}: without stop.env_steps nobody knows how long the run will be; set it, or "
            "leave --no-reference out"
        )
    name = f"{experiment.name}-chaos-{time.strftime('%Y%m%d-%H%M%S')}"
    place = make_place(RUNS / name if run_dir is None else run_dir)
    arguments = [str(file), *(overrides or []), *_checkpoints(experiment, kinds)]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, _interrupt)
    say = _Sayer()
    try:
        undisturbed = None
        num_updates = _num_updates(experiment)
        if reference:
            undisturbed = _run(arguments, place / "undisturbed", experiment, [], say)
            num_updates = undisturbed.updates
            if undisturbed.summary is None or undisturbed.status:
                raise RunFailed(f"the undisturbed run failed: {undisturbed.error}")
        faults = plan_faults(kinds, kills, seed, num_updates)
        disturbed = _run(arguments, place / "disturbed", experiment, faults, say, num_updates)
    except KeyboardInterrupt:
        say.line(f"interrupted; both runs have ended, what they left is in {place}")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    report = make_report(experiment.fleet.mode, seed, undisturbed, disturbed)
    if as_json:
        typer.echo(json.dumps({"runs": str(place)} | report, indent=2))
    else:
        _print_report(place, report)
    raise typer.Exit(1 if report["failures"] else 0)


def _interrupt(_number: int, _frame: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # both runs end within a limit
    raise KeyboardInterrupt


def _checkpoints(experiment: "Experiment", kinds: list[Kind]) -> list[str]:
    """Overrides with which a killed learner does not have to begin all over again."""
    if Kind.learner not in kinds or experiment.checkpoint.every_updates is not None:
        return []
    updates = _num_updates(experiment)
    every = max(1, updates // CHECKPOINTS) if updates else UNKNOWN_EVERY
    return [f"checkpoint.every_updates={every}"]


def _num_updates(experiment: "Experiment") -> int:
    """As many as stop.env_steps makes; 0 without."""
    return -(-(experiment.stop.env_steps or 0) // experiment.batch_size)


def _run(
    arguments: list[str],
    path: Path,
    experiment: "Experiment",
    faults: list[Any],
    say: "_Sayer",
    num_updates: int = 0,
) -> "Outcome":
    from rollout.chaos import Disturber, TrainProcess

    say.line(f"{path.name} run, in {path}")
    with TrainProcess(arguments, path) as train:
        disturber = Disturber(train, experiment.fleet.num_actors, faults)
        outcome = disturber.run(say.progress(num_updates, len(faults)))
    say.line(f"{path.name} run ended after {outcome.updates:,} updates")
    return outcome


class _Sayer:
    """Tells on standard error how far it is: a line now and then."""

    def __init__(self) -> None:
        self._said_s = 0.0

    def line(self, text: str) -> None:
        self._said_s = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def progress(self, num_updates: int, num_faults: int) -> Callable[[int, int], None]:
        """A function to call with updates and faults so far."""
        of_updates = f" of {num_updates:,}" if num_updates else ""

        def tell(update: int, faults: int) -> None:
            if time.monotonic() >= self._said_s + LINE_EVERY_S:
                done = f", fault {faults} of {num_faults}" if num_faults else ""
                self.line(f"  update {update:,}{of_updates}{done}")

        return tell


# The report


def make_report(
    mode: str, seed: int, undisturbed: "Outcome | None", disturbed: "Outcome"
) -> dict[str, Any]:
    """All there is to tell, as JSON can hold it; `failures` is empty if all went well."""
    summary = disturbed.summary or {}
    events = disturbed.events
    report = {
        "mode": mode,
        "seed": seed,
        "planned": disturbed.planned,
        "done": len(events),
        "faults": {kind.value: _of_kind(disturbed, kind) for kind in Kind if _any(events, kind)},
        "updates": disturbed.updates,
        "env_steps_per_s": disturbed.env_steps_per_s,
        "undisturbed_env_steps_per_s": undisturbed and undisturbed.env_steps_per_s,
        "throughput_lost": _lost(undisturbed, disturbed),
        "restarts": disturbed.restarts,
        "ledger": summary.get("ledger"),
        "params_digest": summary.get("params_digest"),
        "undisturbed_params_digest": _digest(undisturbed),
        "equal": None,
        "left": disturbed.left + (undisturbed.left if undisturbed else []),
        "events": [event.as_dict() for event in events],
    }
    if mode == "lockstep" and undisturbed is not None:
        report["equal"] = report["params_digest"] == report["undisturbed_params_digest"]
    return report | {"failures": _failures(report, disturbed)}


def _failures(report: dict[str, Any], disturbed: "Outcome") -> list[str]:
    failures = []
    if disturbed.summary is None or disturbed.status:
        failures.append(f"the disturbed run failed: {disturbed.error or 'it left no summary.json'}")
    elif not _is_balanced(report["ledger"]):
        failures.append("the ledger does not balance")
    if report["equal"] is False:
        failures.append("the parameters differ from those of the undisturbed run")
    lost = [event for event in disturbed.events if event.is_failed]
    failures += [f"nobody came back from {e.kind} of {e.role} {e.pid} at {e.update}" for e in lost]
    if report["left"]:
        failures.append(f"left behind: {', '.join(report['left'])}")
    return failures


def _is_balanced(ledger: dict[str, Any]) -> bool:
    accounts = (ledger, ledger["steps"], *ledger["actors"])
    return all(account["balance"] == 0 for account in accounts)


def _any(events: list[Any], kind: Kind) -> bool:
    return any(event.kind == kind for event in events)


def _of_kind(disturbed: "Outcome", kind: Kind) -> dict[str, Any]:
    events = [event for event in disturbed.events if event.kind == kind]
    seconds = [event.recovery_s for event in events if event.recovery_s is not None]
    return {
        "count": len(events),
        "recovered": len(seconds),
        "recovery_median_s": statistics.median(seconds) if seconds else None,
        "recovery_worst_s": max(seconds, default=None),
    }


def _lost(undisturbed: "Outcome | None", disturbed: "Outcome") -> float | None:
    if undisturbed is None or not undisturbed.env_steps_per_s:
        return None
    return 1.0 - disturbed.env_steps_per_s / undisturbed.env_steps_per_s


def _digest(outcome: "Outcome | None") -> str | None:
    return None if outcome is None or outcome.summary is None else outcome.summary["params_digest"]


def _print_report(place: Path, report: dict[str, Any]) -> None:
    rows = [
        (
            kind,
            str(one["count"]),
            str(one["recovered"]),
            _seconds(one["recovery_median_s"]),
            _seconds(one["recovery_worst_s"]),
        )
        for kind, one in report["faults"].items()
    ]
    _print_table(("fault", "done", "recovered", "median", "worst"), rows)
    for name, text in _lines(report):
        typer.echo(f"{name:12}{text}")
    for failure in report["failures"]:
        typer.echo(f"FAILED      {failure}")
    typer.echo(f"{'runs':12}{place}")


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    for row in (head, *rows):
        typer.echo(f"{row[0]:10}" + "".join(f"{cell:>12}" for cell in row[1:]))


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    done, planned = report["done"], report["planned"]
    early = "" if done == planned else f" of {planned}: the run ended before the others"
    seen = sum(one["recovered"] for one in report["faults"].values())
    unseen = f"; {done - seen} recoveries not seen before the end" if seen < done else ""
    lines = [("faults", f"{done}{early}{unseen}")]
    lines.append(("restarts", ", ".join(f"{n} {name}" for name, n in report["restarts"].items())))
    if report["throughput_lost"] is not None:
        lines.append(
            (
                "throughput",
                f"{report['env_steps_per_s']:,.0f} steps per second, undisturbed "
                f"{report['undisturbed_env_steps_per_s']:,.0f}: "
                f"{100 * report['throughput_lost']:.1f} % lost",
            )
        )
    ledger = report["ledger"]
    if ledger is not None:
        dropped = ", ".join(f"{n} {reason}" for reason, n in ledger["dropped"].items()) or "none"
        lines.append(
            (
                "ledger",
                f"{ledger['produced']} unrolls produced = {ledger['trained']} trained + "
                f"{ledger['in_flight']} in flight + dropped ({dropped}); "
                f"balance {ledger['balance']}",
            )
        )
    if report["equal"] is not None:
        lines.append(("parameters", "equal" if report["equal"] else "DIFFERENT"))
    lines.append(("left behind", ", ".join(report["left"]) or "nothing"))
    return lines


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s"
