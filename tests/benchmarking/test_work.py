from __future__ import annotations

import pytest
import torch

from vitfast import create_model, ops
from vitfast.benchmarking.work import count_gflop, gigabytes


def vit_gflop(model, batch):
    """By hand: two operations a multiply-add of patch embedding, blocks and head."""
    fields = model.fields
    patches, channels, hidden = fields.grid_size**2, fields.embed_dim, fields.mlp_dim
    tokens = patches + 1
    linear = tokens * channels * (3 * channels + channels + 2 * hidden)
    attention = 2 * tokens * tokens * channels
    embed = patches * channels * fields.in_chans * fields.patch_size**2
    return 2e-9 * batch * (fields.depth * (linear + attention) + embed + channels * fields.num_classes)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_counts_its_products(batch):
    model = create_model("vit_nano_patch2_8").eval()
    images = torch.randn(batch, 1, 8, 8)

    def run():
        with torch.inference_mode():
            model(images)

    assert count_gflop(run) == pytest.approx(vit_gflop(model, batch), rel=1e-9)


def test_vit_tiny_has_the_published_count():
    with torch.device("meta"):
        model = create_model("vit_tiny_patch16_224").eval()
    assert vit_gflop(model, 1) == pytest.approx(2.51, rel=0.01)


def test_what_has_no_formula_counts_nothing():
    assert count_gflop(lambda: ops.layer_norm(torch.randn(2, 8))) is None


def test_bytes_are_those_of_the_types():
    assert gigabytes([torch.empty(10, 100), torch.empty(1000, dtype=torch.bfloat16)]) == pytest.approx(6e-6)
