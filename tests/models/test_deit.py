"""Both forms of the distillation token, each against its system's definition."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.models import DistilledVisionTransformer, build_model

MYRTLE = {
    "layer_norm_eps": 1e-5,
    "qkv_bias": False,
    "patch_order": "channels_last",
    "distillation_token": "last",
    "head_type": "norm_linear",
}


def small(**fields: object) -> DistilledVisionTransformer:
    model = build_model(
        "deit_tiny_distilled_patch16_224",
        **{"img_size": 24, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 2, **fields},
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def random_images() -> Tensor:
    return torch.randn(2, 3, 24, 24, dtype=torch.float64)


def myrtle_forward(model: DistilledVisionTransformer, images: Tensor, distill: bool) -> tuple[Tensor, Tensor | None]:
    """myrtle-vision v1.0.0 in plain torch: vit_pytorch.py and distill.py, on our parameters."""
    state = model.state_dict()
    dim, heads, patch = model.fields.embed_dim, model.fields.num_heads, model.fields.patch_size

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)
    x = torch.cat([state["cls_token"].repeat(batch, 1, 1), linear(x, "patch_embed.proj")], dim=1) + state["pos_embed"]
    if distill:
        x = torch.cat([x, state["dist_token"].repeat(batch, 1, 1)], dim=1)
    for index in range(model.fields.depth):
        qkv = linear(norm(x, f"blocks.{index}.norm1"), f"blocks.{index}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv)
        attention = (q @ k.transpose(-1, -2) * (dim // heads) ** -0.5).softmax(dim=-1) @ v
        x = x + linear(attention.transpose(1, 2).flatten(2), f"blocks.{index}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{index}.norm2"), f"blocks.{index}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{index}.mlp.fc2")
    logits = linear(norm(x[:, 0], "fc_norm"), "head")
    return logits, linear(norm(x[:, -1], "fc_norm_dist"), "head_dist") if distill else None


def test_myrtles_training_and_inference() -> None:
    model, images = small(**MYRTLE), random_images()
    for logits, expected in zip(model.train()(images), myrtle_forward(model, images, distill=True), strict=True):
        torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(model.eval()(images), myrtle_forward(model, images, distill=False)[0])


def test_mean_pooling_leaves_the_last_token_out() -> None:
    model, images = small(**MYRTLE, pooling="mean").train(), random_images()
    tokens = model.forward_features(images)
    assert tokens.shape[1] == 1 + 36 + 1
    torch.testing.assert_close(model(images)[0], model.head(model.fc_norm(tokens[:, :-1].mean(dim=1))))


def test_evaluation_averages_the_heads_of_deit() -> None:
    model, images = small(), random_images()
    class_logits, distillation_logits = model.train()(images)
    assert not torch.allclose(class_logits, distillation_logits)
    torch.testing.assert_close(model.eval()(images), (class_logits + distillation_logits) / 2)


@pytest.mark.parametrize(("distillation_token", "positions"), [("after_class", 38), ("last", 37)])
def test_positions(distillation_token: str, positions: int) -> None:
    model = small(distillation_token=distillation_token)
    assert model.pos_embed.shape[1] == positions
    assert model.no_weight_decay() == {"cls_token", "dist_token", "pos_embed"}


@pytest.mark.parametrize("distillation_token", ["after_class", "last"])
def test_without_heads_returns_the_pooled_channels(distillation_token: str) -> None:
    model = small(num_classes=0, distillation_token=distillation_token)
    assert [part.shape for part in model.train()(random_images())] == [(2, 24), (2, 24)]
    assert model.eval()(random_images()).shape == (2, 24)


@pytest.mark.parametrize("distillation_token", ["after_class", "last"])
def test_every_parameter_gets_a_gradient(distillation_token: str) -> None:
    model = small(distillation_token=distillation_token, head_type="norm_linear").train()
    sum(logits.square().sum() for logits in model(random_images())).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []
