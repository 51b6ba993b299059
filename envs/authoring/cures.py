"""What Numba says of common mistakes → the same in the author's terms, and the usual cure.

A message is searched for the patterns of CURES, in order. Where none is found, the syntax of the
line decides.
"""

import ast
import re
from dataclasses import dataclass, replace

from rollout.envs.authoring.authored import Place

KIT_CALLS = ("uniform", "integers", "normal")
# Functions of Python's and NumPy's that draw → what to call instead
DRAWS = {
    "random": "uniform(draw, 0.0, 1.0)",
    "rand": "uniform(draw, 0.0, 1.0)",
    "random_sample": "uniform(draw, 0.0, 1.0)",
    "uniform": "uniform(draw, low, high)",
    "randint": "integers(draw, low, high), which leaves out `high`",
    "randrange": "integers(draw, low, high), which leaves out `high`",
    "choice": "choices[integers(draw, 0, len(choices))]",
    "shuffle": "swap each element i with one at integers(draw, 0, i + 1), from the last on",
    "randn": "normal(draw, 0.0, 1.0)",
    "standard_normal": "normal(draw, 0.0, 1.0)",
    "normal": "normal(draw, mean, standard_deviation)",
    "gauss": "normal(draw, mean, standard_deviation)",
    "seed": "leave it out: the experiment's seed decides every draw",
}
ANY_DRAW = "uniform(draw, low, high), integers(draw, low, high) or normal(draw, mean, deviation)"

RETURN = "return reward, terminated"
TWO_VALUES = (
    f"`{RETURN}`: `max_episode_steps` truncates, `observe` writes what is observed, and there is "
    "no info"
)
FIXED_SIZE = (
    "an array of fixed length in `state` and a count of what is in it: "
    '("items", "i4", (8,)), ("num_items", "i4")'
)
TO_STATE = "keep what changes in `state`"
NO_DICTIONARY = "number the keys 0, 1, … and use a tuple or an array: TABLE = (0.5, 2.0)"
NO_OBJECTS = (
    "keep what changes in `state`, constants as numbers, tuples or arrays outside the class, and "
    "write methods as functions: distance(state, x)"
)
NO_TRY = "test first: if x != 0.0; dividing by zero gives inf or nan and raises nothing"
NO_TEXT = "numbers with names, LEFT, RIGHT = 0, 1"
NOT_HERE = (
    "functions compute on `state` alone: what they need of it becomes a constant at the top of the "
    "file, LIMIT = sys.float_info.max"
)
AN_END = 'to end an episode, return terminated = True; to stop the run, raise RuntimeError("why")'
A_LOOP = "write the loop, for i in range(3); compiled it is as fast as C"
A_NUMPY_LOOP = "write the loop, for i in range(3): state.board[i]…; compiled it is as fast as C"
WRITE_INTO = "write into it: state.board[:] = …"
ONE_TYPE = "one type for each name: start with x = 0.0 where floats follow, or use two names"
ONE_TRUTH = "one truth: (…).any(), (…).all(), or a comparison of one element"
PRINT = 'print("x", state.x), or any Python where Envs(…, jit=False) runs it'
DEFAULT = (
    "compiled are numbers, tuples, arrays, loops, functions, math and much of NumPy; write it "
    "more simply, or look at its values in plain Python, Envs(…, jit=False)"
)


@dataclass(frozen=True)
class Cure:
    """says: pattern of Numba's message. reason: the same in few words, with its groups; empty
    keeps the message. cure: likewise. source: pattern of the line, which must be there too.
    syntax: what the line has, to find it by where Numba does not tell.
    """

    says: str
    reason: str
    cure: str
    source: str = ""
    syntax: tuple[type[ast.AST], ...] = ()


CURES = (
    # Things that compiled code does not have
    Cure(r"name '(\w+)'.*<class 'dict'>", r"\1 is a dictionary", NO_DICTIONARY),
    Cure(r"variable '(\w+)' in globals|name '(\w+)'.*'list'", r"\1 is a list", r"a tuple"),
    Cure(r"OverloadSelector.*List", "a list from outside the function", "a tuple"),
    Cure(r"name '(\w+)'.*<class 'set'>", r"\1 is a set", "a tuple"),
    Cure(
        r"name '(\w+)'.*<class 'gymnasium",
        r"\1 is an object of Gymnasium's",
        "its numbers as constants: NUM_ACTIONS = 3",
    ),
    Cure(r"name 'super'", "there is no super()", "call a function that both classes use"),
    Cure(
        r"name '(breakpoint|input|open|exec|eval)'",
        r"\1(…) is not compiled",
        "Envs(…, jit=False) runs it as plain Python, for a debugger",
    ),
    Cure(r"name '(exit|quit)'", r"\1(…) is not compiled", AN_END),
    Cure(r"name '(\w+)'.*builtin_function", r"\1(…) is not compiled", A_LOOP),
    Cure(
        r"name '(\w+)'.*<class 'functools.partial'",
        r"\1 is a functools.partial",
        r"a function that calls it: def \1(x): …",
    ),
    Cure(r"name '(\w+)'.*<class 'functools", r"\1 is decorated", "leave the decorator out"),
    Cure(r"name '(\w+)'.*<class '(?:type|abc.ABCMeta)'>", r"\1 is a class", NO_OBJECTS),
    Cure(r"name '(\w+)'.*<class '(\S+)'>", r"\1 is a Python object, \2", NO_OBJECTS),
    Cure("LOAD_BUILD_CLASS", "a class inside a function", NO_OBJECTS),
    Cure("IMPORT_NAME", "an import inside a function", "import at the top of the file"),
    Cure("STORE_GLOBAL|DELETE_GLOBAL", "globals are constants when compiled", TO_STATE),
    Cure("readonly array", "arrays outside the class are constants when compiled", TO_STATE),
    Cure(
        r"attribute '(\w+)' of type Module\(<module 'time'",
        r"time.\1 is not compiled, and no state could give the same again",
        "count steps in `state`",
    ),
    Cure(
        r"attribute '(\w+)' of type Module\(<module 'gymnasium",
        r"\1 is Gymnasium's, and plain Python",
        "spaces are for the attributes of the class, their numbers for its functions",
    ),
    Cure(
        r"attribute '(_?exit|abort|kill)' of type Module\(<module '(\w+)'",
        r"\2.\1 is not compiled",
        AN_END,
    ),
    Cure(
        r"attribute '(\w+)' of type Module\(<module "
        r"'(os|sys|io|json|csv|pickle|logging|pathlib|shutil|socket|subprocess|threading)'",
        r"\2.\1 is not compiled",
        NOT_HERE,
    ),
    Cure("has no attribute 'random'", "", ANY_DRAW),
    Cure(
        r"module '(\w+)' has no attribute '(\w+)'",
        r"module \1 has no \2",
        r"a function that \1 has, or plain arithmetic",
    ),
    Cure(
        r"attribute '(\w+)' of type Module\(<module '([\w.]+)'",
        r"\2.\1 is not compiled",
        A_LOOP,
    ),
    # NumPy
    Cure(r"unsupported NumPy function '(numpy\.\S+)'", r"\1 is not compiled", A_NUMPY_LOOP),
    Cure(
        r"unexpected keyword argument '(\w+)'",
        r"compiled, this takes no \1",
        A_NUMPY_LOOP,
        source=r"np\.|\.(sum|mean|max|min|any|all|std|argmax|argmin)\(",
    ),
    Cure(
        r"attribute '\w+' of type (?:float|int)",
        "compiled, clip is for arrays",
        "min(max(x, low), high)",
        source=r"clip\(",
    ),
    Cure(
        r"attribute '(\w+)' of type ((?:float|int|uint|bool)\w*)",
        r"a number (\2) has no \1",
        "numbers need no methods: int(x), float(x), min(max(x, low), high)",
    ),
    Cure(
        r"attribute '(append|extend|pop|remove|insert)' of type nestedarray",
        r"an array has no \1",
        "its length is fixed, so count: state.items[state.num_items] = x; state.num_items += 1",
    ),
    Cure(
        r"attribute '(\w+)' of type (?:nestedarray|array)",
        r"an array has no compiled \1",
        A_NUMPY_LOOP,
    ),
    Cure(
        "AssertionError",
        "an array is assigned whole, or indexed with another",
        f"{WRITE_INTO}; or {A_NUMPY_LOOP}",
        syntax=(ast.Subscript,),
    ),
    Cure(
        r"(float|int)\(\) only support",
        r"\1(…) is compiled for numbers only",
        "of a truth: 1.0 if is_caught else 0.0",
    ),
    # Enumerations
    Cure(
        r"\bEnum<.*?>\((\w+)\)",
        r"\1 is an Enum, whose members are no numbers",
        r"an IntEnum: class \1(enum.IntEnum)",
    ),
    # Text
    Cure(r"attribute 'format' of type", "text cannot be formatted", PRINT),
    Cure(r"does mod\('", "text cannot be formatted", PRINT),
    Cure("in f-strings", "formats in f-strings are not compiled", PRINT, syntax=(ast.JoinedStr,)),
    Cure(r"print\(\) function", "print takes no keywords", PRINT, "print", (ast.keyword,)),
    Cure(r"must be Sets|safely cast unicode_type", "text among numbers", NO_TEXT),
    Cure(r"does \w+\(.*'.*'", "text among numbers", NO_TEXT),
    Cure(r"Cannot cast (?:'.*'|unicode_type) to (\w+)", r"text where a \1 is wanted", NO_TEXT),
    # Values in the wrong place
    Cure(
        r"Cannot cast none to (\w+)",
        r"None where a \1 is wanted",
        "a number that says so: -1, or math.nan",
    ),
    Cure(r"Cannot cast (.*) to (\w+)", r"\1 where a \2 is wanted", "one number: x[0], or a sum"),
    Cure("array index type (?:array\\()?float", "an index is a float", "int(x)"),
    Cure(
        r"array index type '",
        "an array is indexed with text",
        "observation[0]; names, observation.name, are for a Dict observation_space",
    ),
    Cure("array index type", "an array is indexed with a list", "integers or slices, in a loop"),
    Cure(
        r"Cannot resolve setattr: \(.*array.*\)\.(\w+) =",
        r"an array has no field \1",
        "observation[0]; names, observation.name, are for a Dict observation_space",
    ),
    Cure(
        r"does (?:static_)?setitem\(\w*array\(.*, .*array\(",
        "an array where one number is wanted",
        "a slice as long as it: observation[0:9] = state.board.reshape(9)",
    ),
    Cure(
        r"does getitem\(Tuple",
        "elements of this tuple are of several kinds, so no variable can choose one",
        "the same kind for all: (1.0, 2.5)",
    ),
    # Types that cannot be told
    Cure(r"list\(undefined\)", "an empty list has no type", FIXED_SIZE),
    Cure(r"DictType\[undefined", "an empty dictionary has no type", FIXED_SIZE, "", (ast.Dict,)),
    Cure(
        "literal list|must be array-like",
        "elements of this list are of several kinds",
        "numbers of one kind, in a tuple",
    ),
    Cure(
        "Cannot infer the type of variable|cannot be determined",
        "the type of something here cannot be told",
        "each step on a line of its own, each name with a value before it is used",
        syntax=(ast.NamedExpr,),
    ),
    # Control flow
    Cure("Exception matching", "only a bare `except:` is compiled", NO_TRY, "", (ast.Try,)),
    Cure("context manager", "`with` is not compiled", "leave it out", "", (ast.With,)),
    Cure(
        "yield in a closure",
        "a generator expression is not compiled",
        "write the loop, or a list: sum([x * x for x in state.board[0]])",
        syntax=(ast.GeneratorExp,),
    ),
    Cure("generator|YIELD", "generators are not compiled", A_LOOP),
    Cure(
        "re-entrant|recursi",
        "a function that calls itself is not compiled",
        "a loop, and an array in `state` for what is still to do",
    ),
    Cure("DICT_MERGE|DICT_UPDATE", "`**` is not compiled", "name the arguments"),
    Cure(r"\*args in function call", "`*` takes a tuple only", "name the arguments"),
    Cure("UNPACK_EX", "`first, *rest =` is not compiled", "slices: rest = values[1:]"),
    Cure("del found", "`del` is not compiled", "leave it out", "", (ast.Delete,)),
    Cure(r"`dict\(\)` with", "dict(…) is not compiled", NO_DICTIONARY),
)

SYNTAX_CURES: tuple[tuple[type[ast.AST], str], ...] = (
    (ast.Try, NO_TRY),
    (ast.With, "leave `with` out"),
    (ast.GeneratorExp, A_LOOP),
    (ast.JoinedStr, PRINT),
    (ast.Dict, NO_DICTIONARY),
    (ast.Set, "a tuple of numbers of one kind: x in (1, 2, 3)"),
    (ast.List, FIXED_SIZE),
    (ast.ListComp, A_LOOP),
    (ast.Lambda, "a function outside the class"),
    (ast.Starred, "name the arguments"),
)


def known_cure(message: str, place: Place) -> Cure | None:
    """The first of CURES that fits what Numba says of a line, in its words."""
    for known in CURES:
        found = re.search(known.says, message)
        if found and re.search(known.source, place.of_syntax(known.syntax).source):
            reason = found.expand(known.reason) or message
            return replace(known, reason=reason, cure=found.expand(known.cure))
    return None


def cure_of_syntax(place: Place) -> str:
    """Of what is on the line, where the message helps nobody."""
    there = {type(node) for node in place.nodes()}
    return next((cure for syntax, cure in SYNTAX_CURES if syntax in there), DEFAULT)
