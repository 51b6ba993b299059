"""What learns: the algorithm and its network, made alike for a run and for whoever replays one.

Importing this imports no torch; making them does.
"""

from typing import TYPE_CHECKING

from rollout.errors import OperatorError
from rollout.experiment import Experiment
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import ModuleSpec, Network
from rollout.modules import construct_as

if TYPE_CHECKING:
    import torch

    from rollout.learners.algorithm import Algorithm
    from rollout.learners.torch_network import TorchNetwork


def check_device(device: str) -> None:
    """Raises OperatorError for a CUDA device that is not there."""
    if not device.startswith("cuda"):
        return
    import torch

    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise OperatorError(
            f"learner.device={device}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; set learner.device=auto or cpu"
        )


def make_learning(experiment: Experiment, network: Network) -> "tuple[Algorithm, TorchNetwork]":
    """Algorithm and network at the beginning of a run. Sets this process's torch and malloc up."""
    import torch

    from rollout.learners.torch_network import keep_freed_memory

    settings = experiment.learner
    keep_freed_memory()
    torch.set_num_threads(settings.num_threads)
    # On a GPU convolutions would round more than the actors do, and differ from run to run.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_network = make_torch_network(experiment, network, device)
    make_algorithm = experiment.find_algorithm()
    algorithm = make_algorithm(torch_network, experiment.algorithm, experiment.seed)
    algorithm.optimizer.max_skipped_steps = settings.max_skipped_steps
    return algorithm, torch_network


def make_torch_network(
    experiment: Experiment, network: Network, device: "str | torch.device" = "cpu"
) -> "TorchNetwork":
    """The network as it begins."""
    from rollout.learners.module_network import ModuleNetwork
    from rollout.learners.torch_network import TorchNetwork

    if isinstance(network, ModuleSpec):
        return ModuleNetwork(network, construct_as(network, experiment.given_network), device)
    return TorchNetwork(network, initial_parameters(network, experiment.seed), device)


def fraction_done(experiment: Experiment, env_steps: int) -> float:
    """Of a run that has trained on so many steps, 0 to 1; 0 if its algorithm anneals nothing."""
    limit = experiment.stop.env_steps
    if limit is None or not experiment.algorithm.is_annealed:
        return 0.0
    return min(env_steps / limit, 1.0)
