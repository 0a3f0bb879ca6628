"""The block with reuse, and its parts, each against its definition written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers import Block, FeatureReuse, GridUpsample, RelationReuse, ReuseBlock

DIM, HEADS = 16, 2


def reuse_block(**options: float) -> ReuseBlock:
    upsample = GridUpsample(2, 3)
    feature_reuse = FeatureReuse(DIM, 12, 8, upsample, layer_norm_eps=1e-2)
    block = ReuseBlock(DIM, HEADS, 24, feature_reuse=feature_reuse, layer_norm_eps=1e-3, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def random_inputs(batch: int = 2) -> dict[str, Tensor]:
    return {
        "x": torch.randn(batch, 10, DIM, dtype=torch.float64),
        "features": torch.randn(batch, 5, DIM, dtype=torch.float64),
        "relations": torch.randn(batch, HEADS, 10, 10, dtype=torch.float64),
    }


def attention_equations(block: ReuseBlock, x: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (
        part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
    )
    logits = q @ k.transpose(2, 3) * (DIM // HEADS) ** -0.5 + relations
    return block.attn.proj((logits.softmax(dim=3) @ v).transpose(1, 2).flatten(2)), logits


def mlp_equations(block: ReuseBlock, x: Tensor, features: Tensor) -> Tensor:
    reuse = block.feature_reuse
    normalized = F.layer_norm(features, (DIM,), reuse.norm.weight, reuse.norm.bias, 1e-2)
    condensed = reuse.mlp.fc2(F.gelu(reuse.mlp.fc1(normalized)))
    wide = torch.cat([x, reuse.upsample.features(condensed)], dim=2)
    wide = F.layer_norm(wide, (DIM + 8,), block.norm2.weight, block.norm2.bias, 1e-3)
    return block.mlp.fc2(F.gelu(block.mlp.fc1(wide)))


def test_forward_with_everything_reused() -> None:
    block, inputs = reuse_block(), random_inputs()
    attended, logits = attention_equations(block, inputs["x"], inputs["relations"])
    middle = inputs["x"] + attended
    out, relations = block(**inputs, return_relations=True)
    torch.testing.assert_close(relations, logits)
    torch.testing.assert_close(out, middle + mlp_equations(block, middle, inputs["features"]))
    again, nothing = block(**inputs)
    assert nothing is None
    torch.testing.assert_close(again, out)


def test_without_reuse_it_is_the_plain_block() -> None:
    block = ReuseBlock(DIM, HEADS, 24, qkv_bias=False, layer_norm_eps=1e-3)
    plain = Block(DIM, HEADS, 24, qkv_bias=False, layer_norm_eps=1e-3)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, 10, DIM)
    torch.testing.assert_close(block(x)[0], plain(x))


def test_gradients_flow_through_given_and_returned_relations() -> None:
    block, inputs = reuse_block(), random_inputs()
    inputs["relations"].requires_grad_()
    _, logits = block(**inputs, return_relations=True)
    weights = torch.randn_like(logits)
    # the logits alone: their derivative by what was added to them is one
    gradient, qkv_gradient = torch.autograd.grad(
        (logits * weights).sum(), [inputs["relations"], block.attn.qkv.weight], retain_graph=True
    )
    torch.testing.assert_close(gradient, weights)
    _, expected = attention_equations(block, inputs["x"], inputs["relations"])
    torch.testing.assert_close(qkv_gradient, torch.autograd.grad((expected * weights).sum(), block.attn.qkv.weight)[0])


def test_drop_path_leaves_the_stream_alone() -> None:
    """Each sample takes each branch, scaled by 1 / keep, or not: four outcomes, all of which occur."""
    block, inputs = reuse_block(drop_path=0.5).train(), random_inputs(1)
    attended, _ = attention_equations(block, inputs["x"], inputs["relations"])
    outcomes = []
    for attention_factor in (0.0, 2.0):
        middle = inputs["x"] + attention_factor * attended
        branch = mlp_equations(block, middle, inputs["features"])
        outcomes += [middle + mlp_factor * branch for mlp_factor in (0.0, 2.0)]
    many = {name: tensor.expand(64, *tensor.shape[1:]) for name, tensor in inputs.items()}
    distances = (block(**many)[0].unsqueeze(1) - torch.stack(outcomes, dim=1)).abs().amax(dim=(2, 3))  # [64, 4]
    assert distances.min(dim=1).values.max() < 1e-9
    assert set(distances.argmin(dim=1).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("with_gradients", [True, False])  # without, a CPU takes products for the convolutions
def test_relation_reuse_mixes_all_heads_and_gives_each_layer_its_share(with_gradients: bool) -> None:
    reuse = RelationReuse(3, HEADS, GridUpsample(2, 3)).double()
    relations = [torch.randn(2, HEADS, 5, 5, dtype=torch.float64) for _ in range(3)]
    first, _, second = reuse.mlp
    assert first.weight.shape == (18, 6, 1, 1)

    mixed = torch.cat(relations, dim=1).permute(0, 2, 3, 1)  # [B, n, n, L * H]
    mixed = F.gelu(F.linear(mixed, first.weight.flatten(1), first.bias))
    mixed = F.linear(mixed, second.weight.flatten(1), second.bias).permute(0, 3, 1, 2)
    expected = reuse.upsample.matrix @ mixed @ reuse.upsample.matrix.T
    with torch.set_grad_enabled(with_gradients):
        biases = list(reuse(relations))
    assert len(biases) == 3
    assert all(bias.requires_grad == with_gradients for bias in biases)
    for layer, bias in enumerate(biases):
        torch.testing.assert_close(bias, expected[:, layer * HEADS : (layer + 1) * HEADS])


@torch.no_grad()
def test_relation_reuse_of_no_image_and_under_autocast() -> None:
    reuse = RelationReuse(2, HEADS, GridUpsample(2, 3))
    nothing = [torch.empty(0, HEADS, 5, 5) for _ in range(2)]
    assert [bias.shape for bias in reuse(nothing)] == [(0, HEADS, 10, 10)] * 2
    relations = [torch.randn(2, HEADS, 5, 5) for _ in range(2)]
    exact = torch.stack(list(reuse(relations)))
    with torch.autocast("cpu", torch.bfloat16):
        low = list(reuse(relations))
    assert {bias.dtype for bias in low} == {torch.bfloat16}
    torch.testing.assert_close(torch.stack(low).float(), exact, rtol=0.05, atol=0.05)


def test_dropout_of_probabilities_acts_in_training_only() -> None:
    block, inputs = reuse_block(attention_drop_rate=0.5), random_inputs()
    assert not torch.equal(block.train()(**inputs)[0], block(**inputs)[0])
    assert torch.equal(block.eval()(**inputs)[0], block(**inputs)[0])
