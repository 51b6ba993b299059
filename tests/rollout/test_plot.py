"""Pictures of learning curves, and `rollout plot`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rollout import plot
from rollout.cli import main
from rollout.curves import Curve
from rollout.errors import OperatorError
from rollout.metrics import MetricsLog
from rollout.plot import COLOURS, check_file, draw, write_figure


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def make_trained(make_run, make_progress):
    """make_trained("runs/a", "seed=3", updates=10): a run with metrics; its directory."""

    def make(where: str, *overrides: str, env_id="CartPole-v1", updates: int = 10) -> Path:
        run = make_run(env_id, *overrides, where=where)
        with MetricsLog(run) as log:
            for update in range(1, updates + 1):
                log.write(make_progress(update))
        (run.path / "summary.json").write_text("{}")
        return Path(where)

    return make


def run_main(*arguments: str) -> int:
    """Run a command in this process; its exit status."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def curve(name: str = "a", x=(1, 2, 3), y=(10.0, 20.0, 30.0), env="E-v0", **settings) -> Curve:
    tables = {"name": name, "env": {"id": env}, "algorithm": settings, "stop": {}}
    steps = np.array(x, np.int64)
    return Curve(Path(name), tables, steps, steps / 100, np.array(y), True, None)


def legend(figure) -> list[str]:
    return [
        text.get_text()
        for row in figure.subfigs
        for shown in row.legends
        for text in shown.get_texts()
    ]


def lines_of(panel) -> list[tuple[list[float], list[float], str]]:
    """x, y and colour of the lines in a panel."""
    found = []
    for line in panel.get_lines():
        x, y = line.get_data()
        found.append((list(x), list(y), line.get_color()))
    return found


def test_figure_has_a_panel_for_each_axis_and_a_row_for_each_environment():
    figure = draw([curve("a"), curve("b", env="F-v0"), curve("c")])
    panels = [[panel.get_xlabel() for panel in row.axes] for row in figure.subfigs]
    assert panels == [["environment steps", "wall time (seconds)"]] * 2
    assert [row.get_suptitle() for row in figure.subfigs] == ["E-v0", "F-v0"]
    steps, seconds = figure.subfigs[0].axes
    assert steps.get_ylabel() == "mean return of the last 100 episodes"
    assert [line[0] for line in lines_of(steps)] == [[1, 2, 3], [1, 2, 3]]
    assert [line[0] for line in lines_of(seconds)] == [[0.01, 0.02, 0.03]] * 2
    assert [line[1] for line in lines_of(seconds)] == [[10.0, 20.0, 30.0]] * 2
    (only,) = draw([curve()], ["seconds"]).subfigs[0].axes
    assert only.get_xlabel() == "wall time (seconds)"


def test_runs_of_one_experiment_are_a_mean_in_a_band_and_alone_where_not_all_are():
    figure = draw([curve(x=(1, 2, 3)), curve(x=(2, 3, 5), y=(40.0, 50.0, 60.0))], ["steps"])
    (panel,) = figure.subfigs[0].axes
    mean, before, after = lines_of(panel)
    assert (mean[0][0], mean[0][-1], mean[1][0], mean[1][-1]) == (2, 3, 30.0, 40.0)
    assert before[:2] == ([1, 2], [10.0, 20.0])
    assert after[:2] == ([3, 5], [50.0, 60.0])
    assert {line[2] for line in (mean, before, after)} == {COLOURS[0]}
    (shade,) = panel.collections
    corners = shade.get_paths()[0].get_extents()
    assert (corners.xmin, corners.xmax, corners.ymin, corners.ymax) == (2, 3, 20.0, 50.0)
    assert legend(figure) == ["a: mean of 2 runs, min to max", "single runs, where not all are"]


def test_runs_that_are_nowhere_together_are_drawn_alone():
    figure = draw([curve(x=(1, 2, 3)), curve(x=(7,), y=(5.0,))], ["steps"])
    (panel,) = figure.subfigs[0].axes
    assert [line[:2] for line in lines_of(panel)] == [([1, 2, 3], [10, 20, 30]), ([7], [5])]
    assert not panel.collections


def test_experiments_have_their_own_colours_and_then_kinds_of_line():
    count = len(COLOURS) + 2
    figure = draw([curve(f"e{i}") for i in range(count)], ["steps"])
    lines = figure.subfigs[0].axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == count
    assert [line.get_color() for line in lines[: len(COLOURS)]] == [*COLOURS]
    assert legend(figure) == [f"e{i}" for i in range(count)]


def test_experiments_of_one_name_are_told_apart_in_the_legend():
    figure = draw([curve(gamma=0.5), curve(gamma=0.9)])
    assert legend(figure) == ["a (algorithm.gamma=0.5)", "a (algorithm.gamma=0.9)"]


def test_goals_are_lines_that_the_legend_names():
    curves = [curve("a"), curve("b"), curve("c")]
    for each, goal in zip(curves, (1475.5, 300, 300), strict=True):
        each.tables["stop"]["episode_return"] = goal
    figure = draw(curves)
    for panel in figure.subfigs[0].axes:
        across = [y for x, y, _ in lines_of(panel) if x == [0, 1]]
        assert across == [[300.0, 300.0], [1475.5, 1475.5]]
    assert legend(figure) == ["a", "b", "c", "goal: 300", "goal: 1,475.5"]


def test_numbers_are_readable():
    figure = draw([curve(x=(1, 1_000_000), y=(-1500.0, 2500.0))])
    figure.draw_without_rendering()
    steps, seconds = figure.subfigs[0].axes
    shown = [label.get_text() for label in steps.get_xticklabels()]
    assert "200k" in shown and "1M" in shown
    assert "2,000" in [label.get_text() for label in seconds.get_xticklabels()]
    assert {"−1,000", "0", "2,000"} <= {label.get_text() for label in steps.get_yticklabels()}


def test_name_with_signs_of_mathematics_or_an_underscore_first_is_shown_as_it_is():
    figure = draw([curve("_a$b_c$")])
    assert legend(figure) == ["_a$b_c$"]
    write_figure(figure, Path("out.png"))


def test_picture_is_replaced_only_if_it_is_one_of_ours():
    figure, file = draw([curve()], ["steps"]), Path("out.png")
    write_figure(figure, file)
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10, "something is to be seen"
    check_file(file)
    write_figure(figure, file)
    assert [path.name for path in Path().iterdir()] == ["out.png"]
    for foreign in (b"", b"text", Path(__file__).read_bytes()):
        file.write_bytes(foreign)
        with pytest.raises(OperatorError, match="is there already, and not by `rollout plot`"):
            check_file(file)
    Image.new("RGB", (2, 2)).save(file)
    with pytest.raises(OperatorError, match="is there already"):
        check_file(file)


def test_plot_of_one_run_is_in_its_directory(make_trained, capsys):
    run = make_trained("run")
    assert run_main("plot", str(run)) == 0
    assert capsys.readouterr() == ("run/learning_curve.png: 1 run of 1 experiment\n", "")
    assert (run / "learning_curve.png").exists()
    assert run_main("plot", str(run)) == 0, "again"


def test_plot_of_a_folder_of_runs_is_here(make_trained, capsys, monkeypatch):
    make_trained("runs/a", "seed=1")
    make_trained("runs/b", "seed=2", updates=7)
    make_trained("runs/c", "algorithm.gamma=0.5")
    drawn = []
    monkeypatch.setattr(
        plot, "write_figure", lambda figure, file: drawn.append((legend(figure), file))
    )
    assert run_main("plot", "runs", "--x", "steps") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("learning_curves.png: 3 runs of 2 experiments\n", "")
    ((names, file),) = drawn
    assert names == [
        "small (algorithm.gamma=0.99): mean of 2 runs, min to max",
        "small (algorithm.gamma=0.5)",
        "single runs, where not all are",
        "goal: 475",
    ]
    assert file == Path("learning_curves.png")


def test_plot_says_what_is_wrong_with_each_run_and_draws_the_others(make_trained, capsys):
    damaged, going_on, empty = (make_trained(f"runs/{i}", f"seed={i}") for i in range(3))
    text = (damaged / "metrics.jsonl").read_text()
    (damaged / "metrics.jsonl").write_text(text.replace('{"update":3', "?"))
    (going_on / "metrics.jsonl").write_text(text[:-5])
    (going_on / "summary.json").unlink()
    (empty / "metrics.jsonl").write_text("")
    assert run_main("plot", "runs", "--out", "out.png") == 0
    out, err = capsys.readouterr()
    assert out == "out.png: 2 runs of 1 experiment\n"
    assert err.splitlines() == [
        "rollout: runs/0/metrics.jsonl: line 3 is damaged; left out",
        "rollout: runs/1: has not come to its end; drawn as far as it is",
        "rollout: runs/2: no episode has ended in it; left out",
    ]


def test_plot_of_nothing_is_refused(make_trained, capsys):
    run = make_trained("run", updates=0)
    assert run_main("plot", "run") == 2
    message = "rollout: nothing to draw: no episode has ended in run\n"
    assert capsys.readouterr() == ("", message)
    assert not (run / "learning_curve.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none"], "none: no such directory; "),
        (["run", "--out", "out.pdf"], "--out out.pdf: unknown format '.pdf'"),
        (["run", "--out", "no/out.png"], "--out no/out.png: there is no folder no"),
        (["run", "--out", "mine.png"], "mine.png: is there already, and not by `rollout plot`"),
        (["run", "--x", "hours"], "--x"),
        ([], "RUN"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(make_trained, capsys, arguments, message):
    make_trained("run")
    Path("mine.png").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert run_main("plot", *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before
    assert Path("mine.png").read_text() == "mine"


def test_picture_that_the_disk_refuses_leaves_nothing(make_trained, capsys, monkeypatch):
    make_trained("run")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    assert run_main("plot", "run", "--out", "out.png") == 2
    assert "out.png: cannot be written: No space left on device" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_without_matplotlib_one_line_says_what_installs_it(make_trained, capsys, monkeypatch):
    make_trained("run")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoMatplotlib, *sys.meta_path])
    assert run_main("plot", "run") == 2
    assert capsys.readouterr().err == (
        "rollout: drawing needs matplotlib; pip install 'rollout-cluster[plots]'\n"
    )


class _NoMatplotlib:
    """Python, where it is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")


def test_plot_needs_neither_a_window_nor_torch_nor_environments(make_trained):
    make_trained("run")
    code = (
        "import sys, rollout.cli\n"
        "try: rollout.cli.main(['plot', 'run'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'matplotlib' in sys.modules\n"
        "wrong = {'matplotlib.pyplot', 'tkinter', 'torch', 'numba', 'gymnasium'}\n"
        "print(*(wrong & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "run/learning_curve.png: 1 run of 1 experiment\n\n", done.stderr
