"""Token merging: against the algorithm written out token by token, in every precision, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitfast
from vitfast import accelerate, create_model
from vitfast.errors import UserError
from vitfast.inference.cpu.packed_layers import PackedTokenMerging
from vitfast.inference.modules.token_merging import MergedTokens, TokenMerging
from vitfast.ops.library import has_kernel

LAYERS = [TokenMerging, *([PackedTokenMerging] if has_kernel("packed", "cpu") else [])]


def model_with(**fields: object) -> nn.Module:
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=10, **fields).eval()
    for parameter in model.parameters():  # so that tokens differ
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def merged_image(
    x: Tensor, keys: Tensor, sizes: Tensor, groups: list[list[int]], count: int, prefix: int
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The paper's bipartite soft matching of one image ``[N, C]``, token by token."""
    first = [i for i in range(prefix, len(x)) if i % 2 == 0]
    second = [i for i in range(prefix, len(x)) if i % 2 == 1]
    similarity = F.cosine_similarity(keys[first][:, None], keys[second][None], dim=-1)
    best, partner = similarity.max(dim=1)
    chosen = best.argsort(descending=True)[:count].tolist()
    into: dict[int, list[int]] = {}
    for i in chosen:
        into.setdefault(second[int(partner[i])], []).append(first[i])
    rows, new_sizes, new_groups = [], [], []
    for i in [*range(prefix), *(first[j] for j in range(len(first)) if j not in chosen), *second]:
        members = [i, *into.get(i, [])]
        total = sum(sizes[j] for j in members)
        rows.append(sum(x[j] * sizes[j] for j in members) / total)
        new_sizes.append(total)
        new_groups.append([token for j in members for token in groups[j]])
    return torch.stack(rows), torch.stack(new_sizes), new_groups


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
@pytest.mark.parametrize("layer", LAYERS)
def test_merge_matches_the_algorithm_written_token_by_token(layer: type[TokenMerging], prefix: int) -> None:
    torch.manual_seed(0)
    x, merged = torch.randn(3, 14, 5), MergedTokens(prefix)
    expected = [(image, torch.ones(14), [[i] for i in range(14)]) for image in x]
    found = x
    for _ in range(2):
        keys = torch.randn(3, found.shape[1], 4)
        expected = [merged_image(i, k, s, g, 3, prefix) for (i, s, g), k in zip(expected, keys, strict=True)]
        found = layer(3)(found, keys[:, :, None], merged)
    torch.testing.assert_close(found, torch.stack([image for image, _, _ in expected]))
    torch.testing.assert_close(merged.sizes, torch.stack([sizes for _, sizes, _ in expected]))
    spread = merged.spread(found)
    assert spread.shape == x.shape
    for row, (_, _, groups) in enumerate(expected):
        for place, group in enumerate(groups):
            torch.testing.assert_close(spread[row, group], found[row, place].expand(len(group), -1))


def test_attention_to_merged_tokens_counts_their_sizes() -> None:
    """Merging equal tokens changes nothing: attention weighs them by their number."""
    torch.manual_seed(0)
    fast = accelerate(model_with(), merge_tokens=4)
    block = fast.body.model.blocks[1]
    x = torch.randn(2, 9, 192)
    twice = torch.cat([x, x[:, 1:]], dim=1)
    merged = MergedTokens(1)
    merged.sizes = torch.tensor([1.0] + [2.0] * 8).expand(2, -1).contiguous()
    block.merging.count = 0
    torch.testing.assert_close(block(x, merged=merged), block(twice)[:, :9], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_merging_no_tokens_is_the_same_model(precision: str) -> None:
    model, images = model_with(), torch.randn(2, 3, 64, 64)
    fast = accelerate(model, precision, merge_tokens=1)
    for block in fast.body.model.blocks[:-1]:
        block.merging.count = 0
    torch.testing.assert_close(fast(images), accelerate(model, precision)(images), rtol=2e-2, atol=2e-2)


def test_merged_model_is_close_to_its_source() -> None:
    model, images = model_with(), torch.randn(4, 3, 64, 64)
    fast = accelerate(model, merge_tokens=2, check=images)
    assert fast.report().agreement.cosine > 0.9
    assert "merges 2 tokens" in str(fast.report())
    assert fast.forward_features(images).shape == model.forward_features(images).shape
    assert not torch.equal(fast(images), accelerate(model)(images))


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_results_do_not_depend_on_the_batch(pooling: str) -> None:
    fast = accelerate(model_with(pooling=pooling), merge_tokens=3)
    images = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(fast(images)[3:4], fast(images[3:4]))


def dvt() -> nn.Module:
    torch.manual_seed(0)
    fields = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "reuse_dim": 5, "reuse_hidden_dim": 7}
    model = create_model("dvt_mini_32", num_classes=3, **fields).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def averages(places: Tensor | None, tokens: int) -> Tensor:
    """The matrix ``[B, N, N]`` that replaces each token by the mean of those that are merged with it."""
    if places is None:
        return torch.eye(tokens)[None]
    together = (places[:, :, None] == places[:, None]).float()
    return together / together.sum(-1, keepdim=True)


@pytest.mark.parametrize("index", [0, 1])
def test_an_exit_merges_as_if_its_tokens_were_replaced_by_means(index: int) -> None:
    """Attention over all original tokens, which have the value of the token they are merged into, needs no sizes."""
    exits = accelerate(dvt(), merge_tokens=6).exits
    coarse, tokens = (1 + one.embedding.num_patches for one in (exits[0], exits[index]))
    features, relations = (torch.randn(2, coarse, 32), torch.randn(2, 2, coarse, coarse)) if index else (None, None)
    merged, found = MergedTokens(1), torch.randn(2, tokens, 32)
    x = found
    for block in exits[index].blocks:
        before = averages(merged.places, tokens)
        found, found_logits = block(found, merged=merged, features=features, relations=relations, return_relations=True)
        after = averages(merged.places, tokens)
        bias = None
        if relations is not None:
            full = block.upsample @ relations @ block.upsample.t()
            bias = before[:, None] @ full @ before[:, None].transpose(2, 3)
        attended, logits = block.attention(block.qkv(x), bias, None, True)
        x = after @ block.proj(attended, x)
        wide = x if features is None else torch.cat([x, after @ block.feature_reuse(features)], dim=2)
        x = block.mlp(wide, x)
        torch.testing.assert_close(merged.spread(found), x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)
    assert found.shape[1] == tokens - 3 * block.merging.count < tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_early_exit_of_a_merging_model(precision: str) -> None:
    model, images = dvt(), torch.randn(6, 3, 32, 32)
    fast = accelerate(model, precision, merge_tokens=4)
    share = [one.blocks[0].merging.count / (1 + one.embedding.num_patches) for one in fast.exits]
    assert share[0] == pytest.approx(share[-1], rel=0.2)
    every_exit = fast(images)
    cosines = [F.cosine_similarity(a, b).mean() for a, b in zip(every_exit, model(images), strict=True)]
    assert min(cosines) > 0.9
    first, after = fast.advance(fast.start(images))
    second, _ = fast.advance(after.select(torch.tensor([4, 1])))
    torch.testing.assert_close(first, every_exit[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, every_exit[1][[4, 1]], rtol=1e-2, atol=1e-2)


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(UserError, match="merge_tokens=-1 must not be negative"):
        accelerate(model_with(), merge_tokens=-1)
    with pytest.raises(UserError, match="a later block inserts"):
        accelerate(create_model("convit_tiny"), merge_tokens=4)
    with pytest.raises(UserError, match="no position for rotary embeddings"):
        accelerate(create_model("eva02_tiny_patch14_224", depth=2), merge_tokens=4)


def test_a_merging_model_can_be_copied_and_saved(tmp_path: Path) -> None:
    model, images = model_with(), torch.randn(2, 3, 64, 64)
    fast = accelerate(model, merge_tokens=2)
    expected = fast(images)
    torch.testing.assert_close(copy.deepcopy(fast)(images), expected)
    vitfast.export(fast, tmp_path / "model.vit")
    torch.testing.assert_close(vitfast.load(tmp_path / "model.vit")(images), expected)
