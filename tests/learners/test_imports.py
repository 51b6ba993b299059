"""Actors import these modules; torch would cost each of their hosts 140 MB and a second."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["", ".network", ".unroll", ".draws", ".gae", ".vtrace", ".ppo_settings", ".impala_settings"],
)
def test_module_is_imported_without_torch(module: str) -> None:
    code = f"import sys, rollout.learners{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", ["", ".network", ".unroll", ".draws", ".gae", ".vtrace"])
def test_module_is_imported_without_pydantic(module: str) -> None:
    code = f"import sys, rollout.learners{module}; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_ppo_is_built_without_torch_dynamo() -> None:
    code = """
import sys
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.learners.ppo import PPO
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.synthetic_batch import make_synthetic_batch
spec = make_mlp((4,), CategoricalHead((2,)), (8,), "tanh", "shared")
network = TorchNetwork(spec, initial_parameters(spec, 0))
PPO(network, PpoSettings(), 0).update(make_synthetic_batch(network, 4, 4), 0, 0.0)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "importing torch._dynamo takes a second"
