"""Quantization-aware training by one option: any start, bit-exact resume, and use by every command."""

from __future__ import annotations

import json

import pytest
import torch

import vitfast
from support.run_content import content, differences
from support.slow import slow
from support.tiny_run import RICH, TINY_RUN
from vitfast.errors import UserError
from vitfast.evaluate import main as evaluate
from vitfast.runs.trained_model import load_trained_model
from vitfast.weights.checkpoint import latest_checkpoint, load_weights_file, read_manifest

CPU = torch.device("cpu")
FP16_16 = (
    "quantize.format=FP16_16",
    "quantize.numerics=qtorch",
    "quantize.overrides=[head=FP32,blocks.0.mlp*=FP8_E5M2]",
)
INT8 = ("quantize.format=INT8", "quantize.activations=calibrated", "quantize.calibration_batches=2")


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory, train_tiny):
    run_dir = tmp_path_factory.mktemp("runs") / "plain"
    assert train_tiny(run_dir) == 0
    return run_dir


@pytest.fixture(scope="module", params=[FP16_16, INT8], ids=["fp16_16", "int8 calibrated"])
def aware(request, tmp_path_factory, train_tiny):
    """The options and the folder of a run with everything that draws random numbers, an average among it."""
    run_dir = tmp_path_factory.mktemp("runs") / "aware"
    assert train_tiny(run_dir, *RICH, *request.param) == 0
    return request.param, run_dir


def test_the_manifest_says_how_it_is_quantized(aware, plain_run):
    options, run_dir = aware
    record = read_manifest(latest_checkpoint(run_dir))["quantization"]
    configs = {entry["config"]["name"] for entry in record["configs"]}
    assert not record["converted"]
    assert configs == ({"FP16_16Config", "FloatConfig"} if options is FP16_16 else {"Int8Config"})
    if options is FP16_16:
        assert record["configs"][0]["config"]["numerics"] == "qtorch"
        assert not any("head" in entry["modules"] for entry in record["configs"])
    else:
        assert len(record["activation_ranges"]) == 6
    assert (
        load_weights_file(latest_checkpoint(run_dir)).keys() == load_weights_file(latest_checkpoint(plain_run)).keys()
    )
    assert read_manifest(latest_checkpoint(plain_run))["quantization"] is None
    assert "numbers   " in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize("stop_step", [*slow([0]), 4])
def test_a_stopped_run_goes_on_bit_by_bit(aware, tmp_path, train_tiny, stop_step):
    options, whole = aware
    stopped = tmp_path / "stopped"
    assert train_tiny(stopped, *RICH, *options, stop_step=stop_step) == 143
    torch.manual_seed(99)
    assert train_tiny(stopped, f"train.resume={stopped}") == 0
    assert differences(content(whole), content(stopped)) == []
    with pytest.raises(UserError, match=r"quantize\.format=TF32 \(the run: "):
        train_tiny(stopped, f"train.resume={stopped}", "quantize.format=TF32")


def test_evaluation_finds_the_format_and_equals_the_converted_model(aware, capsys):
    _, run_dir = aware
    trained = load_trained_model(str(run_dir), device=CPU)
    images = torch.randn(5, 1, 8, 8)
    prepared = trained.model(images)
    assert not torch.equal(prepared, vitfast.create_model(checkpoint=latest_checkpoint(run_dir)).eval()(images))
    assert "prepared" in trained.describe()
    with torch.no_grad():  # the table's one difference: the LayerNorms' gammas, which conversion rounds
        for name, parameter in trained.model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(parameter.half().float())
    prepared = trained.model(images)
    vitfast.quantize_(trained.model, vitfast.QATConfig(step="convert"))
    torch.testing.assert_close(trained.model(images), prepared, rtol=0, atol=0)

    capsys.readouterr()
    assert evaluate([f"checkpoint={latest_checkpoint(run_dir)}", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    line = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()][-1]
    assert (found["top1"], found["weights"]) == (line["top1"], "ema")
    assert found["loss"] == pytest.approx(line["loss"], rel=1e-6)


def test_from_a_run_in_float32(plain_run, tmp_path, train_tiny):
    """The weights of the run's newest checkpoint are what it starts from."""
    run_dir = tmp_path / "aware"
    options = (f"model.checkpoint={plain_run}", "quantize.format=FP16_32", "optim.lr=1e-12", "schedule.min_lr=0")
    assert train_tiny(run_dir, *options, "optim.weight_decay=0") == 0
    begun, ended = (load_weights_file(latest_checkpoint(folder)) for folder in (plain_run, run_dir))
    for key, tensor in ended.items():
        torch.testing.assert_close(tensor, begun[key])


def test_weights_learn_other_things_than_in_float32(plain_run, tmp_path, train_tiny):
    run_dir = tmp_path / "aware"
    assert train_tiny(run_dir, "quantize.format=FP8_E4M3FN", "quantize.clip_gradients=true") == 0
    plain, aware = (load_weights_file(latest_checkpoint(folder)) for folder in (plain_run, run_dir))
    assert any(not torch.equal(plain[key], aware[key]) for key in plain)
    assert read_manifest(latest_checkpoint(run_dir))["quantization"]["configs"][0]["config"]["clip_gradients"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["quantize.format=FP12"], r"quantize\.format=FP12: there is no format 'FP12'; .*FP16_16, FP16_32"),
        (["quantize.numerics=qtorch"], r"quantize\.numerics requires quantize\.format"),
        (["quantize.format=INT8", "quantize.numerics=qtorch"], "the format INT8 has no option numerics"),
        (["quantize.format=TF32", "quantize.overrides=[tail=FP32]"], "no module is called 'tail'"),
        (["quantize.format=TF32", "quantize.overrides=[head]"], "'head' must be PATTERN=FORMAT"),
        (["quantize.format=TF32", "quantize.overrides=[head=FP12]"], "'head=FP12': there is no format 'FP12'"),
        (["quantize.format=FP16_16", "quantize.backend=qtorch"], "give numerics='qtorch' with it"),
    ],
)
def test_errors_are_raised_before_the_run_directory_is_created(tmp_path, train_tiny, options, message):
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [*slow([(FP16_16,)]), INT8], ids=["fp16_16", "int8 calibrated"])
def test_two_ranks_end_as_one(tmp_path, training_server, options):
    arguments = [*TINY_RUN, "train.threads=1", "optim.ema_decay=0.9", "data.batch_size=250", *options]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert training_server.run(tmp_path / "alone.output", [*arguments, f"run_dir={alone}"]) == 0
    ranks = training_server.start_ranks(tmp_path / "together.output", [*arguments, f"run_dir={together}"])
    assert [rank.wait() for rank in ranks] == [0, 0], "".join(rank.output.read_text() for rank in ranks)
    records = [read_manifest(latest_checkpoint(folder))["quantization"] for folder in (alone, together)]
    assert records[0]["configs"] == records[1]["configs"]
    ranges = [torch.tensor(list(record["activation_ranges"].values())) for record in records]
    torch.testing.assert_close(*ranges, rtol=1e-4, atol=1e-5)
    assert len(ranges[0]) == (6 if options is INT8 else 0)
    for weights in ("model", "ema"):
        one, other = (load_weights_file(latest_checkpoint(folder), weights) for folder in (alone, together))
        # sums of another order are rounded otherwise now and then, and Adam's first steps make much of little
        assert max(float((one[key] - other[key]).abs().max()) for key in one) < 5e-3
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (alone, together)]
    for first, second in zip(*lines, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=2e-3)


@pytest.mark.slow
def test_compiled(tmp_path, train_tiny):
    eager, compiled = tmp_path / "eager", tmp_path / "compiled"
    assert train_tiny(eager, "quantize.format=FP16_32") == 0
    assert train_tiny(compiled, "quantize.format=FP16_32", "train.compile=true") == 0
    one, other = (load_weights_file(latest_checkpoint(folder)) for folder in (eager, compiled))
    assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-2
    first, second = (read_manifest(latest_checkpoint(folder)) for folder in (eager, compiled))
    assert first["quantization"] == second["quantization"]
