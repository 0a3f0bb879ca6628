"""Parts that are not recognised fall back to the source's forward: they are reported, and results do not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vitfast
from support.accelerable import accelerable, requires, sample_images, tensors_of
from vitfast.inference.lowering import lower


class Lora(nn.Module):
    """A wrapped linear layer, as fine-tuning libraries have it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def hook_block(model):
    model.blocks[0].register_forward_hook(lambda module, args, output: output * 0.9)


def hook_inside(model):
    model.blocks[0].mlp.fc1.register_forward_pre_hook(lambda module, args: (args[0] * 0.9,))


def wrap(model):
    model.blocks[0].attn.qkv = Lora(model.blocks[0].attn.qkv)


def replace_method(model):
    original = model.blocks[0].attn.forward
    model.blocks[0].attn.forward = lambda x, **options: original(x) * 0.9


def subclass(model):
    class Sharper(type(model.blocks[0])):
        def forward(self, x, *args, **options):
            return super().forward(x * 0.9)

    model.blocks[0].__class__ = Sharper


def add_module(model):
    model.blocks[0].mlp.extra = nn.Linear(2, 2)


def other_activation(model):
    model.blocks[0].mlp.act = nn.Softplus()


def parametrize(model):
    nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.fc1)


CHANGES_OF_A_BLOCK = {
    hook_block: "has a forward hook",
    hook_inside: "mlp.fc1 has a forward pre-hook",
    wrap: "Lora",
    replace_method: "attn its method forward was replaced",
    subclass: "Sharper",
    add_module: "mlp has a submodule 'extra' that Mlp does not have",
    other_activation: "activation Softplus",
    parametrize: "ParametrizedLinear",
}


@pytest.mark.parametrize("change", CHANGES_OF_A_BLOCK, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_changed_block_falls_back(change):
    model = accelerable("timm: vit")
    images = sample_images(model)
    plain = model(images)
    change(model)
    expected = model(images)
    with pytest.warns(
        UserWarning, match="1 of 4 parts of VisionTransformer fall back to the source's forward: blocks.0: "
    ):
        fast = vitfast.accelerate(model, "fp32")
    (layer,) = fast.report().fell_back
    assert layer.name == "blocks.0"
    assert CHANGES_OF_A_BLOCK[change] in layer.why_not
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-5)
    if change is not add_module and change is not parametrize:
        assert not torch.allclose(plain, expected, rtol=1e-3), "the change has no effect, so the test says nothing"
    state = model.state_dict()
    assert list(fast.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in fast.state_dict().items())


def hook_model(model):
    model.register_forward_hook(lambda module, args, output: output * 0.5)


def hook_blocks(model):
    model.blocks.register_forward_hook(lambda module, args, output: output.sin())


def replace_pool(model):
    model.pool = lambda x, pool_type=None: x.amax(1)


def pool_by_maximum(model):
    model.global_pool = "max"


def convolutional_stem(model):
    model.patch_embed.proj = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 32, 8, 8))


CHANGES_OF_A_MODEL = {
    hook_model: "has a forward hook",
    hook_blocks: "blocks has a forward hook",
    replace_pool: "its method pool was replaced",
    pool_by_maximum: "pools by 'max'",
    convolutional_stem: "patch_embed.proj is a torch.nn.modules.container.Sequential",
}


@pytest.mark.parametrize("change", CHANGES_OF_A_MODEL, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_changed_model_falls_back_with_accelerated_blocks(change):
    model = accelerable("timm: vit")
    images = sample_images(model)
    plain = model(images)
    change(model)
    expected = model(images)
    assert not torch.allclose(plain, expected, rtol=1e-3)
    with pytest.warns(
        UserWarning, match=r"1 of 3 parts of VisionTransformer fall back to the source's forward: \(model\): "
    ):
        fast = vitfast.accelerate(model, "fp32", check=images)
    (layer,) = fast.report().fell_back
    assert CHANGES_OF_A_MODEL[change] in layer.why_not
    assert {layer.name for layer in fast.report().layers} == {"(model)", "blocks.0", "blocks.1"}
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-5)
    state = model.state_dict()
    assert list(fast.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in fast.state_dict().items())
    assert model.training == fast.training


@torch.no_grad()
def test_a_method_that_a_library_replaces_in_its_class_is_seen(monkeypatch):
    import timm.layers

    model = accelerable("timm: vit")
    images = sample_images(model)
    original = timm.layers.Mlp.forward
    monkeypatch.setattr(timm.layers.Mlp, "forward", lambda self, x: original(self, x) * 0.5)
    expected = model(images)
    with pytest.warns(UserWarning, match="method forward of its class Mlp was replaced"):
        fast = vitfast.accelerate(model)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["torchvision", "transformers: ViTForImageClassification", "vitfast: dvt over deit"])
@torch.no_grad()
def test_a_changed_block_of_another_library_falls_back(kind):
    model = accelerable(kind)
    images = sample_images(model)
    name = next(name for name, _ in model.named_modules() if name.endswith(("mlp.fc1", "mlp.0", "intermediate.dense")))
    model.get_submodule(name).register_forward_hook(lambda module, args, output: output)
    expected = tensors_of(model(images))
    with pytest.warns(UserWarning, match="has a forward hook"):
        fast = vitfast.accelerate(model)
    assert len(fast.report().fell_back) == 1
    for result, wanted in zip(tensors_of(fast(images)), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_recognised_blocks_of_a_custom_model_are_accelerated():
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = accelerable("timm: vit")
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, left, right):
            return self.scale * (self.backbone(left) - self.backbone(right)).norm(dim=1)

    model = Siamese()
    left, right = torch.randn(2, 2, 3, 32, 32)
    with pytest.warns(UserWarning, match="which is of no known library"):
        fast = vitfast.accelerate(model, "fp32")
    assert len(fast.report().layers) == 3
    torch.testing.assert_close(fast(left, right), model(left, right), rtol=1e-4, atol=1e-5)
    assert list(fast.state_dict()) == list(model.state_dict())


@torch.no_grad()
def test_a_model_without_recognised_parts_runs_the_sources_code():
    from torchvision.models import resnet18

    model = resnet18(num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    with pytest.warns(UserWarning, match="no Vision Transformer|not torchvision's VisionTransformer"):
        fast = vitfast.accelerate(model)
    assert torch.equal(fast(images), model(images))
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    ("kind", "name"),
    [("timm: DINOv3", "blocks.1"), ("vitfast: DINOv3", "blocks.1"), ("transformers: DINOv3ViTModel", "layer.1")],
)
@torch.no_grad()
def test_blocks_with_rotary_embeddings_are_accelerated_all_or_none(kind, name):
    model = accelerable(kind)
    images = sample_images(model)
    block = next(module for path, module in model.named_modules() if path.endswith(name))
    block.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.warns(UserWarning, match=r"1 has a forward hook; blocks of this class .* all or none"):
        fast = vitfast.accelerate(model, "int8")
    for result, expected in zip(tensors_of(fast(images)), tensors_of(model(images)), strict=True):
        torch.testing.assert_close(result, expected)


def test_blocks_within_foreign_models_reject_masks():
    requires("transformers", "5")
    model = accelerable("transformers: ViTModel")
    model.layers.register_forward_pre_hook(lambda module, args: None)
    with pytest.warns(UserWarning, match="layers has a forward pre-hook"):
        fast = vitfast.accelerate(model)
    images = sample_images(model)
    assert fast(images).last_hidden_state.shape == (3, 5, 32)
    with pytest.raises(vitfast.UserError, match="takes tokens only"):
        fast(images, attention_mask=torch.tensor([[1, 1, 1, 1, 0]] * 3))


def test_lowering_reads_and_changes_nothing():
    model = accelerable("timm: vit")
    before = copy.deepcopy(vars(model.blocks[0]))
    spec = lower(model).spec
    assert spec.blocks[0].attention.qkv.weights[0] is model.blocks[0].attn.qkv.weight
    assert vars(model.blocks[0]).keys() == before.keys()


@torch.no_grad()
def test_a_masked_autoencoder_keeps_its_shuffling():
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**sizes, image_size=32, patch_size=8)).eval()
    with pytest.warns(UserWarning, match="shuffles its patches at random, so that only its layers are accelerated"):
        fast = vitfast.accelerate(model)
    assert [layer.why_not for layer in fast.report().layers[1:]] == ["", ""]
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    for result, expected in zip(
        fast(images, noise=noise).to_tuple(), model(images, noise=noise).to_tuple(), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
