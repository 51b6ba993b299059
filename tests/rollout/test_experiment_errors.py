"""Experiment files that are wrong: everything is said at once, so that its author can mend it."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import ConfigError
from rollout.experiment import Experiment, load_experiment, resolve
from rollout.experiment_errors import show_value
from rollout.experiment_file import MAX_FILE_BYTES, Layers, Source
from rollout.experiment_rules import resolve_params

SMALLEST = {"env": {"id": "CartPole-v1"}, "stop": {"env_steps": 1000}}
SMALLEST_FILE = '[env]\nid = "CartPole-v1"\n[stop]\nenv_steps = 1000\n'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return name


def problems(source: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(source, overrides)
    return list(caught.value.problems)


def problem(source: Any, *overrides: str) -> str:
    found = problems(source, *overrides)
    assert len(found) == 1, found
    return found[0]


# -- files


def test_missing_file_is_told_with_the_nearest_there_is():
    write("cartpole.toml", SMALLEST_FILE)
    assert problem("cartpol.toml") == "cartpol.toml: no such file; did you mean cartpole.toml?"


def test_missing_file_in_an_empty_folder():
    assert problem("x.toml") == "x.toml: no such file; there is no experiment file in ./"


def test_directory_is_no_experiment_file(tmp_path):
    assert problem(tmp_path).startswith(f"{tmp_path}: a directory, wanted an experiment file; ")


def test_file_that_is_not_toml_is_told_with_its_line():
    text = problem(write("x.toml", "seed = 1\n[env\n"))
    assert text.startswith("x.toml: not TOML: ")
    assert "line 2" in text


def test_file_that_is_not_utf8_is_told_with_its_line():
    text = problem(write("x.toml", b"seed = 1\nname = 'caf\xe9'\n"))
    assert text == "x.toml: not UTF-8 text (line 2: byte 0xe9); save it as UTF-8"


@pytest.mark.parametrize("content", ["", "\n  \n", "# only a comment\n"])
def test_empty_file_is_told_what_an_experiment_needs(content):
    assert problem(write("x.toml", content)).startswith("x.toml: says nothing; ")


def test_file_that_is_far_too_large_is_not_read_to_its_end():
    assert "more than" in problem(write("x.toml", b"#" * (MAX_FILE_BYTES + 1)))


def test_file_nested_too_deeply_is_no_experiment_file():
    assert "nested too deeply" in problem(write("x.toml", "a = " + "[" * 5000))


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x.toml/y.toml"])
def test_impossible_path_is_a_config_error(path):
    write("x.toml", SMALLEST_FILE)
    assert "cannot be read" in problem(path)


def test_windows_text_is_welcome():
    path = write("x.toml", b"\xef\xbb\xbf" + SMALLEST_FILE.replace("\n", "\r\n").encode())
    assert load_experiment(path).env.id == "CartPole-v1"


# -- extends


def test_missing_base_is_told_with_the_file_that_extends_it():
    text = problem(write("x.toml", 'extends = "y/base.toml"'))
    assert text.startswith("y/base.toml: no such file (x.toml extends it); ")


def test_base_that_is_not_toml_is_told_as_itself():
    write("base.toml", "=")
    assert problem(write("x.toml", 'extends = "base.toml"')).startswith("base.toml: not TOML (")


def test_circle_of_extends_is_shown():
    write("b.toml", 'extends = "c.toml"')
    write("c.toml", 'extends = "b.toml"')
    text = problem(write("a.toml", 'extends = "b.toml"'))
    assert text == (
        "a.toml: a circle: a.toml extends b.toml extends c.toml extends b.toml; remove one extends"
    )


@pytest.mark.parametrize("value", ["3", '""', '["base.toml"]'])
def test_extends_wants_a_path(value):
    text = problem(write("x.toml", f"extends = {value}"))
    assert text.endswith("wanted the path of another experiment file, in quotes")


def test_error_in_a_base_names_the_base():
    write("base.toml", SMALLEST_FILE + "[fleet]\nwindow = 9\n")
    text = problem(write("x.toml", 'extends = "base.toml"\nseed = 1\n'))
    assert text.startswith("base.toml: fleet.window=9 wanted an integer from 1 to 4 ")


# -- keys


def test_everything_is_said_at_once():
    path = write(
        "x.toml",
        'seed = -1\n[fleet]\nunrol_length = 3\nmode = "sync"\nnum_actors = 65\n[algorithm]\n'
        "gamma = 1.5\nanneal_lr = true\nnum_minibatches = 3\n[checkpoint]\nkeep = 0\n"
        "[stop]\nwall_s = 9\n",
    )
    assert problems(path, "env.num_envs=0.5", "nonsense") == [
        "override nonsense: wanted key=value, for example fleet.num_actors=2",
        "x.toml: seed=-1 wanted an integer from 0 to 2**32 - 1 (begins all randomness of the run); "
        "leave it out for the default, 0",
        'x.toml: missing key env.id (the environment to train in); write id = "CartPole-v1" '
        "under [env]",
        "override env.num_envs=0.5: wanted an integer from 1 to 2**24 - 1 (environments of the "
        "whole fleet; actors share them out); leave it out for the default, 64",
        'x.toml: fleet.mode="sync" wanted "lockstep" or "async" (whether actors wait for the '
        'weights an unroll is meant to have); did you mean "async"?',
        "x.toml: unknown key fleet.unrol_length; did you mean fleet.unroll_length?",
        "x.toml: algorithm.gamma=1.5 wanted a number from 0 to 1 (discount per step); "
        "leave it out for the default, 0.99",
        "x.toml: checkpoint.keep=0 wanted an integer ≥ 1 (newest checkpoints that are kept, besides"
        " the best); leave it out for the default, 3",
        "x.toml: algorithm.anneal_lr=true needs stop.env_steps, where learning_rate reaches 0; "
        "write env_steps under [stop], or leave anneal_lr out",
    ]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("unroll_length=3", "did you mean fleet.unroll_length?"),
        ("fleet.lerning_rate=3", "did you mean algorithm.learning_rate?"),
        ("flet.window=3", "did you mean fleet?"),
        ("sed=3", "did you mean seed?"),
        ("env.params.forc=3", "did you mean env.params.force?"),
        ("learner.xyz=3", "[learner] has device, num_threads, max_skipped_steps"),
        ("env.params.xyz=3", "[env.params] has force"),
    ],
)
def test_unknown_key_is_told_with_the_nearest(override, hint):
    text = problem(SMALLEST, override)
    assert text.startswith(f"override {override}: unknown key ")
    assert text.endswith(f"; {hint}")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("seed=1.0", "wanted an integer from 0 to 2**32 - 1"),
        ("seed=true", "wanted an integer"),
        ("seed=4294967296", "wanted an integer"),
        ("seed='3'", "write it without quotes, seed = 3"),
        ("seed.deeper=3", "seed={…} wanted an integer"),
        ("env=3", "wanted a table; write [env] and its keys below it"),
        ("env.params=3", "wanted a table"),
        (
            "env.id=3",
            'wanted a string, in quotes (the environment to train in); for example id = "C',
        ),
        ("env.id=''", "wanted a string"),
        ("env.num_envs=16777216", "wanted an integer from 1 to 2**24 - 1"),
        ("env.max_episode_steps=0", "wanted an integer from 1 to 2**31 - 1, or -1 (steps after"),
        ("env.max_episode_steps=2.5", "wanted an integer from 1 to 2**31 - 1, or -1"),
        ("env.params.forse=1.0", "unknown key env.params.forse, CartPole has none such; did you"),
        ("env.params.force=strong", "env.params.force=strong: wanted a number; leave it out"),
        (
            "env.params.force=true",
            "wanted a number; leave it out for the environment's default, 10.0",
        ),
        ("env.params.force=nan", "wanted a number"),
        ("fleet.num_actors=0", "wanted an integer ≥ 1"),
        ("fleet.unroll_length=65536", "wanted an integer from 1 to 65535"),
        ("fleet.engine=ray", '"ray" is not available yet in this version'),
        ("fleet.mode=Lockstp", 'did you mean "lockstep"?'),
        ("fleet.hang_s=0", "wanted a number above 0 (seconds an unroll may take before"),
        ("fleet.on_env_failure=set-aside", 'did you mean "set_aside"?'),
        ("learner.device=gpu", 'wanted "auto", "cpu", "cuda" or "cuda:N"'),
        ("learner.device=cuda:01", 'wanted "auto", "cpu", "cuda" or "cuda:N"'),
        ("network.kind=cnn", 'wanted "mlp"'),
        ("network.kind=3", 'wanted "mlp"'),
        ("network.hidden_sizes=[]", "wanted a list of 1 to 16 integers from 1 to 8192"),
        ("network.hidden_sizes=[64, 0]", "wanted a list of 1 to 16 integers"),
        ("network.hidden_sizes=64", "wanted a list of 1 to 16 integers"),
        ("network.activation=gelu", 'wanted "tanh" or "relu"'),
        ("network.core=3", "wanted a table; write [network.core] and its keys below it"),
        ("network.core.kind=Lstm", 'did you mean "lstm"?'),
        ("network.core.sizes=3", "unknown key network.core.sizes; did you mean network.core.size?"),
        (
            "algorithm.kind=inpala",
            'wanted "ppo" or "impala" or "package.module:Class" (which algorithm); did you mean '
            '"impala"?',
        ),
        ("algorithm.learning_rate=0", "wanted a number above 0"),
        ("algorithm.learning_rate=inf", "wanted a number above 0"),
        ("algorithm.norm_adv=1", "wanted true or false"),
        ("algorithm.target_kl=0.0", "wanted a number above 0"),
        ("stop.env_steps=0", "wanted an integer from 1 to 2**63 - 1"),
        ("stop.wall_s=0", "wanted a number above 0"),
        ("name=a/b", "wanted text usable as a directory's name"),
        ("name=..", "wanted text usable as a directory's name"),
        ("name=-x", "wanted text usable as a directory's name"),
        ("name=''", "wanted text usable as a directory's name"),
        ("name=2024-01-01", "put it in quotes if it is meant as text"),
        (f"name={'x' * 101}", "wanted text usable as a directory's name"),
    ],
)
def test_wrong_value_is_told_with_what_was_wanted(override, wanted):
    text = problem(SMALLEST, override)
    assert text.startswith(f"override {override}: ")
    assert wanted in text


@pytest.mark.parametrize("override", ["", "x", "=3", "a..b=3", ".a=3", "a b=3", "a.=3", '"a"=3'])
def test_malformed_override_is_told_its_form(override):
    text = problem(SMALLEST, override)
    assert text == f"override {override}: wanted key=value, for example fleet.num_actors=2"


def test_extends_is_no_override():
    assert "only inside a file" in problem(SMALLEST, "extends=base.toml")


def test_file_whose_name_is_no_name_for_a_run_is_told_so():
    text = problem(write("-x.toml", SMALLEST_FILE))
    assert text.startswith('-x.toml: name="-x" wanted text usable as a directory\'s name')


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("network.gaussian.std=dependant", 'did you mean "dependent"?'),
        ("network.gaussian.squash=true", 'wanted "none" or "tanh" (what brings them within'),
        ("network.gaussian.sqush=tanh", "did you mean network.gaussian.squash?"),
        ("network.gaussian=tanh", "wanted a table; write [network.gaussian] and its keys below"),
    ],
)
def test_wrong_value_for_quantities_is_told_with_what_was_wanted(override, wanted):
    text = problem(SMALLEST | {"env": {"id": "Pendulum-v1"}}, override)
    assert text.startswith(f"override {override}: ")
    assert wanted in text


def test_keys_of_tables_given_in_python_are_strings():
    assert "key 3 in env" in problem({**SMALLEST, "env": {"id": "CartPole-v1", 3: 4}})


def test_any_object_is_a_wrong_value_like_any_other():
    assert "seed=an object of type object wanted" in problem({**SMALLEST, "seed": object()})


# -- rules


def test_rule_is_silent_about_keys_that_are_wrong_themselves():
    found = problems(SMALLEST, "algorithm.num_minibatches=0", "stop.env_steps=x")
    assert len(found) == 2, found


@pytest.mark.parametrize(
    ("num_envs", "length", "parts", "fitting"),
    [(3, 100, 8, 104), (64, 1, 7, 7), (1, 1, 8, 8), (2, 97, 4, 98), (5, 64, 10, 64)],
)
def test_batch_that_does_not_divide_is_told_the_nearest_length_that_does(
    num_envs, length, parts, fitting
):
    overrides = [
        f"env.num_envs={num_envs}",
        f"fleet.unroll_length={length}",
        f"algorithm.num_minibatches={parts}",
    ]
    if num_envs * length % parts == 0:
        assert Experiment.from_dict(SMALLEST, overrides).fleet.unroll_length == fitting
        return
    text = problem(SMALLEST, *overrides)
    assert text.startswith(
        f"experiment: fleet.unroll_length={length} (override) × env.num_envs={num_envs} (override) "
        f"is not a multiple of algorithm.num_minibatches={parts} (override)"
    )
    assert text.endswith(f"; try fleet.unroll_length={fitting}")


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 30))
def test_suggested_length_fits_and_none_is_nearer(num_envs, length, parts):
    sizes = {"env": {"id": "CartPole-v1", "num_envs": num_envs}, "fleet": {"unroll_length": length}}
    tables = SMALLEST | sizes | {"algorithm": {"num_minibatches": parts}}
    fits = [n for n in range(1, 200) if n * num_envs % parts == 0]
    if length in fits:
        Experiment.from_dict(tables)
        return
    suggested = int(problem(tables).rpartition("=")[2])
    assert suggested in fits
    assert abs(suggested - length) == min(abs(n - length) for n in fits)


def test_batch_that_no_length_divides_is_told_another_number_of_minibatches():
    text = problem(SMALLEST, "env.num_envs=1", "algorithm.num_minibatches=131074")
    assert text.endswith("; try algorithm.num_minibatches=2")


def test_minibatches_of_impala_are_whole_environments():
    kind = "algorithm.kind=impala"
    assert Experiment.from_dict(SMALLEST, [kind, "algorithm.num_minibatches=16"])
    assert problem(SMALLEST, kind, "algorithm.num_minibatches=48") == (
        "experiment: env.num_envs=64 (default) is not a multiple of algorithm.num_minibatches=48 "
        '(override), and algorithm.kind="impala" needs minibatches of whole environments; try '
        "env.num_envs=48"
    )
    assert problem(SMALLEST, kind, "algorithm.num_minibatches=128").endswith("env.num_envs=128")
    assert Experiment.from_dict(SMALLEST, ["algorithm.num_minibatches=128"])


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("algorithm.learning_rate=0", "wanted a number above 0"),
        ("algorithm.gamma=1.5", "wanted a number from 0 to 1"),
        ("algorithm.gae_lambda=-0.1", "wanted a number from 0 to 1"),
        ("algorithm.rho_clip=0", "wanted a number above 0 (bound of the ratio"),
        ("algorithm.c_clip=-1", "wanted a number above 0 (bound of the ratio"),
        ("algorithm.rho_clip=inf", "wanted a number above 0"),
        ("algorithm.ent_coef=-0.01", "wanted a number ≥ 0"),
        ("algorithm.vf_coef=-0.5", "wanted a number ≥ 0"),
        ("algorithm.max_grad_norm=0", "wanted a number above 0"),
        ("algorithm.num_minibatches=0", "wanted an integer ≥ 1"),
        ("algorithm.update_epochs=2", "unknown key algorithm.update_epochs"),
    ],
)
def test_settings_of_impala_that_are_out_of_range_are_told(override, wanted):
    text = problem(SMALLEST, "algorithm.kind=impala", override)
    assert text.startswith(f"override {override}: ")
    assert wanted in text


def test_table_of_several_kinds_that_is_none_is_told_so():
    for wrong in ("algorithm=3", "algorithm=false", "network=[1]"):
        assert "wanted a table" in problem(SMALLEST, wrong)


def test_actor_without_an_environment_is_refused():
    text = problem(write("x.toml", SMALLEST_FILE + "[fleet]\nnum_actors = 65\n"))
    assert text == (
        "x.toml: fleet.num_actors=65 is more than env.num_envs=64 (default), an actor would have "
        "no environment; try fleet.num_actors=64"
    )


@pytest.mark.parametrize("stop", [{}, {"stop": {}}])
def test_run_that_would_never_end_is_refused(stop):
    assert "no condition under [stop]" in problem({"env": {"id": "CartPole-v1"}, **stop})


@pytest.mark.parametrize("mode", [{}, {"mode": "lockstep"}])
def test_only_an_async_run_may_set_environments_aside(mode):
    fleet = {"on_env_failure": "set_aside"}
    origin = "" if mode else " (default)"
    assert problem({**SMALLEST, "fleet": fleet | mode}) == (
        'experiment: fleet.on_env_failure="set_aside" needs fleet.mode="async", in '
        f'fleet.mode="lockstep"{origin} every environment is part of every batch; leave '
        "on_env_failure out, or try fleet.mode=async"
    )
    Experiment.from_dict({**SMALLEST, "fleet": fleet | {"mode": "async"}})


# -- environments


def test_unknown_environment_is_told_with_the_nearest():
    text = problem(SMALLEST, "env.id=CartPol-v1", "env.params.foo=3")
    assert text.startswith("override env.id=CartPol-v1: unknown environment")
    assert "did you mean CartPole-v1?" in text


def test_environment_whose_module_fails_to_import_is_a_config_error(tmp_path, monkeypatch):
    write("broken_environment.py", "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError") as caught:
        resolve(SMALLEST, ["env.id=broken_environment:Env"])
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


def test_params_take_the_type_of_their_default():
    env = cast("Any", SimpleNamespace(params={"force": 1.0, "size": 4, "is_round": False}))
    layers = Layers(Source("x.toml", "file x.toml"))
    params, wrong = resolve_params(env, {"force": 2, "size": 5, "is_round": True}, layers)
    assert (params, wrong) == ({"force": 2.0, "size": 5, "is_round": True}, [])
    assert [type(value) for value in params.values()] == [float, int, bool]
    params, wrong = resolve_params(env, {"size": 5.0, "is_round": 1, "force": 10**400}, layers)
    assert params == env.params
    assert [text.partition(";")[0] for text in wrong] == [
        "x.toml: env.params.size=5.0 wanted an integer of 64 bits",
        "x.toml: env.params.is_round=1 wanted true or false",
        "x.toml: env.params.force=an integer of 1329 bits wanted a number",
    ]


# -- anything at all


def problems_if_any(load: Callable[[], object]) -> tuple[str, ...]:
    try:
        load()
    except ConfigError as error:
        return error.problems
    return ()


SECTIONS = ["env", "fleet", "learner", "network", "algorithm", "stop", "checkpoint"]
NAMES = [
    *("id", "num_envs", "params", "num_actors", "unroll_length", "mode", "kind", "device"),
    *("hidden_sizes", "env_steps", "wall_s", "keep", "gamma", "num_minibatches", "target_kl"),
    *("core", "gaussian"),
]
# Without a colon: `package.module:Name` would import what hypothesis makes up.
text = st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=12)
scalars = (
    st.booleans()
    | st.integers()
    | st.integers(15000, 15100).map(lambda bits: 1 << bits)  # more digits than Python prints
    | st.floats()
    | text
    | st.sampled_from(["CartPole-v1", "ppo", "mlp", "async", "cuda:1"])
    | st.dates()
    | st.datetimes()
    | st.times()
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3)
)
tables = st.dictionaries(st.sampled_from(NAMES) | text, values, max_size=5)
documents = st.dictionaries(st.sampled_from([*SECTIONS, "name", "seed"]) | text, tables | values)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_arbitrary_bytes_are_never_more_than_a_config_error(content):
    with pytest.raises(ConfigError):
        load_experiment(write("x.toml", content))


@given(
    documents,
    st.lists(
        text | st.builds("{}.{}={}".format, st.sampled_from(SECTIONS), st.sampled_from(NAMES), text)
    ),
)
def test_arbitrary_tables_are_never_more_than_a_config_error(document, overrides):
    assert all(problems_if_any(lambda: Experiment.from_dict(document, overrides)))


@given(documents)
def test_arbitrary_toml_is_never_more_than_a_config_error(document):
    document = {k: v for k, v in document.items() if k != "extends"}
    try:
        content = tomli_w.dumps(document)
    except (ValueError, TypeError):  # an integer of too many digits
        content = "x = 0x" + "f" * 5000
    found = problems_if_any(lambda: load_experiment(write("x.toml", content)))
    assert all(problem.startswith("x.toml: ") for problem in found)


@given(values)
def test_shown_value_is_one_line_of_printable_text(value):
    shown = show_value(value)
    assert shown.isprintable()
    assert len(shown) < 1000


def test_shown_value_is_what_one_would_type():
    shown = [show_value(v) for v in (True, 3, 0.5, 'a"b\\\n', [1, "x", [2]], {"a": 1}, math.inf)]
    assert shown == ["true", "3", "0.5", '"a\\"b\\\\\\n"', '[1, "x", […]]', "{…}", "inf"]
