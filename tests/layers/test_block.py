"""The block's fused residual additions compute x += attn(norm1(x)); x += mlp(norm2(x))."""

import torch

from vitfast.layers import Block


def _block(**options: float) -> Block:
    block = Block(16, 2, 32, **options).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def test_forward() -> None:
    block, x = _block(), torch.randn(2, 5, 16, dtype=torch.float64)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_drop_path_leaves_the_stream_alone() -> None:
    """Each sample takes each branch, scaled by 1 / keep, or not: four outcomes, all of which occur."""
    block, x = _block(drop_path=0.5).train(), torch.randn(1, 3, 16, dtype=torch.float64)
    outcomes = []
    for attention_factor in (0.0, 2.0):
        middle = x + attention_factor * block.attn(block.norm1(x))
        outcomes += [middle + mlp_factor * block.mlp(block.norm2(middle)) for mlp_factor in (0.0, 2.0)]
    distances = (
        (block(x.expand(64, -1, -1)).unsqueeze(1) - torch.stack(outcomes, dim=1)).abs().amax(dim=(2, 3))
    )  # [64, 4]
    assert distances.min(dim=1).values.max() < 1e-9
    assert set(distances.argmin(dim=1).tolist()) == {0, 1, 2, 3}


def test_options_reach_the_parts() -> None:
    block = Block(
        16,
        2,
        32,
        qkv_bias=False,
        layer_norm_eps=1e-3,
        gelu="tanh",
        drop_rate=0.1,
        attention_drop_rate=0.2,
        drop_path=0.3,
    )
    assert block.attn.qkv.bias is None
    assert (block.norm1.eps, block.norm2.eps) == (1e-3, 1e-3)
    assert block.mlp.approximate == "tanh"
    assert (block.attn.proj_drop.p, block.mlp.drop.p) == (0.1, 0.1)
    assert (block.attn.attention_drop_rate, block.drop_path.rate) == (0.2, 0.3)
