"""A user's algorithm, tried out on made-up data before anything is started."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rollout.envs.errors import in_words, raised_at
from rollout.errors import AlgorithmError
from rollout.experiment import Experiment
from rollout.learners.network import CategoricalHead, Network
from rollout.learners.unroll import Batch, Unroll, UnrollSchema
from rollout.learning import make_torch_network

NUM_ENVS, TRUNCATED = 4, (1, 2)  # of them, and where, (t, environment), one is cut off
MOST_STEPS = 16


def try_out(experiment: Experiment, network: Network, schema: UnrollSchema) -> list[str]:
    """Update once, with a network of its own; warnings. Leaves no trace but imported modules.

    Raises AlgorithmError for what raises, and for what returns no metrics.
    """
    import torch

    name, num_threads = experiment.algorithm.kind, torch.get_num_threads()
    torch.set_num_threads(experiment.learner.num_threads)  # which layers are executed how
    torch_network = make_torch_network(experiment, network)
    batch = make_trial_batch(network, schema)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            algorithm = experiment.find_algorithm()
            tried = algorithm(torch_network, experiment.algorithm, experiment.seed)
            before = torch_network.export()
            metrics = tried.train_on(batch, 0, 0.0)
            tried.load_checkpoint_state(tried.checkpoint_state())
    except AlgorithmError:
        raise
    except (Exception, SystemExit) as error:  # whatever an author's code raises
        place = raised_at(error)
        raise AlgorithmError(
            f"algorithm {name!r}: a first update, on made-up data, failed"
            f"{f' at {place}' if place else ''}: {in_words(error)}"
        ) from error
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_num_threads(num_threads)
    problem = next(metrics_problems(metrics), None)
    if problem:
        raise AlgorithmError(f"algorithm {name!r}: update {problem}")
    after = torch_network.export()
    trained = [parameter for parameter in network.parameters if parameter.is_trained]
    if all(np.array_equal(p.view(before), p.view(after)) for p in trained):
        return [
            f"algorithm {name!r}: a first update, on made-up data, changed no parameter; does its "
            "loss come from self.network, and does update call self.step?"
        ]
    return []


def metrics_problems(metrics: Any) -> Iterator[str]:
    """What is wrong with what an `update` has returned."""
    wanted = 'wanted metrics by name, {"losses/policy_loss": 0.1, …}'
    if not isinstance(metrics, dict):
        yield f"returned an object of type {type(metrics).__name__}; {wanted}"
        return
    for key, value in metrics.items():
        if not isinstance(key, str):
            yield f"returned the key {key!r}; {wanted}"
        elif not isinstance(value, int | float | np.number):
            yield f"returned {key!r} as an object of type {type(value).__name__}; {wanted}"


def make_trial_batch(network: Network, schema: UnrollSchema) -> Batch:
    """A batch in the form of a run's: observations of 0, random rewards, ends of either kind."""
    T, N = min(schema.unroll_length, MOST_STEPS), NUM_ENVS
    schema = replace(schema, unroll_length=T)
    ends = [(t, i) for t, i in (TRUNCATED, (0, 3)) if t < T]
    finals = [end for end in ends if end == TRUNCATED]
    payload = bytearray(schema.size_bytes(N, len(finals), len(ends)))
    unroll = Unroll.view(schema, payload, N, len(finals), len(ends))
    generator = np.random.default_rng(0)
    unroll.reward[:] = generator.standard_normal(unroll.reward.shape)
    unroll.value[:] = generator.standard_normal(unroll.value.shape)
    unroll.action_mask[:] = True
    if isinstance(network.head, CategoricalHead):
        columns = np.moveaxis(np.atleast_3d(unroll.action), -1, 0)
        for column, count in zip(columns, network.head.choices, strict=True):
            column[:] = generator.integers(0, count, column.shape)
        unroll.behavior_log_prob[:] = -math.log(math.prod(network.head.choices))
    else:
        unroll.action[:] = generator.standard_normal(unroll.action.shape)
        unroll.behavior_log_prob[:] = -1.0
    for t, i in ends:
        which = unroll.truncated if (t, i) == TRUNCATED else unroll.terminated
        which[t, i] = True
    unroll.final_t[:], unroll.final_env[:] = zip(*finals, strict=True) if finals else ((), ())
    unroll.episode_t[:], unroll.episode_env[:] = zip(*ends, strict=True)
    unroll.episode_length[:] = 1
    batch = Batch(schema, N)
    batch.put(unroll, 0, np.arange(N), weights_version=0)
    batch.seal()
    return batch
