"""Tests of learning run torch as a learner does: one thread, which leaves the cores to others."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
