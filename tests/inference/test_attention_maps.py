"""Attention maps against an explicit softmax over the recorded inputs of each layer."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfast
from vitfast.errors import UserError
from vitfast.inference.attention_maps import attention_layers, attention_maps, forward_with_maps
from vitfast.layers import Attention

NANO = "vit_nano_patch2_8"

# kind -> name and fields; a head dimension of 5 has no kernel
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (NANO, {"depth": 3}),
    "no_kernel": (NANO, {"depth": 2, "embed_dim": 15, "num_heads": 3}),
    "deit": (NANO, {"depth": 2, "distillation_token": "after_class", "attention_drop_rate": 0.5, "drop_rate": 0.1}),
    "myrtle": (NANO, {"depth": 2, "distillation_token": "last", "qkv_bias": False}),
    "hybrid": (
        "R50-ViT-B_16",
        {"depth": 2, "embed_dim": 32, "num_heads": 4, "resnet_layers": (1,), "resnet_width": 32},
    ),
    "convit": (
        "convit_tiny",
        {
            "depth": 4,
            "patch_size": 2,
            "local_up_to_layer": 2,
            "attention_drop_rate": 0.5,
            "embed_dim": 36,
            "num_heads": 9,
        },
    ),
    "vissl": (
        "convit_tiny",
        {"depth": 3, "patch_size": 2, "local_up_to_layer": 2, "locality_dim": 10, "embed_dim": 32, "num_heads": 4},
    ),
    "t2t": (
        "t2t_vit_t_14",
        {"depth": 2, "patch_size": 2, "patch_stride": 1, "patch_padding": 0, "embed_dim": 32, "num_heads": 4},
    ),
    "dvt": (
        "dvt_deit_small",
        {
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "patch_sizes": (4, 2),
            "patch_strides": (4, 2),
            "patch_paddings": (0, 0),
        },
    ),
}

# tokens of each layer
TOKENS = {
    "vit": [17] * 3,
    "no_kernel": [17] * 2,
    "deit": [18] * 2,
    "myrtle": [17] * 2,
    "hybrid": [5] * 2,
    "convit": [16, 16, 17, 17],
    "vissl": [16, 16, 17],
    "t2t": [5] * 2,
    "dvt": [5, 5, 17, 17],
}


def build(kind: str) -> nn.Module:
    """A float64 model of random weights, large enough that the attention is far from uniform."""
    name, fields = MODELS[kind]
    model = vitfast.create_model(name, img_size=8, in_chans=1, num_classes=5, **fields).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64)


def expected_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Records the inputs of the layers in a regular forward pass and applies the formulas head by head."""
    inputs: list[tuple[nn.Module, Any]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args)))
        for layer in attention_layers(model)
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return [_softmax_map(layer, *entered) for layer, entered in inputs]


def _softmax_map(layer: Any, x: Tensor, relations: Tensor | None = None) -> Tensor:
    projection = layer.qkv if isinstance(layer, Attention) else layer.qk
    channels = x.shape[-1]
    dim = channels // layer.num_heads
    q, k = projection(x)[..., :channels], projection(x)[..., channels : 2 * channels]
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * dim, (head + 1) * dim)
        logits = q[..., part] @ k[..., part].mT / math.sqrt(dim)
        scores = torch.exp(logits if relations is None else logits + relations[:, head])
        content = scores / scores.sum(-1, keepdim=True)
        if not isinstance(layer, Attention):
            gate = 1 / (1 + torch.exp(-layer.gating_param[head]))
            content = (1 - gate) * content + gate * _by_position(layer, head, math.isqrt(x.shape[1]))
        heads.append(content)
    return torch.stack(heads, dim=1)


def _by_position(layer: Any, head: int, grid: int) -> Tensor:
    """exp(w · [dx, dy, dx² + dy²]), the features repeated and averaged, divided by its row sums."""
    weight = layer.pos_proj.weight[head].view(3, -1).mean(1)
    rows = []
    for y, x in ((y, x) for y in range(grid) for x in range(grid)):
        offsets = [(i - x, j - y) for j in range(grid) for i in range(grid)]
        scores = [weight @ torch.tensor([dx, dy, dx**2 + dy**2]).to(weight) for dx, dy in offsets]
        rows.append(torch.stack(scores).exp())
        rows[-1] = rows[-1] / rows[-1].sum()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_every_layers_probabilities(kind: str, training: bool) -> None:
    model, x = build(kind), images()
    expected = expected_maps(model, x)
    maps = attention_maps(model.train(training), x)
    assert [one.shape[-1] for one in maps] == TOKENS[kind]
    for actual, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, reference)
        torch.testing.assert_close(actual.sum(-1), torch.ones_like(actual[..., 0]))
        assert not actual.requires_grad
    assert max(reference.max() for reference in expected) > 0.1  # uniform: 0.06


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_the_result_is_that_of_evaluation(kind: str, training: bool) -> None:
    model, x = build(kind), images()
    expected = model.eval()(x)
    output, maps = forward_with_maps(model.train(training), x)
    torch.testing.assert_close(output, expected)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(one.requires_grad for one in (*output, *maps))


def test_gradients_reach_the_weights_through_the_maps() -> None:
    model = build("vit")
    _, maps = forward_with_maps(model, images())
    maps[-1][:, :, 0, 3].sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert model.blocks[2].attn.proj.weight.grad is None  # is after the last map


@pytest.mark.parametrize("kind", ["vit", "convit"])
def test_heads_are_reduced_on_the_way(kind: str) -> None:
    model, x = build(kind), images()
    every = attention_maps(model, x)
    for one, mean, all_heads in zip(
        attention_maps(model, x, head=1), attention_maps(model, x, head="mean"), every, strict=True
    ):
        assert torch.equal(one, all_heads[:, 1:2])
        assert one.untyped_storage().nbytes() == one.numel() * one.element_size()
        torch.testing.assert_close(mean, all_heads.mean(1, keepdim=True))


def test_autocast_and_half_precision_give_float32() -> None:
    model, x = build("convit"), images()
    expected = attention_maps(model, x)
    model, x = model.float(), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_autocast = attention_maps(model, x)
    for maps in (by_autocast, attention_maps(model.bfloat16(), x.bfloat16())):
        for actual, reference in zip(maps, expected, strict=True):
            assert actual.dtype == torch.float32
            assert (actual.double() - reference).abs().max() < 0.1
            torch.testing.assert_close(actual.sum(-1), torch.ones_like(actual[..., 0]), rtol=0, atol=1e-5)


def _snapshot(model: nn.Module) -> list[tuple[str, int, dict[str, Any]]]:
    return [(name, id(module), dict(vars(module))) for name, module in model.named_modules()]


def test_nothing_is_left_behind() -> None:
    model, x = build("convit"), images()
    before = _snapshot(model)
    maps = attention_maps(model, x)
    left = weakref.ref(maps[0])
    assert _snapshot(model) == before
    del maps
    assert left() is None
    with pytest.raises(ValueError, match="images"):
        attention_maps(model, x[:, :, :6])
    assert _snapshot(model) == before


def test_an_exception_within_a_layer_leaves_nothing() -> None:
    model, x = build("vit"), images()
    before = _snapshot(model)
    hook = model.blocks[1].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        attention_maps(model, x)
    hook.remove()
    assert _snapshot(model) == before


def test_ordinary_forwards_ask_for_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build("vit"), []
    original = Attention.attend

    def watch(*args: Any, **options: Any) -> Any:
        asked.append(options.get("return_logits", False))
        return original(*args, **options)

    monkeypatch.setattr(Attention, "attend", staticmethod(watch))
    model(images())
    attention_maps(model, images())
    model(images())
    assert asked == [False] * 3 + [True] * 3 + [False] * 3


def test_threads_are_independent() -> None:
    """Some threads compute maps while others run the same model; each gets its own result."""
    model = build("vit").eval()
    inputs = [images(1) for _ in range(6)]
    expected = [(attention_maps(model, x), model(x)) for x in inputs]
    failures: list[Any] = []
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        try:
            start.wait()
            for _ in range(20):
                if index % 2:
                    assert torch.equal(model(inputs[index]), expected[index][1])
                    continue
                maps = attention_maps(model, inputs[index])
                for actual, reference in zip(maps, expected[index][0], strict=True):
                    assert torch.equal(actual, reference)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_hooks_and_replaced_layers_run() -> None:
    """A replaced linear layer with a hook, as after quantization."""
    model, x, seen = build("vit"), images(), []
    linear = nn.Linear(64, 192).double()
    model.blocks[1].attn.qkv = linear
    linear.register_forward_hook(lambda *_: seen.append(1))
    expected = expected_maps(model, x)
    seen.clear()
    torch.testing.assert_close(attention_maps(model, x), expected)
    assert seen == [1]


@pytest.mark.parametrize("kind", ["vit", "convit"])
def test_of_a_quantized_model(kind: str) -> None:
    model, x = build(kind).float().eval(), images().float()
    plain = attention_maps(model, x)
    vitfast.quantize_(model, vitfast.FP16_32Config())
    maps = attention_maps(model, x)
    torch.testing.assert_close(maps, expected_maps(model, x), rtol=1e-4, atol=1e-6)
    assert not torch.equal(maps[-1], plain[-1])


def test_a_compiled_model_gives_the_maps_of_its_original() -> None:
    model, x = build("vit").eval(), images()
    expected = attention_maps(model, x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(attention_maps(compiled, x), expected)
    model.compile(backend="eager")
    torch.testing.assert_close(attention_maps(model, x), expected)


def test_an_empty_batch() -> None:
    assert [one.shape for one in attention_maps(build("convit"), images(0))] == [
        (0, 9, tokens, tokens) for tokens in (16, 16, 17, 17)
    ]


@pytest.mark.parametrize("head", [4, -1, "max", True, 1.0])
def test_a_head_that_does_not_exist(head: Any) -> None:
    with pytest.raises(UserError, match=r"head=.* does not exist; the heads of this model are 0 to 3, or use 'mean'"):
        attention_maps(build("vissl"), images(), head=head)


def test_a_model_without_attention() -> None:
    with pytest.raises(UserError, match=r"torchvision/resnet18 has no attention layer whose map can be read"):
        attention_maps(vitfast.create_model("torchvision/resnet18"), torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="Linear has no attention layer"):
        attention_maps(nn.Linear(2, 2), torch.zeros(1, 2))
