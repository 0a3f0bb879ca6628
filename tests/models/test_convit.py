"""ConViT: structure, initialization, other image sizes, copies and compilation."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from support.fill_from_state import fill_from_state
from vitfast.errors import UserError
from vitfast.layers import Attention, GatedPositionalAttention, resize_position_embedding
from vitfast.models import ConViT, ConViTFields, build_model

SMALL = {"img_size": 8, "patch_size": 2, "num_classes": 5, "embed_dim": 32, "depth": 3, "local_up_to_layer": 2}


def fresh(**fields: Any) -> ConViT:
    return build_model("convit_tiny", **{**SMALL, **fields})


def small(**fields: Any) -> ConViT:
    """A small model whose random parameters are large enough for every part to matter."""
    model = fresh(**fields)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def test_class_token_joins_after_the_local_blocks() -> None:
    model, x = small().eval(), images()
    patches = model.patch_embed(x) + model.pos_embed
    patches = model.blocks[1](model.blocks[0](patches))
    tokens = model.blocks[2](torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1))
    torch.testing.assert_close(model.forward_features(x), model.norm(tokens))
    torch.testing.assert_close(model(x), model.head(model.norm(tokens)[:, 0]))


def test_attention_of_the_blocks() -> None:
    kinds = [type(block.attn) for block in fresh().blocks]
    assert kinds == [GatedPositionalAttention, GatedPositionalAttention, Attention]
    assert [type(block.attn) for block in fresh(local_up_to_layer=0).blocks] == [Attention] * 3


def test_options_reach_the_layers() -> None:
    model = fresh(qkv_bias=True, drop_rate=0.1, attention_drop_rate=0.2, locality_dim=3, layer_norm_eps=1e-5)
    attention = model.blocks[0].attn
    assert attention.qk.bias is not None
    assert (attention.proj_drop.p, attention.attention_drop_rate) == (0.1, 0.2)
    assert attention.pos_proj.weight.shape == (4, 9)
    assert (model.blocks[0].norm1.eps, model.norm.eps) == (1e-5, 1e-5)


@pytest.mark.parametrize("locality_dim", [1, 10])
def test_local_initialization_survives_construction(locality_dim: int) -> None:
    """Nothing overwrites it, as vissl does at the end of its constructor."""
    for block in fresh(locality_dim=locality_dim).blocks[:2]:
        assert torch.equal(block.attn.v.weight, torch.eye(32))
        features = block.attn.pos_proj.weight.unflatten(1, (3, locality_dim))
        expected = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
        assert torch.equal(features, expected[:, :, None].expand(-1, -1, locality_dim))
        assert torch.equal(block.attn.gating_param, torch.ones(4))
        for linear in (block.attn.qk, block.attn.proj):
            assert 0.01 < linear.weight.std() < 0.03
        assert not block.attn.proj.bias.any()
        assert not block.attn.pos_proj.bias.any()


def test_locality_strength() -> None:
    for strength, expected in ((2.0, [-2.0, -2.0]), (0.0, [-1.0, -0.5])):
        blocks = fresh(locality_strength=strength).blocks[:2]
        assert [block.attn.pos_proj.weight[0, 2].item() for block in blocks] == expected


def test_without_local_initialization() -> None:
    for block in fresh(local_initialization=False).blocks[:2]:
        assert block.attn.v.weight.std() < 0.03
        assert block.attn.pos_proj.weight.abs().max() < 0.2


def test_logits_shape() -> None:
    model = small().eval()
    assert [model(images(batch)).shape for batch in (0, 1, 3)] == [(0, 5), (1, 5), (3, 5)]
    assert small(num_classes=0)(images()).shape == (2, 32)


def test_head_with_a_hidden_layer() -> None:
    model, x = small(head_hidden_dim=7).eval(), images()
    hidden = torch.tanh(model.pre_logits.fc(model.forward_features(x)[:, 0]))
    assert hidden.shape == (2, 7)
    torch.testing.assert_close(model(x), model.head(hidden))


def test_mean_pooling_reads_all_tokens() -> None:
    model, x = small(pooling="mean").eval(), images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 17, 32)
    torch.testing.assert_close(model(x), model.head(tokens.mean(dim=1)))


class SoftmaxSizes(TorchDispatchMode):
    """Collects how many probabilities each softmax computes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._softmax.default:
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize("training", [False, True])
def test_positions_are_computed_once_for_the_batch(training: bool) -> None:
    model = small().train(training)
    sizes = []
    for batch in (1, 5):
        with SoftmaxSizes() as softmaxes, torch.set_grad_enabled(training):
            model(images(batch))
        # two axes, four heads, 4 x 4 patches; the attention by content is the kernel's, or grows with the batch
        sizes.append([size for size in softmaxes.sizes if size == 2 * 4 * 4 * 4])
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2


def test_training_changes_the_positions() -> None:
    """Nothing of a forward is kept for the next."""
    model, other, x = small().eval(), small().eval(), images()
    before = model(x)
    with torch.no_grad():
        model.blocks[0].attn.pos_proj.weight += 1.0
    assert not torch.allclose(model(x), before)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))
    torch.testing.assert_close(model.double()(x.double()).float(), other(x), rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    """The positional bias cancels in the softmax; it takes part, with a gradient of zero."""
    model = small()
    model(images()).square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    zero = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 1e-4]
    assert without == []
    assert zero == [f"blocks.{index}.attn.pos_proj.bias" for index in range(2)]


def test_gradients_equal_timms() -> None:
    timm = pytest.importorskip("timm")
    fields = {"img_size": 32, "depth": 3, "local_up_to_layer": 2, "num_classes": 5}
    theirs = timm.create_model("convit_small", **fields).double().train()
    ours = build_model("convit_small", **fields).double().train()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours.load_state_dict(theirs.state_dict())
    x, labels = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([3, 1, 4])
    torch.testing.assert_close(ours(x), theirs(x))
    for model in (ours, theirs):
        F.cross_entropy(model(x), labels).backward()
    for (name, parameter), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, reference.grad, rtol=1e-6, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_aligned", "zoom_linear"])
def test_weights_of_another_image_size(interpolation: str) -> None:
    """There is no class token among the positions; GPSA has no parameters that depend on the grid."""
    source = small()
    target = fresh(img_size=12, position_interpolation=interpolation)
    fill_from_state(target, source.state_dict(), "here", may_resize=True)
    expected = resize_position_embedding(source.pos_embed, 6, num_prefix_tokens=0, interpolation=interpolation)
    assert expected.shape == (1, 36, 32)
    assert torch.equal(target.pos_embed, expected)
    assert torch.equal(target.blocks[0].attn.pos_proj.weight, source.blocks[0].attn.pos_proj.weight)
    assert target(images(size=12)).shape == (2, 5)


def test_weights_of_another_image_size_want_permission() -> None:
    with pytest.raises(UserError, match=r"pos_embed .* give img_size to resize the position embeddings"):
        fill_from_state(fresh(img_size=12), small().state_dict(), "here")


def test_no_weight_decay() -> None:
    assert fresh().no_weight_decay() == {"cls_token", "pos_embed"}


def test_copies_agree() -> None:
    model, x = small().eval(), images()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False))
    rebuilt = build_model(model.model_name, **model.model_fields).eval()
    rebuilt.load_state_dict(model.state_dict())
    for each in (*copies, rebuilt):
        assert torch.equal(each(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_stay_near_float32(dtype: torch.dtype) -> None:
    model, x = fresh().eval(), images()
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        by_autocast = model(x)
    for logits in (by_autocast, copy.deepcopy(model).to(dtype)(x.to(dtype))):
        assert (logits.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.slow  # test_vit.py compiles training, ops/test_compile.py the operator with its gradients
def test_compiled_training_has_the_same_gradients() -> None:
    model, x = small(), images()
    names, parameters = zip(*model.named_parameters(), strict=True)
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x).square().sum(), parameters)
    expected = torch.autograd.grad(model(x).square().sum(), parameters)
    for name, gradient, reference in zip(names, actual, expected, strict=True):
        torch.testing.assert_close(
            gradient, reference, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_exports_with_any_batch_size() -> None:
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2),), dynamic_shapes={"images": {0: batch}})
    x = images(5)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_up_to_layer": 12}, "local_up_to_layer must be at least 0 and below depth=12, .*; got 12"),
        ({"local_up_to_layer": -1}, "local_up_to_layer must be at least 0"),
        ({"depth": 2}, "local_up_to_layer must be at least 0 and below depth=2, .*; got 10"),
        ({"locality_strength": -1.0}, "locality_strength must be at least 0; got -1.0"),
        ({"locality_dim": 0}, "locality_dim must be at least 1; got 0"),
        ({"distillation_token": "last"}, "distillation_token must be one of 'none'; got 'last'"),
        ({"local_initialization": 1}, "local_initialization must be True or False; got 1"),
        ({"img_size": 225}, "img_size=225 is not a multiple of patch_size=16"),
    ],
)
def test_refused_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ConViTFields(**fields)


@pytest.mark.parametrize(
    ("alias", "name"), [("ConViT-Ti", "convit_tiny"), ("ConViT-S+", "convit_small_plus"), ("ConViT-B", "convit_base")]
)
def test_the_papers_names(alias: str, name: str) -> None:
    with torch.device("meta"):
        assert build_model(alias).model_name == name
