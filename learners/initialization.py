"""What a network's parameters are before any training."""

import numpy as np

from rollout.learners import draws
from rollout.learners.network import Network, NetworkSpec


def initial_parameters(spec: Network, seed: int) -> np.ndarray:
    """A flat float32 vector [P] with orthogonal weights (Saxe et al. 2014), most biases zero."""
    assert isinstance(spec, NetworkSpec), "a module is what its constructor makes"
    flat = np.zeros(spec.num_parameters, np.float32)
    for number, layer in enumerate(spec.layers):
        column = 0  # of all this layer's matrices, side by side: the place of its draws
        for name, gains in layer.orthogonal():
            parameter = spec.parameter(f"{layer.name}.{name}")
            matrix = parameter.view(flat).reshape(-1, parameter.shape[-1])
            start = 0
            for columns, gain in gains:
                normal = draws.normal(seed, (len(matrix), columns), place=(number, column))
                matrix[:, start : start + columns] = gain * orthogonal(normal)
                start += columns
                column += columns
        for name, columns in layer.ones():
            spec.parameter(f"{layer.name}.{name}").view(flat)[..., columns] = 1.0
    return flat


def orthogonal(normal: np.ndarray) -> np.ndarray:
    """A matrix with orthonormal rows or columns, whichever are fewer, from a normal one."""
    rows, columns = normal.shape
    q, r = np.linalg.qr(normal if rows >= columns else normal.T)
    q *= np.sign(np.diag(r))  # else the distribution would not be uniform
    return q if rows >= columns else q.T
