"""Loading the model of a run."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
import torch
from PIL import Image

import vitfast
from support.checkpoints import rewrite_manifest
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.data import eval_transform
from vitfast.data.collection import StoredImage
from vitfast.errors import UserError
from vitfast.evaluation.checkpoint_data import data_of_checkpoint
from vitfast.evaluation.image_files import read_batches
from vitfast.evaluation.predict import predict
from vitfast.runs.trained_model import load_trained_model
from vitfast.weights.checkpoint import CheckpointError, latest_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, train_tiny):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train_tiny(path, "optim.ema_decay=0.5", stop_step=4) == 143
    return path


def test_the_facade_reads_the_same_checkpoint(run_dir):
    images = torch.randn(3, 1, 8, 8)
    trained = load_trained_model(str(run_dir), weights="model", device=CPU)
    facade = vitfast.create_model(checkpoint=latest_checkpoint(run_dir)).eval()
    assert not trained.model.training
    assert torch.equal(trained.model(images), facade(images))
    settings, data = facade.pretrained_cfg, trained.data
    assert (settings["mean"], settings["std"]) == (tuple(data["mean"]), tuple(data["std"]))
    assert (settings["input_size"], settings["crop_pct"]) == ((1, 8, 8), data["crop_pct"])
    assert trained.class_names == [str(digit) for digit in range(10)]


def test_auto_takes_the_average(run_dir):
    auto, ema, model = (
        load_trained_model(str(run_dir), weights=weights, device=CPU) for weights in ("auto", "ema", "model")
    )
    assert (auto.weights, model.weights) == ("ema", "model")
    assert torch.equal(auto.model.head.weight, ema.model.head.weight)
    assert not torch.equal(auto.model.head.weight, model.model.head.weight)
    assert "averaged weights (EMA) of" in auto.describe()


def test_the_best_checkpoint_is_taken_and_named(run_dir, tmp_path):
    newest = load_trained_model(str(run_dir), device=CPU)
    assert newest.describe().endswith("checkpoint_000004 (the newest of the run)")
    copy = shutil.copytree(run_dir, tmp_path / "run")
    best = shutil.copytree(copy / "checkpoint_000004", copy / "checkpoint_000002")
    for checkpoint, step in ((best, 2), (copy / "checkpoint_000004", 4)):
        rewrite_manifest(checkpoint, step=step, metrics={"best_step": 2})
    assert load_trained_model(str(copy), device=CPU).describe().endswith("checkpoint_000002 (the best of the run)")
    assert load_trained_model(str(best), device=CPU).describe().endswith("checkpoint_000002")


def test_images_are_read_as_the_run_read_them(run_dir, tmp_path, train_tiny):
    assert train_tiny(tmp_path / "squashed", "data.resize=both_sides", stop_step=1) == 143
    alone = shutil.copytree(latest_checkpoint(tmp_path / "squashed"), tmp_path / "alone")  # without config.yaml
    squashed, plain = (load_trained_model(str(path), device=CPU) for path in (alone, run_dir))
    del plain.manifest["data"]["resize"]  # as in checkpoints of earlier versions
    file = tmp_path / "wide.png"
    Image.fromarray(torch.randint(0, 256, (10, 30), dtype=torch.uint8).numpy()).save(file)
    for trained, resize in ((squashed, "both_sides"), (plain, "short_side")):
        assert data_of_checkpoint(trained, EvaluateDataOptions()).resize == resize
        settings = (trained.data["mean"], trained.data["std"], "bicubic", 1.0)
        image = eval_transform(8, 1, *settings, resize)(Image.open(file))
        expected = trained.model(image[None]).softmax(1)[0].sort(descending=True).values
        (prediction,) = predict(trained, read_batches(trained, [StoredImage(str(file), str(file))], 32, []), top=10)
        assert prediction.probabilities == pytest.approx(expected.tolist(), abs=1e-6)


def test_unknown_weights_are_named(run_dir):
    with pytest.raises(UserError, match="weights=best; it must be one of auto, ema, model"):
        load_trained_model(str(run_dir), weights="best", device=CPU)


def test_a_model_that_this_version_does_not_know(run_dir, tmp_path):
    for change in ({"name": "vit_future", "fields": {}}, {"name": "vit_nano_patch2_8", "fields": {"depth": 9}}):
        folder = shutil.copytree(latest_checkpoint(run_dir), tmp_path / change["name"])
        rewrite_manifest(folder, model=change)
        with pytest.raises(CheckpointError, match="does not fit this version of vitfast"):
            load_trained_model(str(folder), device=CPU)


@pytest.mark.parametrize(
    ("field", "claim"),
    [("num_classes", 30_000_000), ("depth", 20_000), ("embed_dim", 1 << 20), ("mlp_ratio", 1e6), ("img_size", 1 << 16)],
)
def test_a_manifest_allocates_nothing(run_dir, tmp_path, field, claim):
    """A few bytes claim a model of gigabytes; ``create_model`` and all commands compare them with the weights."""
    folder = shutil.copytree(latest_checkpoint(run_dir), tmp_path / "crafted")
    model = json.loads((folder / "manifest.json").read_text())["model"]
    rewrite_manifest(folder, model={**model, "fields": {**model["fields"], field: claim}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (lambda: load_trained_model(str(folder), device=CPU), lambda: vitfast.create_model(checkpoint=folder)):
        with pytest.raises(UserError, match=f"crafted.*{field}"):
            load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a"]}, "its manifest has 1 class names, its model 10"),
        ({"class_names": [1] * 10}, '"class_names" must be a list of names'),
        ({"data": {}}, "its manifest lacks data.img_size"),
        ({"data": {"img_size": "8"}}, '"data.img_size" must be a number of pixels'),
        ({"data": {"crop_pct": 0}}, '"data.crop_pct" must be a share from 0.1 to 1'),
        ({"model": {"name": 3, "fields": {}}}, '"model" must be the name and the fields of a model'),
        ({"exit_thresholds": [float("nan")]}, '"exit_thresholds" must be null or a list of numbers'),
        ({"quantization": {"format_version": 1, "configs": 3}}, "the quantization record is damaged"),
    ],
)
def test_a_manifest_with_wrong_values(run_dir, tmp_path, changes, message):
    folder = shutil.copytree(latest_checkpoint(run_dir), tmp_path / "crafted")
    rewrite_manifest(folder, **changes)
    with pytest.raises(CheckpointError, match=f"crafted.*{message}"):
        load_trained_model(str(folder), device=CPU)
