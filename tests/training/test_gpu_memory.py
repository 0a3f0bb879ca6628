"""The number of parts of a batch that fit into memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitfast.config import load_config
from vitfast.errors import UserError
from vitfast.tasks import ClassificationTask
from vitfast.training.distributed import Ranks
from vitfast.training.gpu_memory import parts_that_fit

DATA = SimpleNamespace(in_chans=3, img_size=8)


class Limited(nn.Module):
    """Runs out of memory with more than ``limit`` images; counts images in a buffer."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)

    def forward(self, images):
        features = self.norm(images) + torch.rand(())
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(features.mean((2, 3)))


@pytest.fixture
def on_gpu(monkeypatch):
    """Ranks that claim to have a GPU; the task stays on the CPU."""
    ranks = Ranks("cpu")
    ranks.device = torch.device("cuda", 0)
    return ranks


@pytest.mark.parametrize(("limit", "batch", "parts"), [(64, 64, 1), (63, 64, 2), (5, 64, 16), (1, 3, 4), (1, 1, 1)])
def test_the_fewest_parts(on_gpu, limit, batch, parts):
    task = ClassificationTask(Limited(limit))
    before = {key: tensor.clone() for key, tensor in task.state_dict().items()}
    config = load_config([f"data.batch_size={batch}"])
    random_state = torch.get_rng_state()
    assert parts_that_fit(task, config, DATA, on_gpu) == parts
    assert -(-batch // parts) <= limit
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


def test_not_even_one_image(on_gpu):
    with pytest.raises(UserError, match=r"one image of 8 pixels does not fit into the memory of cuda:0; try"):
        parts_that_fit(ClassificationTask(Limited(0)), load_config(["data.batch_size=4"]), DATA, on_gpu)


def test_a_run_records_the_number(tmp_path, train_tiny):
    """On a CPU it is 1."""
    assert train_tiny(tmp_path / "run", "train.accumulate=null", "schedule.steps=1", "schedule.warmup_epochs=0") == 0
    assert "accumulate: 1" in (tmp_path / "run" / "config.yaml").read_text()
