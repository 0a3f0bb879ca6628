"""The training loop, on the packaged digits."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import torch
from PIL import Image

from vitfast.config import load_config
from vitfast.data import EpochBatchSampler
from vitfast.errors import UserError
from vitfast.runs.run_directory import RunDirectory
from vitfast.tasks import ClassificationTask
from vitfast.training import trainer as trainer_module
from vitfast.training.build import create_training_model
from vitfast.training.distributed import Ranks
from vitfast.training.finite_guard import NonFiniteError
from vitfast.training.schedule import TrainingLength
from vitfast.training.stop_signal import StopSignal
from vitfast.training.trainer import Trainer
from vitfast.training.training_data import TrainingData
from vitfast.training.training_state import TrainingState
from vitfast.weights.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_weights_file,
    read_manifest,
    save_checkpoint,
)


def metrics_of(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


EPOCHS, STEPS = 6, 21


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, train_tiny):
    path = tmp_path_factory.mktemp("runs") / "run"
    # patches of 4 x 4 learn faster than the recipe's
    options = [f"schedule.epochs={EPOCHS}", "data.batch_size=64", "model.fields.embed_dim=32", "optim.lr=0.01"]
    options += ["model.fields.patch_size=4", "data.augment.affine_degrees=0", "data.augment.affine_translate=0"]
    options += ["optim.ema_decay=0.5", "train.keep_checkpoints=1"]
    assert train_tiny(path, *options, curves=True) == 0
    return path


def test_it_learns(run_dir):
    test = metrics_of(run_dir)[-1]
    assert test["split"] == "test"
    assert test["top1"] > 0.7  # chance is 0.1
    assert test["loss"] < 1.2  # a uniform guess costs 2.30


def test_metrics_have_a_line_for_each_split_and_epoch(run_dir):
    lines = metrics_of(run_dir)
    expected = [(split, epoch) for epoch in range(1, EPOCHS + 1) for split in ("train", "val")]
    assert [(line["split"], line["epoch"]) for line in lines] == [*expected, ("test", EPOCHS)]
    assert all(set(line) == {"split", "epoch", "step", "loss", "top1", "top5", "lr", "images_per_s"} for line in lines)
    assert [line["step"] for line in lines if line["split"] == "val"] == [
        STEPS * epoch for epoch in range(1, EPOCHS + 1)
    ]
    config = load_config([f"recipe={run_dir / 'config.yaml'}"])
    assert lines[-2]["lr"] == pytest.approx(config.schedule.min_lr)
    assert all(0 <= line["top1"] <= line["top5"] <= 1 and line["images_per_s"] > 0 for line in lines)


def test_run_directory_contents(run_dir):
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("checkpoint_")}
    assert names == {"config.yaml", "environment.json", "metrics.jsonl", "log.txt", "curves.png", "samples", "best"}
    assert {path.name for path in (run_dir / "samples").iterdir()} == {f"{digit}.png" for digit in range(10)}
    config = load_config([f"recipe={run_dir / 'config.yaml'}"])
    assert config.run_dir == str(run_dir)
    assert config.optim.ema_decay == 0.5
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["threads"] == torch.get_num_threads()
    assert "build_info" in environment
    with Image.open(run_dir / "curves.png") as image:
        assert image.width == 1200
    log = (run_dir / "log.txt").read_text()
    assert "epoch 6/6" in log
    assert "python" in log


def test_the_newest_and_the_best_checkpoint_stay(run_dir):
    manifest = read_manifest(latest_checkpoint(run_dir))
    values = {line["step"]: line["top1"] for line in metrics_of(run_dir) if line["split"] == "val"}
    best = max(values.values())
    assert manifest["metrics"]["best_val_top1"] == best
    assert manifest["metrics"]["best_step"] == min(step for step, value in values.items() if value == best)
    steps = {STEPS * EPOCHS, manifest["metrics"]["best_step"]}
    assert {path.name for path in list_checkpoints(run_dir)} == {f"checkpoint_{step:06d}" for step in steps}
    assert os.readlink(run_dir / "best") == f"checkpoint_{manifest['metrics']['best_step']:06d}"


def test_the_manifest_describes_model_and_input(run_dir):
    manifest = read_manifest(latest_checkpoint(run_dir))
    assert manifest["model"]["name"] == "vit_nano_patch2_8"
    assert manifest["model"]["fields"]["embed_dim"] == 32
    assert manifest["class_names"] == [str(digit) for digit in range(10)]
    assert {"img_size", "in_chans", "mean", "std", "resize", "interpolation", "crop_pct"} <= set(manifest["data"])
    assert manifest["data"]["img_size"] == 8
    assert manifest["quantization"] is None
    assert manifest["exit_thresholds"] is None
    assert manifest["epoch"] == EPOCHS


def test_evaluation_used_the_average(run_dir):
    newest = list_checkpoints(run_dir)[0]
    model, average = load_weights_file(newest), load_weights_file(newest, "ema")
    assert model.keys() == average.keys()
    assert not torch.equal(model["head.weight"], average["head.weight"])
    assert "averaged weights (EMA, decay 0.5)" in (run_dir / "log.txt").read_text()


def test_without_a_terminal_there_is_a_line_an_epoch(tmp_path, train_tiny, capsys):
    assert train_tiny(tmp_path / "run") == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert "\r" not in shown.err
    assert "test   " in shown.out
    assert f"-m vitfast.evaluate checkpoint={tmp_path / 'run'}" in shown.out


@contextmanager
def build(tmp_path, *options: str) -> Iterator[Trainer]:
    config = load_config(["data.batch_size=256", "model.fields.depth=1", "schedule.epochs=6", *options])
    ranks = Ranks("cpu")
    data = TrainingData(config, ranks)
    length = TrainingLength.of(config.schedule, data.steps_per_epoch)
    task = ClassificationTask(create_training_model(config.model, data.train))
    state = TrainingState(task, config, length, 10, ranks)
    with closing(RunDirectory.create(tmp_path / "run", "digits")) as run:
        yield Trainer(config, state, length, data, run, ranks)


def test_not_finite_stops_before_the_update(tmp_path):
    with build(tmp_path, "seed=4", "optim.ema_decay=0.9") as trainer:
        with torch.no_grad():
            trainer.task.model.head.bias[3] = float("nan")
        before = {name: tensor.clone() for name, tensor in trainer.task.state_dict().items()}
        message = r"not finite at step 1, epoch 1: loss nan"
        with pytest.raises(NonFiniteError, match=message) as info, StopSignal() as stop:
            trainer.fit(stop)
    after = trainer.task.state_dict()
    assert all(torch.equal(after[name].nan_to_num(7), tensor.nan_to_num(7)) for name, tensor in before.items())
    assert not trainer.state.optimizer.state
    assert int(trainer.state.average.n_averaged) == 0
    assert info.value.indices == next(iter(EpochBatchSampler(1293, 256, seed=4, epoch=0, shuffle=True)))
    assert not list_checkpoints(trainer.run.path)


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    with build(tmp_path, "optim.clip_grad=1.0") as trainer:
        trainer.task.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
        before = trainer.task.model.pos_embed.clone()
        with pytest.raises(NonFiniteError, match=r"loss 2\.\d+, gradient norm (nan|inf)"), StopSignal() as stop:
            trainer.fit(stop)
    assert torch.equal(trainer.task.model.pos_embed, before)


def test_a_full_disk_does_not_end_the_run(tmp_path, train_tiny, monkeypatch, capsys):
    calls = []

    def save(*arguments, **options):
        calls.append(options["step"])
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr(trainer_module, "save_checkpoint", save)
    assert train_tiny(tmp_path / "run") == 0
    message = "the checkpoint of step 6 could not be saved: [Errno 28] No space left on device; training continues"
    message += f", and there is no earlier checkpoint in {tmp_path / 'run'} that a resume could use"
    assert message in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint_000012"]


def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(tmp_path, train_tiny, monkeypatch):
    def save(*arguments, **options):
        if options["step"] == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr(trainer_module, "save_checkpoint", save)
    with pytest.raises(UserError, match=r"step 12 could not be saved: .*No space.* are intact"):
        train_tiny(tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint_000006"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.img_size=9"], "img_size=9 is not a multiple of patch_size=2"),
        (["model.name=vit_nano_patch2"], "unknown model"),
        (["model.fields.num_heads=3"], "num_heads=3"),
        (["model.fields.num_classes=3"], "model.fields.num_classes cannot be set"),
        (["data.dataset=image_folder", "data.root=single"], "single class, sole: there is nothing to classify"),
        (["data.drop_last=true", "data.batch_size=2000"], "leaves no batch"),
        (["train.device=cuda"], "torch sees no CUDA GPU"),
    ],
)
def test_impossible_runs_are_refused_before_the_run_directory_is_created(
    tmp_path, train_tiny, monkeypatch, options, message
):
    if "train.device=cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "single/train/sole").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "single/train/sole/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(tmp_path):
    """Two colours as two classes: train and test, no val."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in (("blue", (20, 30, 200)), ("red", (200, 30, 20))):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                noise = torch.randint(0, 40, (16, 16, 3), generator=generator, dtype=torch.uint8)
                pixels = torch.tensor(colour, dtype=torch.uint8) + noise
                Image.fromarray(pixels.numpy()).save(tmp_path / "images" / split / name / f"{index}.png")
    return tmp_path / "images"


FOLDER = ["data.dataset=image_folder", "data.img_size=8", "data.batch_size=6", "schedule.epochs=6", "optim.lr=0.003"]


def test_a_folder_without_a_val_split(tmp_path, train_tiny, folder, capsys):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, *FOLDER, f"data.root={folder}") == 0
    assert {line["split"] for line in metrics_of(run_dir)} == {"train", "test"}
    assert metrics_of(run_dir)[-1]["top1"] == 1.0
    manifest = read_manifest(latest_checkpoint(run_dir))
    assert manifest["class_names"] == ["blue", "red"]
    assert manifest["metrics"]["best_step"] is None
    # the command to try names a real file of the data
    assert f"images={folder / 'test' / 'blue' / '0.png'}" in capsys.readouterr().out


def test_a_broken_image_names_its_file(tmp_path, train_tiny, folder):
    (folder / "train" / "red" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train/red/3.png"):
        train_tiny(tmp_path / "run", *FOLDER, f"data.root={folder}")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_passed_over_and_said_once(tmp_path, train_tiny, folder, capsys, workers):
    (folder / "train" / "red" / "3.png").write_bytes(b"no image")
    (folder / "test" / "blue" / "1.png").write_bytes(b"")
    run_dir, options = tmp_path / "run", [*FOLDER, f"data.root={folder}", "data.on_corrupt=skip"]
    assert train_tiny(run_dir, *options, f"data.workers={workers}") == 0
    for text in ((run_dir / "log.txt").read_text(), capsys.readouterr().err):
        assert text.count("train/red/3.png") == text.count("train/red/3.png cannot be decoded as an image") == 1
        assert "Another image replaces it (1 so far; training stops at more than 1)" in text
        assert text.count("test/blue/1.png cannot be decoded as an image: the file is empty") == 1
        assert "It is excluded: 7 of the split's 8 images are evaluated" in text
    assert metrics_of(run_dir)[-1]["top1"] == 1.0


def test_a_run_with_a_broken_image_goes_on_bit_by_bit(tmp_path, train_tiny, folder):
    (folder / "train" / "red" / "3.png").write_bytes(b"no image")
    options = [*FOLDER, f"data.root={folder}", "data.on_corrupt=skip", "data.augment.affine_degrees=10"]
    assert train_tiny(tmp_path / "whole", *options) == 0
    assert train_tiny(tmp_path / "cut", *options, stop_step=6) == 143
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}", "data.workers=2") == 0
    whole, cut = (load_weights_file(list_checkpoints(tmp_path / name)[0]) for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())


def test_a_run_that_a_broken_image_ended_can_pass_it_over(tmp_path, train_tiny, folder):
    run_dir, broken = tmp_path / "run", folder / "train" / "red" / "3.png"
    options = [*FOLDER, f"data.root={folder}"]
    assert train_tiny(run_dir, *options, stop_step=5) == 143
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png .* \(data.on_corrupt=skip skips such images\)"):
        train_tiny(run_dir, f"train.resume={run_dir}")
    assert train_tiny(run_dir, f"train.resume={run_dir}", "data.on_corrupt=skip") == 0


def test_too_many_broken_images_end_the_run(tmp_path, train_tiny, folder):
    for index in (2, 3):
        (folder / "train" / "red" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^2 of 24 training images cannot be read"):
        train_tiny(tmp_path / "run", *FOLDER, f"data.root={folder}", "data.on_corrupt=skip")


def test_not_finite_names_the_files(tmp_path, train_tiny, folder):
    with pytest.raises(NonFiniteError, match=r"of the train split \(.*train/(red|blue)/\d+\.png, "):
        train_tiny(tmp_path / "run", *FOLDER, f"data.root={folder}", "optim.lr=1e30", "schedule.warmup_epochs=0")


def test_a_folder_that_moved_goes_on(tmp_path, train_tiny, folder):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, *FOLDER, f"data.root={folder}", stop_step=3) == 143
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data.root=.*images does not exist"):
        train_tiny(run_dir, f"train.resume={run_dir}")
    assert train_tiny(run_dir, f"train.resume={run_dir}", f"data.root={tmp_path / 'moved'}") == 0


@pytest.mark.slow
def test_a_compiled_run_goes_on(tmp_path, train_tiny):
    options = ["train.compile=true", "data.drop_last=true"]
    assert train_tiny(tmp_path / "run", *options, stop_step=3) == 143
    assert train_tiny(tmp_path / "run", f"train.resume={tmp_path / 'run'}") == 0
    names = load_weights_file(list_checkpoints(tmp_path / "run")[0])
    assert "blocks.0.attn.qkv.weight" in names  # and not _orig_mod.blocks…


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, train_tiny):
    weights, losses = [], []
    for parts in (1, 3, 100):  # the last batch of the epoch has 13 images
        path = tmp_path / str(parts)
        options = ["optim.name=sgd", "optim.clip_grad=0.5", "optim.lr=0.1", "optim.label_smoothing=0"]
        options += ["schedule.epochs=1", "schedule.warmup_epochs=0"]
        assert train_tiny(path, *options, f"train.accumulate={parts}") == 0
        weights.append(load_weights_file(list_checkpoints(path)[-1], "model"))
        losses.append([line["loss"] for line in metrics_of(path)])
    for other_weights, other_losses in zip(weights[1:], losses[1:], strict=True):
        assert other_losses == pytest.approx(losses[0], rel=1e-5)
        torch.testing.assert_close(other_weights, weights[0], rtol=1e-4, atol=1e-5)
