"""Networks that users have written: a `torch.nn.Module`, named `package.module:Name` or given.

Importing this imports no torch; finding a module does.
"""

import os
from typing import TYPE_CHECKING, Any

from rollout.env_source import OBJECT
from rollout.envs.errors import in_words, raised_at
from rollout.envs.import_path import ImportFailed, import_named, is_named
from rollout.errors import NetworkError
from rollout.learners.network import LOG_STD, GaussianHead, ModuleSpec

if TYPE_CHECKING:
    from torch import nn

    from rollout.learners.module_network import ModuleNetwork


# Measured: 20 actors of 32 environments; CartPole and Breakout-MinAtar in one process.
TEMPLATE_MB, ACTOR_MB, SLOWER = 120, 3, "8 to 50"


def find_module(kind: str, folder: str, given: Any = None) -> "type[nn.Module]":
    """The class that a kind names, as seen from a folder, or from here if that is gone.

    given: the class itself, where the kind tells no more than that it was an object. Raises
    NetworkError that says what is missing, or what is wrong with the class.
    """
    if kind.startswith(OBJECT):
        found = _given(kind, given)
    elif not is_named(kind):
        raise NetworkError(f"network {kind!r}: wanted a name like package.module:Class")
    else:
        try:
            here = folder if os.path.isdir(folder) else os.getcwd()
            found = import_named(kind, here, "torch.nn.Module", _is_module)
        except ImportFailed as failed:
            raise NetworkError(f"network {kind!r}: {failed}") from failed.__cause__
    if not _is_module(found):
        raise NetworkError(f"network {kind!r} is {found!r}; wanted a subclass of torch.nn.Module")
    return found


def cost_in_words(kind: str) -> str:
    """What a module costs a fleet, for who starts one."""
    return (
        f"network {kind!r} is executed by torch in every actor: some {TEMPLATE_MB} MB more for a "
        f"host and {ACTOR_MB} MB for each actor, and acting takes {SLOWER} times as long; the "
        'kinds "mlp" and "conv" are compiled and cost neither'
    )


def _given(kind: str, given: Any) -> Any:
    if given is None:
        name = kind.removeprefix(OBJECT)
        raise NetworkError(
            f"network {kind!r} was an object, of which no file holds more than the name; in "
            f"Python, rollout.load_policy and rollout.train(resume=RUN) take it as network={name} "
            "(commands need one named package.module:Class)"
        )
    return given


def _is_module(value: object) -> bool:
    from torch import nn

    return isinstance(value, type) and issubclass(value, nn.Module) and value is not nn.Module


def construct(spec: ModuleSpec, given: Any = None) -> "nn.Module":
    """The module as its constructor makes it under torch.manual_seed(spec.seed).

    The same in every process, in evaluation mode. Raises NetworkError for what raises, and for
    parameters that cannot be trained.
    """
    import torch

    kind, shape, num_outputs = spec.kind, spec.input_shape, spec.head.num_outputs
    made = find_module(kind, spec.folder, given)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            module = made(shape, num_outputs, **spec.params)
    except (Exception, SystemExit) as error:  # whatever an author's code raises
        parts = [str(shape), str(num_outputs), *(f"{k}={v!r}" for k, v in spec.params.items())]
        raise failed(kind, f"{made.__name__}({', '.join(parts)})", error) from error
    _check_parameters(kind, module, spec)
    return module.eval()


def failed(kind: str, what: str, error: BaseException) -> NetworkError:
    """What an author's code raised, with the line of it."""
    place = raised_at(error)
    where = f" at {place}" if place else ""
    return NetworkError(f"network {kind!r}: {what} failed{where}: {in_words(error)}")


def _check_parameters(kind: str, module: "nn.Module", spec: ModuleSpec) -> None:
    import torch
    from torch.nn.parameter import UninitializedParameter

    count = 0
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise NetworkError(
                f"network {kind!r}: parameter {name} has no shape yet; lazy layers wait for a "
                "first pass, give their sizes instead"
            )
        if parameter.dtype != torch.float32:
            raise NetworkError(
                f"network {kind!r}: parameter {name} is {parameter.dtype}, wanted torch.float32; "
                "let the constructor end with self.float()"
            )
        has_own = isinstance(spec.head, GaussianHead) and spec.head.std == "independent"
        if name == LOG_STD and has_own:
            raise NetworkError(
                f"network {kind!r}: its parameter {name} has the name of the one that every policy "
                "over quantities has besides; leave it out, the outputs are the means alone, or "
                'try network.gaussian.std="dependent"'
            )
        count += parameter.requires_grad
    if not count:
        raise NetworkError(f"network {kind!r} has no parameter that could learn")


def make_module(spec: ModuleSpec, given: Any = None) -> "ModuleNetwork":
    """A module with what executes it, as its constructor makes it; on the CPU.

    given: see find_module. Raises NetworkError, also for one with other parameters than the
    specification says: its file has changed since, or is another one here.
    """
    from rollout.learners.module_network import ModuleNetwork

    return ModuleNetwork(spec, construct_as(spec, given))


def construct_as(spec: ModuleSpec, given: Any = None) -> "nn.Module":
    """Like `construct`, but with the parameters that the specification has. Raises NetworkError."""
    module = construct(spec, given)
    found = named_arrays(module)
    if found != spec.named_arrays:
        names, missing = (
            ", ".join(array[0] for array in these if array not in those) or "none"
            for these, those in ((found, spec.named_arrays), (spec.named_arrays, found))
        )
        raise NetworkError(
            f"network {spec.kind!r} is not what it was: parameters {names} in place of {missing}; "
            "get back the version of then"
        )
    return module


def named_arrays(module: "nn.Module") -> tuple[tuple[str, tuple[int, ...], bool], ...]:
    """What it has in the flat vector, see ModuleSpec."""
    from rollout.learners.module_network import tensors_of

    return tuple((name, tuple(t.shape), t.requires_grad) for name, t in tensors_of(module))
