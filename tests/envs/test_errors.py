"""Where an error was raised: the author's line, not ours, nor that of what the author calls."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from rollout.envs.errors import raised_at
from rollout.envs.philox import unit_float64


def caught(function, *arguments) -> BaseException:
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def test_place_is_the_authors_last_line_above_what_it_calls():
    line = sys._getframe().f_lineno + 1
    error = caught(lambda: json.loads("{"))
    assert raised_at(error) == f"{__file__}:{line}", "not json's own"
    error = caught(lambda: unit_float64(None, 1))
    assert raised_at(error) == f"{__file__}:{line + 2}", "not ours"


def test_place_is_in_what_is_installed_or_pythons_own_where_all_is(tmp_path):
    package = tmp_path / "site-packages" / "game.py"
    package.parent.mkdir()
    package.write_text("import json\n\n\ndef play(text):\n    return json.loads(text)\n")
    game = {"__name__": "game"}
    exec(compile(package.read_text(), package, "exec"), game)
    error = caught(game["play"], "{")
    beginning = error.__traceback__
    assert beginning is not None
    theirs = beginning.tb_next  # without this file
    assert theirs is not None
    assert raised_at(error.with_traceback(theirs)) == f"{package}:5"
    deeper = raised_at(error.with_traceback(theirs.tb_next))
    assert Path(deeper.partition(":")[0]).parent.name == "json"


def test_there_is_no_place_where_all_frames_are_ours():
    error = caught(unit_float64, None, 1)
    assert error.__traceback__ is not None
    assert raised_at(error.with_traceback(error.__traceback__.tb_next)) == ""
    assert raised_at(ValueError("never raised")) == ""


def test_module_of_ours_that_is_run_has_no_place():
    ran = {"__name__": "__main__", "__spec__": ModuleSpec("rollout.template", None)}
    exec("def fail():\n    raise ValueError", ran)
    error = caught(ran["fail"])
    assert error.__traceback__ is not None
    assert raised_at(error.with_traceback(error.__traceback__.tb_next)) == ""
