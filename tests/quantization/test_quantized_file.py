"""Saved converted models: size, bit-exact reload, and the quantization record."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import vitfast
from support.subprocesses import run_python
from vitfast import (
    FixedConfig,
    FloatConfig,
    FloatFormat,
    FP16_16Config,
    FP16_32Config,
    Int8Config,
    QATConfig,
    TF32Config,
    UserError,
)
from vitfast.models import ImageModel
from vitfast.quantization.configs import QuantizationConfig

CASES = [
    (FP16_16Config(), 0.60),
    (FP16_32Config(numerics="qtorch"), 0.60),
    (TF32Config(), 1.05),
    (FloatConfig("fp8_e4m3fn"), 0.35),
    (FloatConfig("fp4_e2m1"), 0.35),
    (FixedConfig(11, 8), 0.60),
    (Int8Config(), 0.40),
    (Int8Config("calibrated"), 0.40),
]


@pytest.mark.parametrize(("config", "share"), CASES, ids=lambda value: repr(value)[:60])
def test_the_file_is_small_and_gives_the_same_bits(
    model: ImageModel, images: Tensor, config: QuantizationConfig, share: float, tmp_path: Path
) -> None:
    vitfast.save_weights(model, tmp_path / "float32.safetensors")
    vitfast.quantize_(model, config)
    vitfast.calibrate(model, [images])
    vitfast.save_quantized(model, tmp_path / "small.safetensors")
    loaded = vitfast.load_quantized(tmp_path / "small.safetensors")
    assert torch.equal(loaded(images), model(images))
    for (key, tensor), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), key
    assert vitfast.quantization_record(loaded) == vitfast.quantization_record(model)
    sizes = [(tmp_path / name).stat().st_size for name in ("small.safetensors", "float32.safetensors")]
    assert sizes[0] < share * sizes[1]


@pytest.mark.parametrize(
    "change",
    [
        *({"fields": fields} for fields in ({"num_classes": 30_000_000}, {"depth": 20_000}, {"depth": "2"}, [], None)),
        *({"name": name} for name in ("dvt_nano_16", 3, [], None)),
    ],
    ids=str,
)
def test_fields_that_the_weights_do_not_have(model: ImageModel, tmp_path: Path, change: dict[str, object]) -> None:
    """They are compared before a model of their size is built."""
    vitfast.quantize_(model, Int8Config())
    vitfast.save_quantized(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["vitfast_quantized"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    metadata["model"] |= change
    save_file(tensors, tmp_path / "crafted.safetensors", {"vitfast_quantized": json.dumps(metadata)})
    with pytest.raises(UserError, match=r"crafted\.safetensors"):
        vitfast.load_quantized(tmp_path / "crafted.safetensors")


def test_another_process_computes_the_same(model: ImageModel, images: Tensor, tmp_path: Path) -> None:
    vitfast.quantize_(model, Int8Config())
    path = tmp_path / "model.safetensors"
    vitfast.save_quantized(model, path)
    torch.save((images, model(images)), tmp_path / "sample.pt")
    program = (
        "import torch, vitfast\n"
        f"images, expected = torch.load({str(tmp_path / 'sample.pt')!r})\n"
        f"assert torch.equal(vitfast.load_quantized({str(path)!r})(images), expected)\n"
    )
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("config", [FP16_16Config(clip_gradients=True), Int8Config("calibrated")], ids=repr)
@pytest.mark.parametrize("step", ["prepare", "convert"])
def test_the_record_makes_the_same_model(
    model: ImageModel, images: Tensor, config: QuantizationConfig, step: str
) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    other_format = FloatConfig(FloatFormat.ieee(4, 5), round_results=True)
    vitfast.quantize_(model, QATConfig(config), overrides={"head": None, "blocks.0.*": other_format})
    vitfast.calibrate(model, [images])
    if step == "convert":
        vitfast.quantize_(model, QATConfig(step="convert"))
    record = json.loads(json.dumps(vitfast.quantization_record(model)))
    fresh = vitfast.create_model("vit_nano_patch2_8", depth=2, num_classes=5).eval()
    assert vitfast.quantization_record(fresh) is None
    vitfast.quantize_from_record(fresh, record)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(images), model(images))


def test_a_record_may_name_modules_that_only_contain_layers(model: ImageModel, images: Tensor) -> None:
    """Earlier versions quantized attention and MLP modules, too, and wrote their names."""
    other = copy.deepcopy(model)
    vitfast.quantize_(model, QATConfig(FP16_16Config()))
    record = vitfast.quantization_record(model)
    assert record is not None
    record["configs"][0]["modules"] += ["patch_embed", "blocks.0.attn", "blocks.0.mlp"]
    vitfast.quantize_from_record(other, record)
    assert torch.equal(other(images), model(images))


def test_kernels_that_are_rounded_after_their_standardization_stay_float32(tmp_path: Path) -> None:
    model = vitfast.create_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=5, depth=1).eval()
    vitfast.quantize_(model, Int8Config())
    vitfast.save_quantized(model, tmp_path / "hybrid.safetensors")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(vitfast.load_quantized(tmp_path / "hybrid.safetensors")(images), model(images))


@pytest.mark.parametrize("config", [Int8Config(), FloatConfig("mxfp4")], ids=repr)
def test_models_of_other_libraries(config: QuantizationConfig, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        ).eval()

    model, images = build(), torch.randn(2, 3, 8, 8)
    vitfast.quantize_(model, config)
    path = tmp_path / "theirs.safetensors"
    vitfast.save_quantized(model, path)
    filled = build()
    assert vitfast.load_quantized(path, filled) is filled
    assert torch.equal(filled(images), model(images))
    with pytest.raises(UserError, match=r"theirs\.safetensors holds a Sequential; give load_quantized\(path, model\)"):
        vitfast.load_quantized(path)
    with pytest.raises(UserError, match=r"^model is quantized"):
        vitfast.load_quantized(path, filled)
    other = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    with pytest.raises(
        UserError, match=r"theirs\.safetensors is of another.* 0.bias: \(8,\) in the file, \(4,\) in the model"
    ):
        vitfast.load_quantized(path, other)
    assert vitfast.quantization_record(other) is None


def test_errors(model: ImageModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="writes converted models"):
        vitfast.save_quantized(model, path)
    vitfast.save_weights(model, path)
    with pytest.raises(UserError, match="not written by"):
        vitfast.load_quantized(path)
    with pytest.raises(UserError, match="is no file"):
        vitfast.load_quantized(tmp_path / "absent.safetensors")
    vitfast.quantize_(model, FP16_16Config())
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        vitfast.save_quantized(model, tmp_path / "model.bin")
    vitfast.save_quantized(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        vitfast.load_quantized(path)


def test_damaged_records(model: ImageModel) -> None:
    record = {"format_version": 1, "converted": False, "configs": [], "activation_ranges": {}}
    wrong: list[tuple[object, str]] = [
        ("FP16_16", "format version"),
        ({**record, "format_version": 2}, "format version 1"),
        ({"format_version": 1}, "damaged"),
        ({**record, "configs": [{"config": {"name": "FP12"}, "modules": ["head"]}]}, "unknown quantization 'FP12'"),
        ({**record, "configs": [{"config": {"name": "Int8Config"}, "modules": ["tail"]}]}, "no module tail"),
    ]
    for damaged, message in wrong:
        with pytest.raises(UserError, match=message):
            vitfast.quantize_from_record(model, damaged)  # type: ignore[arg-type]
