"""Exported files compute what the model computes, for any batch size and in processes without vitfast."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vitfast
import vitfast.export  # takes the place of the function of this name, and must be callable
from support.accelerable import BUILDERS, accelerable, sample_images, tensors_of
from support.subprocesses import run_python
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.evaluation.checkpoint_data import dataset_of_split
from vitfast.inference.pt2_file import MANIFEST, check_manifest
from vitfast.ops import library
from vitfast.runs.trained_model import load_trained_model
from vitfast.train import main as train

DVT = "vitfast: dvt over deit"


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("accelerated", [False, True])
def test_pt2_takes_any_batch(kind, accelerated, tmp_path):
    model = accelerable(kind)
    images = sample_images(model, 5)
    model = vitfast.accelerate(model, "int8") if accelerated else model
    report = vitfast.export(model, tmp_path / "model.pt2", images=images)
    assert report.agrees, str(report)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 4):
        expected = tensors_of(model(images[:batch]))
        torch.testing.assert_close(tensors_of(program(images[:batch])), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_pt2_runs_without_vitfast(tmp_path):
    fast = vitfast.accelerate(accelerable("vitfast: vit"), "bf16")
    images = sample_images(accelerable("vitfast: vit"), 3)
    vitfast.export(fast, tmp_path / "model.pt2", images=images)
    np.save(tmp_path / "images.npy", images.numpy())
    library_path = next(path for path in torch.ops.loaded_libraries if "vitfast_cpu" in str(path))
    program = (
        "import json, numpy, sys, torch\n"
        f"torch.ops.load_library({str(library_path)!r})\n"
        f"extra = {{{MANIFEST!r}: ''}}\n"
        f"program = torch.export.load({str(tmp_path / 'model.pt2')!r}, extra_files=extra).module()\n"
        f"images = torch.from_numpy(numpy.load({str(tmp_path / 'images.npy')!r}))\n"
        f"numpy.save({str(tmp_path / 'logits.npy')!r}, program(images).numpy())\n"
        "assert 'vitfast' not in sys.modules\n"
        f"print(extra[{MANIFEST!r}])\n"
    )
    finished = run_python("-c", program)
    assert finished.returncode == 0, finished.stderr
    manifest = json.loads(finished.stdout)
    assert manifest["torch"] == torch.__version__
    assert manifest["instruction_set"] == library.build_info()["cpu"]["instruction_set"]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), fast(images), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILDERS)
def test_onnx_agrees_in_every_engine(kind, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = accelerable(kind)
    report = vitfast.export(model, tmp_path / "model.onnx", images=sample_images(model, 5))  # traced with two
    assert report.agrees, str(report)
    assert report.agreement.num_images == 5
    graph = onnx.load(tmp_path / "model.onnx")
    assert "If" not in {node.op_type for node in graph.graph.node}
    assert next(one.version for one in graph.opset_import if one.domain == "") >= 18


@pytest.mark.slow
def test_onnx_in_int8(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = accelerable("vitfast: vit")
    report = vitfast.export(model, tmp_path / "model.onnx", images=sample_images(model, 40), int8=True)
    assert report.agrees, str(report)
    assert 0 < report.agreement.max_difference
    names = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert names.count("DequantizeLinear") >= 2 * 4 * 2  # weights and activations of four layers of two blocks
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    weights = [one for one in stored if one.dtype == np.int8 and one.ndim == 2]
    assert weights
    assert max(abs(one.astype(int)).max() for one in weights) == 64  # products of 8 bits saturate without VNNI


@pytest.mark.slow
def test_onnx_in_int8_of_a_trained_model_keeps_its_accuracy(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    assert train(["schedule.epochs=10", "data.batch_size=16", f"run_dir={tmp_path / 'run'}"]) == 0
    trained = load_trained_model(str(tmp_path / "run"), device=torch.device("cpu"))
    splits = (dataset_of_split(trained, EvaluateDataOptions(), split) for split in ("train", "test"))
    calibration, test = (next(iter(DataLoader(split, batch_size=360))) for split in splits)
    report = vitfast.export(trained.model, tmp_path / "model.onnx", images=calibration[0], int8=True)
    assert report.agrees, str(report)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    logits = torch.from_numpy(session.run(None, {"images": test[0].numpy()})[0])
    correct, expected = ((one.argmax(1) == test[1]).float().mean() for one in (logits, trained.model(test[0])))
    assert expected > 0.8
    assert abs(correct - expected) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [vitfast.FP16_32Config(), vitfast.FP16_16Config(), vitfast.FloatConfig("fp8_e4m3fn")], ids=repr
)
def test_onnx_of_a_quantized_model_has_its_rounded_weights(config, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = accelerable("vitfast: vit")
    vitfast.quantize_(model, vitfast.QATConfig(config, step="prepare"))
    vitfast.quantize_(model, vitfast.QATConfig(config, step="convert"))
    assert vitfast.export(model, tmp_path / "model.onnx").agrees
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    weights = [one for one in stored if one.ndim == 2 and min(one.shape) > 8]
    assert weights
    assert all((one.astype(np.float16) == one).all() for one in weights)


@pytest.mark.slow
def test_frexp_in_onnx_is_exact(tmp_path):
    runtime = pytest.importorskip("onnxruntime")

    class Frexp(torch.nn.Module):
        def forward(self, x):
            return torch.frexp(x)

    powers = 2.0 ** torch.arange(-149, 128, dtype=torch.float64)
    x = torch.stack([powers, -powers, powers * (1 - 2**-20), powers * (1 + 2**-20), powers * 1.5])
    x = torch.cat([x, torch.zeros(5, 1, dtype=torch.float64)], 1).float().double()  # numbers of float32
    table = vitfast.custom_translation_table()
    torch.onnx.export(Frexp(), (x,), tmp_path / "frexp.onnx", dynamo=True, custom_translation_table=table)
    found = runtime.InferenceSession(tmp_path / "frexp.onnx").run(None, {"x": x.numpy()})
    is_nonzero = (x != 0).numpy()
    for one, expected in zip(found, torch.frexp(x), strict=True):
        assert (one == expected.numpy())[is_nonzero].all()
    assert (found[0] == 0)[~is_nonzero].all()


@pytest.mark.slow
def test_one_exit_of_several(tmp_path):
    model = accelerable(DVT)
    images = sample_images(model)
    assert vitfast.export(model, tmp_path / "model.pt2", images=images, exit=0).agrees
    result = torch.export.load(tmp_path / "model.pt2").module()(images)
    torch.testing.assert_close(result, model(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_aot_package_of_a_source_model(tmp_path):
    model = accelerable("vitfast: vit")
    images = sample_images(model, 5)
    assert vitfast.export(model, tmp_path / "model.pt2", images=images, aot=True).agrees
    loaded = vitfast.load(tmp_path / "model.pt2")
    assert loaded.manifest["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    for batch in (1, 5):
        torch.testing.assert_close(loaded(images[:batch]), model(images[:batch]), rtol=1e-4, atol=1e-5)


HERE = {
    "torch": torch.__version__,
    "vitfast": vitfast.__version__,
    "instruction_set": library.build_info()["cpu"]["instruction_set"],
    "cpu_capability": torch.backends.cpu.get_cpu_capability(),
}


@pytest.mark.parametrize(
    ("changes", "is_compiled", "message"),
    [
        ({"torch": "2.1.0"}, True, r"made by torch 2\.1\.0, and this is .*; install torch==2\.1\.\*, or export"),
        ({"torch": "99.0.1"}, False, r"install torch==99\.0\.\* or newer, or export"),
        ({"torch": "new"}, False, "torch version is 'new'"),
        ({"instruction_set": "sve"}, False, r"packed for the instruction set sve, and .* or as \.vit.*VITFAST_ISA=sve"),
        ({"vitfast": "0.0.1"}, False, r"operators of vitfast 0\.0\.1, .*install vitfast==0\.0\.1"),
        ({"cpu_capability": "SVE256"}, True, "compiled for processors with SVE256"),
    ],
)
def test_a_program_for_another_machine_is_refused(tmp_path, changes, is_compiled, message):
    check_manifest(tmp_path, HERE, is_compiled=is_compiled)
    with pytest.raises(vitfast.UserError, match=message):
        check_manifest(tmp_path, {**HERE, **changes}, is_compiled=is_compiled)


def test_an_older_program_loads(tmp_path):
    check_manifest(tmp_path, {**HERE, "torch": "2.11.0"}, is_compiled=False)
    other = {"torch": torch.__version__, "vitfast": "0.0.1", "instruction_set": "any"}
    check_manifest(tmp_path, other, is_compiled=False)


def test_load_checks_the_manifest(tmp_path):
    fast = vitfast.accelerate(accelerable("vitfast: vit"))
    images = sample_images(fast, 3)
    path = tmp_path / "model.pt2"
    vitfast.export(fast, path, images=images)
    torch.testing.assert_close(vitfast.load(path)(images), fast(images))
    with pytest.raises(vitfast.UserError, match=r"precision='bf16' applies to \.vit files"):
        vitfast.load(path, "bf16")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "other.pt2", "w") as changed:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(MANIFEST):
                content = json.dumps({**json.loads(content), "instruction_set": "sve"}).encode()
            changed.writestr(name, content)
    with pytest.raises(vitfast.UserError, match=r"other\.pt2 holds weights packed for the instruction set sve"):
        vitfast.load(tmp_path / "other.pt2")
    (tmp_path / "no.pt2").write_text("no archive")
    with pytest.raises(vitfast.UserError, match=r"is not a \.pt2 file of vitfast\.export"):
        vitfast.load(tmp_path / "no.pt2")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.pth", {}, r"suffix '.pth'; allowed: .vit, .pt2, .onnx"),
        ("nowhere/model.vit", {}, "nowhere does not exist"),
        ("model.vit", {"int8": True}, "int8=True applies to .onnx only"),
        ("model.onnx", {"int8": True}, "int8=True needs images="),
        ("model.onnx", {"aot": True}, "aot=True applies to .pt2 only"),
        ("model.vit", {"exit": 0}, "exit=0 applies to .pt2 and .onnx"),
        ("model.pt2", {"exit": 0}, "exit=0 is out of range: the model has 1 exit"),
        ("model.vit", {"images": torch.zeros(3, 32, 32)}, r"images must be a tensor \[B"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, name, options, message):
    with pytest.raises(vitfast.UserError, match=message):
        vitfast.export(accelerable("vitfast: vit"), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_accelerated_model_is_no_onnx_file(tmp_path):
    with pytest.raises(vitfast.UserError, match="export the model that was accelerated"):
        vitfast.export(vitfast.accelerate(accelerable("vitfast: vit")), tmp_path / "model.onnx")
