from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text
from hypothesis import given
from hypothesis import strategies as st

from rollout.envs import CompiledEnv, EnvError
from rollout.envs.classic.cartpole import CartPole
from rollout.envs.diagnostic.counting import Counting

GOOD = {
    "state": np.dtype([("x", "f8")]),
    "params": {"force": 1.0, "length": 3, "sticky": False},
    "observation_space": Box(-1, 1, (1,), np.float32),
    "action_space": Discrete(2),
    "max_episode_steps": 10,
    "reset": Counting.reset,
    "step": Counting.step,
    "observe": Counting.observe,
}
MISSING = object()


def define(**changes) -> type[CompiledEnv]:
    members = {name: value for name, value in (GOOD | changes).items() if value is not MISSING}
    return type("Mine", (CompiledEnv,), members)


# what is wrong → words of the message
BOOL: Any = np.bool_  # Gymnasium takes it, its annotations do not

MISTAKES = [
    ({"state": MISSING}, "state is None, wanted a structured dtype"),
    ({"state": np.dtype("f8")}, "state is dtype('float64'), wanted a structured dtype"),
    ({"state": [("x", "f8")]}, "state is [('x', 'f8')], wanted a structured dtype"),
    ({"state": np.dtype([("o", object)])}, "state.o is object, wanted numbers"),
    ({"state": np.dtype([("s", "S4")])}, "state.s is |S4, wanted numbers"),
    ({"state": np.dtype([("c", "c16")])}, "state.c is complex128, wanted numbers"),
    ({"state": np.dtype([("h", "f2")])}, "state.h is float16, wanted numbers"),
    ({"state": np.dtype([("in", [("o", "O")])])}, "state.in.o is object, wanted numbers"),
    ({"state": np.dtype([("e", "f8", (0, 2))])}, "which holds nothing"),
    ({"state": np.dtype([("b", "?", 3)])}, "Numba has no arrays of bools in records: use u1"),
    ({"params": {"force": "strong"}}, "params['force']='strong', wanted a bool, an int or a float"),
    ({"params": {"a b": 1}}, "params['a b'] is not a name"),
    ({"params": {"n": 2**70}}, "does not fit into 64 bits"),
    ({"params": 3}, "params is 3, wanted a dictionary"),
    ({"observation_space": MISSING}, "observation_space is None, wanted a Box"),
    ({"observation_space": Discrete(3, start=1)}, "wanted a Discrete(n) that starts at 0"),
    ({"observation_space": MultiDiscrete(np.array([[2], [3]]))}, "wanted one row of numbers"),
    ({"observation_space": Text(3)}, "wanted a Box, Discrete, MultiDiscrete, MultiBinary or Dict"),
    (
        {"observation_space": Dict(b=Box(0, 1, (3,), BOOL))},
        "use MultiBinary or a Box of np.uint8",
    ),
    ({"observation_space": Dict({})}, "observation_space is Dict(), which holds nothing"),
    ({"observation_space": Dict({"a b": Discrete(2)})}, "observation_space['a b'] is not a name"),
    (
        {"observation_space": Dict({"inner": Dict({"x": Box(0, 1, ())})})},
        "observation_space['inner']['x'] is Box",
    ),
    ({"observation_space": Box(0, 1, ())}, "wanted a Box of shape (n, …)"),
    ({"observation_space": Box(0, 1, (0,))}, "with at least one number"),
    ({"observation_space": Box(0, 1, (2,), np.float16)}, "with at least one number"),
    ({"action_space": MISSING}, "action_space is None, wanted Discrete(n)"),
    ({"action_space": Box(0, 1, (2, 2))}, "wanted a Box of shape (n,) and float32"),
    ({"action_space": Box(0, 1, (2,), np.float64)}, "wanted a Box of shape (n,) and float32"),
    ({"action_space": MultiDiscrete(np.array([[2], [2]]))}, "wanted MultiDiscrete([n, …])"),
    ({"action_space": MultiBinary(2)}, "wanted Discrete(n), MultiDiscrete([n, …]) or a Box"),
    ({"action_space": Discrete(2, start=1)}, "wanted Discrete(n) that starts at 0"),
    ({"max_episode_steps": 0}, "max_episode_steps=0, wanted a positive integer or None"),
    ({"max_episode_steps": -1}, "max_episode_steps=-1"),
    ({"max_episode_steps": 1.5}, "max_episode_steps=1.5"),
    ({"max_episode_steps": True}, "max_episode_steps=True"),
    ({"max_episode_steps": 2**31}, "max_episode_steps=2147483648"),
    ({"reset": MISSING}, "def reset(state, params, draw) is missing"),
    ({"step": MISSING}, "def step(state, params, action, draw) is missing"),
    ({"observe": MISSING}, "def observe(state, params, observation) is missing"),
    ({"step": 3}, "step is a int, wanted a plain function"),
    ({"step": staticmethod(Counting.step)}, "step is a staticmethod, wanted a plain function"),
    (
        {"step": lambda self, state, params, action, draw: None},
        "step takes (self, state, params, action, draw), wanted (state, params, action, draw)",
    ),
    ({"reset": lambda state, params: None}, "reset takes (state, params), wanted"),
    ({"reset": lambda *a: None}, "reset takes (*a), wanted"),
    (
        {"step": lambda state, action, params, draw: (0.0, False)},
        "step takes (state, action, params, draw), wanted (state, params, action, draw)",
    ),
    (
        {"step": lambda state, action, params, rng: (0.0, False)},
        "step takes (state, action, params, rng), wanted (state, params, action, draw)",
    ),
    ({"reset": lambda state, params, *, draw: None}, "reset takes (state, params, *, draw)"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_mistake_in_a_definition_is_named(changes, words):
    with pytest.raises(EnvError) as caught:
        define(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("environment Mine: ")
    assert ";" not in str(caught.value), "one mistake, one message"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("action_masks", "action_mask"),
        ("max_episode_step", "max_episode_steps"),
        ("has_hidden_states", "has_hidden_state"),
        ("param", "params"),
        ("renders", "render"),
        ("redner", "render"),
    ],
)
def test_what_would_be_left_out_without_a_word_is_refused(name, meant):
    members = {key: value for key, value in GOOD.items() if key != meant}
    with pytest.raises(EnvError, match=f"^environment Mine: {name}: did you mean {meant}\\?$"):
        type("Mine", (CompiledEnv,), members | {name: 1})


@pytest.mark.parametrize(
    "name",
    ["steps", "reset_", "observed", "_render", "max_x", "renderer", "rendered", "action_masker"],
)
def test_other_names_are_the_authors_own(name):
    assert getattr(define(**{name: 1}), name) == 1


def test_all_mistakes_come_at_once():
    mistakes = {}
    words = []
    for changes, word in MISTAKES:
        if not mistakes.keys() & changes.keys():
            mistakes |= changes
            words.append(word)
    assert len(mistakes) == len(GOOD), "one for each member"
    with pytest.raises(EnvError) as caught:
        define(**mistakes)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing


@given(st.sets(st.sampled_from(sorted(GOOD))))
def test_a_definition_without_some_members_names_each(names):
    optional = {"params", "max_episode_steps"}
    if names <= optional:
        define(**dict.fromkeys(names, MISSING))
        return
    with pytest.raises(EnvError) as caught:
        define(**dict.fromkeys(names, MISSING))
    for name in names - optional:
        assert f"{name} is None" in str(caught.value) or f"def {name}(" in str(caught.value)


def test_params_become_a_record_of_their_kinds():
    record = define().make_params({"force": 2, "sticky": True})
    assert record.shape == (1,)
    assert record.dtype == np.dtype([("force", "f8"), ("length", "i8"), ("sticky", "?")])
    assert record[0].tolist() == (2.0, 3, True)
    assert define(params={}).make_params().shape == (1,)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"forse": 1.0}, "no param 'forse'; did you mean force?"),
        ({"zzz": 1.0}, "no param 'zzz'; it has force, length, sticky"),
        ({1: 1.0}, "no param 1; it has force, length, sticky"),
        ({"length": 2.5}, "param length=2.5, wanted an int like the default 3"),
        ({"length": True}, "param length=True, wanted an int"),
        ({"length": 2**63}, "param length=9223372036854775808 does not fit into 64 bits"),
        ({"force": "9.8"}, "param force='9.8', wanted a float like the default 1.0"),
        ({"force": True}, "param force=True, wanted a float"),
        ({"sticky": 1}, "param sticky=1, wanted a bool like the default False"),
        (
            {"sticky": None, "force": None},
            "param sticky=None, wanted a bool like the default False",
        ),
    ],
)
def test_params_of_another_kind_are_refused_not_rounded(chosen, words):
    with pytest.raises(EnvError, match="Mine: ") as caught:
        define().make_params(chosen)
    assert words in str(caught.value)
    assert str(caught.value).count("param ") == len(chosen)


def test_params_that_are_no_dictionary_are_refused():
    with pytest.raises(EnvError, match=r"Mine: params are \[1\], wanted a dictionary"):
        define().make_params([1])  # pyright: ignore[reportArgumentType]


def test_params_of_an_environment_without_any_says_so():
    with pytest.raises(EnvError, match="no param 'force'; it has none"):
        define(params={}).make_params({"force": 1.0})


def test_numpys_numbers_are_good_params():
    record = CartPole.make_params({"force": np.float32(2.5)})
    assert record["force"] == 2.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"action_mask": lambda state, mask: None}, "action_mask takes (state, mask), wanted"),
        ({"render": lambda state: None}, "render takes (state), wanted (state, params)"),
        (
            {
                "action_mask": lambda state, params, mask: None,
                "action_space": Box(-1, 1, (2,), np.float32),
            },
            "action_mask is for choices, Box",
        ),
    ],
)
def test_optional_functions_are_checked_when_they_are_there(changes, words):
    with pytest.raises(EnvError) as caught:
        define(**changes)
    assert words in str(caught.value)
