"""``.vit`` files: the loaded model equals the accelerated one, on any instruction set; untrusted fields are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import vitfast
from support.accelerable import BUILDERS, accelerable, distance, sample_images, tensors_of
from support.subprocesses import run_python
from vitfast.inference.vit_file import _KEY, _digest
from vitfast.weights.weight_file import read_safetensors

FAST = ("vitfast: convit", "vitfast: dvt, convolutions", "timm: Swin V2", "transformers: DINOv3ViTBackbone")
NO_FILE = ("timm: SAM", "timm: SAM, neck")


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in BUILDERS]
)
def test_a_loaded_model_is_the_accelerated_one(kind, tmp_path):
    model = accelerable(kind)
    path, images = tmp_path / "model.vit", sample_images(model)
    if kind in NO_FILE:
        with pytest.raises(vitfast.UserError, match="holds no code of the source"):
            vitfast.export(model, path)
        return
    fast = vitfast.accelerate(model, "bf16")
    expected = fast(images)
    for exported, precision in ((model, "bf16"), (fast, None)):
        report = vitfast.export(exported, path)
        assert report.agrees, str(report)
        loaded = vitfast.load(path, precision)
        result = loaded(images)
        assert type(result) is type(expected)
        for one, other in zip(tensors_of(result), tensors_of(expected), strict=True):
            assert torch.equal(one, other)
        assert str(loaded.report()) == str(fast.report())
        assert {key: value.shape for key, value in loaded.state_dict().items()} == {
            key: value.shape for key, value in model.state_dict().items()
        }


@pytest.fixture(scope="module")
def source():
    model = accelerable("vitfast: vit")
    model.class_names = [f"class {index}" for index in range(7)]
    return model


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "model.vit"
    vitfast.export(source, path)
    return path


def test_another_instruction_set_computes_the_same(source, path):
    images, limits = sample_images(source), {"fp32": 1e-5, "bf16": 1e-2, "int8": 1e-2}
    torch.save(images, path.with_suffix(".images"))
    program = (
        "import torch, vitfast\n"
        f"images = torch.load({str(path.with_suffix('.images'))!r})\n"
        f"logits = {{name: vitfast.load({str(path)!r}, name)(images) for name in {list(limits)}}}\n"
        f"torch.save(logits, {str(path.with_suffix('.logits'))!r})\n"
        "print(vitfast.build_info()['cpu']['instruction_set'])\n"
    )
    finished = run_python("-c", program, VITFAST_ISA="baseline")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["baseline"]
    logits = torch.load(path.with_suffix(".logits"))
    for precision, limit in limits.items():
        assert distance(logits[precision], vitfast.load(path, precision)(images)) < limit, precision


def test_it_knows_classes_and_preprocessing(source, path):
    loaded = vitfast.load(path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert loaded.class_names == source.class_names
    assert loaded.num_classes == 7
    normalizing = path.with_name("normalizing.vit")
    vitfast.export(loaded, normalizing, images=torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8))
    pixels = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(vitfast.load(normalizing)(pixels), loaded(pixels))
    with pytest.raises(vitfast.UserError, match="normalizes images itself"):
        vitfast.load(normalizing, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_quantized_models_keep_their_rounded_weights(tmp_path):
    for config in (vitfast.FP16_32Config(), vitfast.Int8Config()):
        model = accelerable("vitfast: vit")
        vitfast.quantize_(model, config)
        vitfast.export(model, tmp_path / "model.vit")
        loaded, fast = vitfast.load(tmp_path / "model.vit"), vitfast.accelerate(model)
        images = sample_images(model)
        assert distance(loaded(images), fast(images)) < 1e-6
        with pytest.raises(vitfast.UserError, match="the model is quantized to"):
            vitfast.load(tmp_path / "model.vit", "bf16")


def test_thresholds_are_stored(tmp_path):
    model = accelerable("vitfast: dvt over deit")
    early = vitfast.EarlyExit(model, [0.2, 0.3, 0.0][: model.num_exits])
    report = vitfast.export(early, tmp_path / "model.vit")
    assert report.agrees
    images = sample_images(model, 5)
    logits, exits = vitfast.EarlyExit(vitfast.load(tmp_path / "model.vit"))(images)
    expected, expected_exits = early(images)
    assert torch.equal(exits, expected_exits)
    assert distance(logits, expected) < 1e-5


def rewrite(path, change):
    """Changes the record of a file and writes it with the right digest."""
    file = read_safetensors(path)
    record = json.loads(file.metadata[_KEY])
    tensors = dict(file.tensors)
    change(record, tensors)
    text = json.dumps(record)
    target = path.with_name("changed.vit")
    save_file(tensors, target, {_KEY: text, f"{_KEY}_sha256": _digest(tensors, text)})
    return target


def set_at(*keys, value):
    def change(record, _):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("format_version", value=2), "has format 2"),
        (set_at("precision", value="fp64"), "precision is 'fp64'"),
        (set_at("spec", "type", value="os.system"), "spec is .*must be a TransformerSpec"),
        (set_at("spec", "norm", "eps", value="x"), "spec.norm.eps is 'x'"),
        (set_at("spec", "norm", "eps", value=float("nan")), "spec.norm.eps is nan"),
        (set_at("spec", "norm", "weight", value="nothing"), "spec.norm.weight names a tensor 'nothing'"),
        (set_at("spec", "norm", "extra", value=1), "spec.norm has an unknown field 'extra'"),
        (set_at("spec", "neck", value="x"), "spec.neck is 'x'"),
        (set_at("spec", "late_index", value=10**30), "spec.late_index is 1000"),
        (set_at("spec", "embedding", "patches", "image_size", value=[100000, 100000]), "patches.image_size"),
        (set_at("spec", "embedding", "patches", "patch_size", value=[0, 0]), "patches.patch_size"),
        (set_at("spec", "blocks", 0, "attention", "heads", value=3), "do not fit together"),
        (
            set_at("spec", "blocks", 0, value={"type": "FallbackSpec", "name": "x", "module": "x", "why": "x"}),
            "spec.blocks.0",
        ),
        (lambda record, tensors: tensors.pop("norm.weight"), "lacks the tensor of tensors.norm.weight"),
        (lambda record, tensors: tensors.update({"norm.weight": torch.ones(3)}), "do not fit together"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(path, change, message):
    changed = rewrite(path, change)
    with pytest.raises(vitfast.UserError, match=message) as error:
        vitfast.load(changed)
    assert str(changed) in str(error.value)


def test_files_of_earlier_versions_lack_fields_that_have_a_default(source, path):
    changed = rewrite(path, lambda record, _: record["spec"].pop("merge_tokens"))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(vitfast.load(changed)(images), vitfast.load(path)(images))
    changed = rewrite(path, lambda record, _: record["spec"].pop("blocks"))
    with pytest.raises(vitfast.UserError, match="spec lacks 'blocks'"):
        vitfast.load(changed)


def test_no_module_is_imported_that_the_file_names(tmp_path):
    path = tmp_path / "model.vit"
    vitfast.export(accelerable("transformers: ViTForImageClassification"), path)
    changed = rewrite(path, set_at("spec", "output", "module", value="antigravity"))
    with pytest.raises(vitfast.UserError, match=r"spec.output.module is 'antigravity'"):
        vitfast.load(changed)
    changed = rewrite(path, set_at("spec", "output", "name", value="PreTrainedModel"))
    with pytest.raises(vitfast.UserError, match=r"spec.output.name is 'PreTrainedModel'"):
        vitfast.load(changed)


def test_other_files_are_refused(source, tmp_path):
    with pytest.raises(vitfast.UserError, match=r"nothing.vit is not a file"):
        vitfast.load(tmp_path / "nothing.vit")
    vitfast.save_weights(source, tmp_path / "model.safetensors")
    with pytest.raises(vitfast.UserError, match=r"was not written by vitfast.export; use vitfast.create_model"):
        vitfast.load(tmp_path / "model.safetensors")
    with pytest.raises(vitfast.UserError, match=r"nothing.pt2 is not a file"):
        vitfast.load(tmp_path / "nothing.pt2")
    with pytest.raises(vitfast.UserError, match=r"onnxruntime.InferenceSession reads .onnx"):
        vitfast.load(tmp_path / "model.onnx")
