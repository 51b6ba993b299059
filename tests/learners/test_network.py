import msgspec
import numpy as np
import pytest

from rollout.learners.initialization import initial_parameters, orthogonal
from rollout.learners.layers import Dense
from rollout.learners.network import CategoricalHead, NetworkSpec, make_mlp


@pytest.mark.parametrize("shape", [(64, 64), (64, 3), (4, 64)])
def test_orthogonal_matrix_has_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    matrix = orthogonal(np.random.default_rng(0).normal(size=shape))
    product = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(product, np.eye(min(shape)), atol=1e-12)


def test_parameters_follow_each_other_without_gaps() -> None:
    spec = make_mlp((4,), CategoricalHead((2,)), (64, 32), "tanh", "separate")
    offset = 0
    for parameter in spec.parameters:
        assert parameter.offset == offset
        offset += parameter.size
    assert offset == spec.num_parameters


def test_initial_gains_are_those_of_each_group_of_columns() -> None:
    spec = make_mlp((4,), CategoricalHead((2,)), (64, 64), "tanh", "shared")
    flat = initial_parameters(spec, seed=5)
    heads = spec.parameter("heads.weight").view(flat)
    np.testing.assert_allclose(np.linalg.norm(heads, axis=0), [0.01, 0.01, 1.0], rtol=1e-5)
    torso = spec.parameter("torso_1.weight").view(flat)
    np.testing.assert_allclose(torso.T @ torso, 2.0 * np.eye(64), atol=1e-5)
    assert not spec.parameter("torso_1.bias").view(flat).any()


def test_initial_parameters_depend_on_the_seed_alone() -> None:
    spec = make_mlp((4,), CategoricalHead((2,)), (16,), "tanh", "shared")
    assert np.array_equal(initial_parameters(spec, 1), initial_parameters(spec, 1))
    assert not np.array_equal(initial_parameters(spec, 1), initial_parameters(spec, 2))


class OtherLayer(msgspec.Struct, frozen=True, tag=True):
    """As a convolution will be."""

    name: str
    stride: int


def test_specification_crosses_a_pipe_with_layers_of_several_kinds() -> None:
    spec = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=NetworkSpec) == spec
    layers = (*spec.layers, OtherLayer("image", 2))
    read = msgspec.msgpack.decode(
        msgspec.msgpack.encode(layers), type=tuple[Dense | OtherLayer, ...]
    )
    assert read == layers
