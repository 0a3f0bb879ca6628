"""open_clip's models with a text tower."""

from __future__ import annotations

import pytest
import torch

import vitfast
from support.accelerable import accelerable


@pytest.mark.parametrize(("name", "tower", "size"), [("CLIP", "visual", 32), ("CustomTextCLIP", "visual.trunk", 224)])
@torch.no_grad()
def test_the_image_tower_is_accelerated(name, tower, size):
    model = accelerable(f"open_clip: {name}")
    images, text = torch.randn(3, 3, size, size), torch.randint(1, 49, (3, 8))
    with pytest.warns(UserWarning, match=f"is open_clip's {name}, of which only the image tower is accelerated"):
        fast = vitfast.accelerate(model, check=images)
    assert fast.report().agreement.cosine > 0.9999
    assert [layer.name for layer in fast.report().layers][:2] == ["(model)", f"{tower}.embedding"]
    for normalize in (False, True):
        expected = model.encode_image(images, normalize=normalize)
        torch.testing.assert_close(fast.encode_image(images, normalize=normalize), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.encode_text(text), model.encode_text(text))
    for result, expected in zip(fast(images, text), model(images, text), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert list(fast.state_dict()) == list(model.state_dict())


@torch.no_grad()
def test_an_attentional_pooling_keeps_its_own_forward():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install open_clip_torch")
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1, "attentional_pool": True}
    model = open_clip.CLIP(
        20, {**vision, "attn_pooler_heads": 2}, {"vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    )
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="attn_pool is an attentional pooling"):
        fast = vitfast.accelerate(model.visual)
    torch.testing.assert_close(fast(images), model.visual(images))
