"""The small models of these tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vitfast
from vitfast.models import ImageModel


@pytest.fixture
def model() -> ImageModel:
    """A ViT of two blocks in evaluation mode, no parameter of which is 0, 1 or a value of fp16."""
    model = vitfast.create_model("vit_nano_patch2_8", depth=2, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 1, 8, 8)
