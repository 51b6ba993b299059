"""A user's network, tried out on made-up observations before anything is started."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from gymnasium.spaces import Dict

from rollout.envs.layouts import observation_layout
from rollout.envs.registry import AnyEnv
from rollout.errors import NetworkError
from rollout.learners.network import InputPart, ModuleSpec
from rollout.modules import construct, construct_as, failed, named_arrays
from rollout.shapes import head_of, parts_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rollout.experiment import Experiment
    from rollout.experiment_tables import ModuleSettings

ROWS = 8
LARGEST = 10.0  # of made-up quantities: spaces without bounds allow what overflows


def specify(settings: "ModuleSettings", env: AnyEnv, seed: int) -> ModuleSpec:
    """The specification of a module for an environment; makes it, and passes observations through.

    Raises NetworkError for what cannot be made, and for what it returns or does that cannot be.
    """
    layout = observation_layout(env.observation_space)
    spec = ModuleSpec(
        observation_shape=layout.shape,
        head=head_of(env, settings.gaussian),
        parts=parts_of(env),
        kind=settings.kind,
        folder=os.getcwd(),
        params=dict(settings.params),
        seed=seed,
    )
    module = construct(spec, settings.given)
    spec = msgspec.structs.replace(spec, named_arrays=named_arrays(module))
    inputs = made_up_inputs(spec, env)
    row_numbers = _try(spec, module, inputs)
    return msgspec.structs.replace(spec, row_numbers=row_numbers)


def warnings_of(experiment: "Experiment", spec: ModuleSpec) -> list[str]:
    """What works, but hardly as its author means it.

    Raises NetworkError for what a second module of the same class, or a gradient, shows to be
    wrong.
    """
    env, given = experiment.env.find(), experiment.given_network
    return [f"network {spec.kind!r}: {text}" for text in _warnings(spec, env, given)]


def _warnings(spec: ModuleSpec, env: AnyEnv, given: Any) -> Iterator[str]:
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.dropout import _DropoutNd

    module, other = construct_as(spec, given), construct_as(spec, given)
    outputs, value = module(made_up_inputs(spec, env))
    first = *module.parameters(), *module.buffers(), outputs, value
    second = *other.parameters(), *other.buffers(), *other(made_up_inputs(spec, env))
    if not all(map(torch.equal, first, second)):
        raise _refused(
            spec,
            "made a second time, it has other numbers, or gives other results; every process makes "
            f"it for itself, under torch.manual_seed({spec.seed}): draw from torch only in its "
            "constructor",
        )
    try:
        (outputs.sum() + value.sum()).backward()
    except (Exception, SystemExit) as error:  # whatever an author's own backward pass raises
        raise failed(spec.kind, "the gradient of outputs and value", error) from error
    unreached = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if unreached:
        yield (
            f"no gradient reaches {', '.join(unreached)} from outputs and value, so nothing of "
            "that will learn; is all of it used, and is nothing detached?"
        )
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm | _DropoutNd):
            yield (
                f"{name} is a {type(layer).__name__}, which does what it does in evaluation mode "
                "only, as all modules are; LayerNorm does not depend on the mode"
            )


def made_up_inputs(spec: ModuleSpec, env: AnyEnv) -> "torch.Tensor":
    """What a module reads, float32 [ROWS, *input_shape], within the bounds of its environment."""
    import torch

    generator = np.random.default_rng(0)
    space = env.observation_space
    if not spec.parts:
        return torch.from_numpy(_quantities(space, generator))
    names = [part.name for part in observation_layout(space).parts]
    columns = [
        _columns(part, _leaf(space, name), generator)
        for part, name in zip(spec.parts, names, strict=True)
    ]
    return torch.from_numpy(np.concatenate(columns, axis=1))


def _leaf(space: Any, name: str) -> Any:
    """The space of a part of an observation, by its keys joined by dots."""
    while isinstance(space, Dict):
        key = next(key for key in space if name == key or name.startswith(f"{key}."))
        space, name = space[key], name[len(key) + 1 :]
    return space


def _quantities(space: Any, generator: np.random.Generator) -> np.ndarray:
    """Numbers of a Box, within its bounds: float32 [ROWS, *shape]."""
    shape = (ROWS, *space.shape)
    if space.dtype.kind == "f":
        numbers = generator.standard_normal(shape).clip(space.low, space.high)
        return numbers.clip(-LARGEST, LARGEST).astype(np.float32)
    return generator.integers(space.low, space.high, shape, space.dtype, True).astype(np.float32)


def _columns(part: InputPart, space: Any, generator: np.random.Generator) -> np.ndarray:
    if not part.categories:
        return _quantities(space, generator).reshape(ROWS, part.size)
    chosen = (generator.integers(count, size=ROWS) for count in part.categories)
    one_hot = [np.eye(n, dtype=np.float32)[k] for n, k in zip(part.categories, chosen, strict=True)]
    return np.concatenate(one_hot, axis=1)


def _try(spec: ModuleSpec, module: "nn.Module", inputs: "torch.Tensor") -> int:
    """How many numbers a pass keeps of a row for its gradient. Raises NetworkError."""
    import torch

    kept: dict[int, int] = {p.data_ptr(): 0 for p in [*module.parameters(), *module.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.data_ptr(), tensor.numel())
        return tensor

    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            first = _pass(spec, module, inputs)
        if not any(tensor.requires_grad for tensor in first):
            raise _refused(
                spec,
                "outputs and value carry no gradient; they must come from its parameters, without "
                "detach or torch.no_grad in between",
            )
        known = {name for name, *_ in spec.named_arrays}
        if made := ", ".join(name for name, *_ in named_arrays(module) if name not in known):
            raise _refused(
                spec, f"forward makes {made}; make all parameters and buffers in the constructor"
            )
        if shapes := ", ".join(_strangers(module, first)):
            raise _refused(
                spec,
                f"outputs and value come from tensors that are no parameters of it: {shapes}; they "
                "would neither learn nor be saved: keep layers of a list in an nn.ModuleList, "
                "tensors as nn.Parameter",
            )
        again = _pass(spec, module, inputs)
        others = torch.cat([inputs[:1], torch.zeros_like(inputs[1:])])
        beside = _pass(spec, module, others)
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        raise _refused(
            spec,
            "forward gave other results for the same observations the second time; it must be a "
            "function of them and its parameters, without noise or a memory",
        )
    for name, buffer in module.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            raise _refused(
                spec, f"forward changes the buffer {name}; buffers are constants, in actors as well"
            )
    pairs = zip(first, beside, strict=True)
    if not all(torch.allclose(a[0], b[0], rtol=1e-3, atol=1e-4) for a, b in pairs):
        raise _refused(
            spec,
            "what forward says of a row depends on the rows beside it, which may be of any other "
            "environment; normalise over features, not over rows",
        )
    return max(1, sum(kept.values()) // ROWS)


def _strangers(module: "nn.Module", results: "tuple[torch.Tensor, ...]") -> Iterator[str]:
    """Shapes of tensors that results have a gradient to, and that an optimizer would not find."""
    parameters = {id(parameter) for parameter in module.parameters()}
    nodes: list[Any] = [tensor.grad_fn for tensor in results]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in parameters:
            yield str(list(leaf.shape))
        nodes.extend(source for source, _ in node.next_functions)


def _pass(
    spec: ModuleSpec, module: "nn.Module", inputs: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Outputs and values. Raises NetworkError for what is no such thing."""
    import torch

    what = f"forward, of an observation [{ROWS}, {', '.join(map(str, spec.input_shape))}],"
    given = inputs.clone()
    try:
        returned = module(given)
    except (Exception, SystemExit) as error:  # whatever an author's code raises
        raise failed(spec.kind, what, error) from error
    if not torch.equal(given, inputs):
        raise _refused(spec, f"{what} changed it; others read it, too: leave it as it is")
    shapes = {"outputs": (len(inputs), spec.head.num_outputs), "value": (len(inputs),)}
    wanted = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    if not (is_pair and all(isinstance(one, torch.Tensor) for one in returned)):
        raise _refused(spec, f"{what} returned {_shown(returned)}; wanted a tuple of {wanted}")
    for (name, shape), tensor in zip(shapes.items(), returned, strict=True):
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            hint = "; .squeeze(-1) takes the last axis away" if name == "value" else ""
            raise _refused(
                spec,
                f"{what} returned {name} {_shown(tensor)}, wanted float32 {list(shape)}{hint}",
            )
        if not torch.isfinite(tensor).all():
            raise _refused(spec, f"{what} returned {name} that are not finite")
    return returned


def _refused(spec: ModuleSpec, text: str) -> NetworkError:
    return NetworkError(f"network {spec.kind!r}: {text}")


def _shown(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"an object of type {type(value).__name__}"
