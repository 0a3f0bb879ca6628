"""Training without labels: metrics, resume, several ranks, and what is done with the result."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support.checkpoints import rewrite_manifest
from support.interruption import Interruption
from support.run_content import content, differences
from support.slow import slow
from support.tiny_run import TINY_RUN
from vitfast import evaluate, train
from vitfast.config import load_config
from vitfast.errors import UserError
from vitfast.weights.checkpoint import latest_checkpoint, list_checkpoints, load_state

PROTOTYPES = 7
SWAV = (
    "task=swav",
    "data.augment.num_crops=[2,1]",
    "data.augment.size_crops=[8,4]",
    "data.augment.crop_scales=[0.3,1,0.1,0.3]",
    "data.drop_last=true",
    "swav.projection=[16,8]",
    f"swav.prototypes=[{PROTOTYPES}]",
    "swav.freeze_prototypes_steps=2",
    "swav.queue_length=512",
    "swav.queue_start_step=1",
    "train.threads=1",
)
STEPS_PER_EPOCH = 5


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, train_tiny):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train_tiny(run_dir, *SWAV, "model.drop_rate=0.1", "optim.ema_decay=0.9") == 0
    return run_dir


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def head(run_dir, step=None):
    checkpoint = latest_checkpoint(run_dir) if step is None else run_dir / f"checkpoint_{step:06d}"
    return load_state(checkpoint)["task"]


def test_crops_are_mixed(whole_run, tmp_path, train_tiny):
    """The same run, but for MixUp and CutMix of the crops."""
    mixing = ("data.augment.mixup=1", "data.augment.cutmix=1", "schedule.epochs=1", "schedule.warmup_epochs=0")
    assert train_tiny(tmp_path / "mixed", *SWAV, *mixing) == 0
    loss = rows(tmp_path / "mixed")[0]["loss"]
    assert math.isfinite(loss)
    assert loss != rows(whole_run)[0]["loss"]


def test_the_metrics(whole_run):
    found = rows(whole_run)
    assert [row["split"] for row in found] == ["train", "val", "train", "val", "test"]
    assert all("top1" not in row for row in found)
    first, last = (row["loss"] for row in found if row["split"] == "train")
    assert last < first
    accuracies = [row["knn"] for row in found if row["split"] != "train"]
    assert all(one.keys() == {"k20", "k200"} for one in accuracies)
    best = max(one["k20"] for one in accuracies[:2])
    manifest = json.loads((latest_checkpoint(whole_run) / "manifest.json").read_text())
    assert manifest["metrics"]["best_val_top1"] == best
    assert manifest["model"]["fields"]["num_classes"] == 0
    width, height = Image.open(whole_run / "prototypes.png").size
    assert width > 500
    assert height > 400  # a row for each of the seven prototypes


def test_knn_in_training_is_that_of_evaluate(whole_run, capsys):
    checkpoint = latest_checkpoint(whole_run)
    capsys.readouterr()
    assert evaluate.main([f"checkpoint={checkpoint}", "probe=knn", "output=json"]) == 0
    assert json.loads(capsys.readouterr().out)["knn"] == rows(whole_run)[-1]["knn"]


@pytest.mark.slow
def test_the_loss_leaves_that_of_uniform_predictions(tmp_path, train_tiny):
    options = ["schedule.epochs=5", "optim.lr=0.003", "data.batch_size=64", "swav.queue_length=0"]
    scales = "data.augment.crop_scales=[0.5,1,0.2,0.5]"
    assert train_tiny(tmp_path / "run", *SWAV, *options, scales, "swav.knn_every_epochs=5") == 0
    found = rows(tmp_path / "run")
    assert [row["split"] for row in found] == ["train"] * 5 + ["val", "test"]
    assert found[4]["loss"] < math.log(PROTOTYPES) - 0.2


@pytest.mark.parametrize("stop_step", [STEPS_PER_EPOCH, *slow([1, 2, STEPS_PER_EPOCH + 2])])
def test_interrupted_after_any_step(tmp_path, train_tiny, whole_run, stop_step):
    """Before and after the prototypes are trained, and the queue is filled and used."""
    run_dir = tmp_path / "interrupted"
    options = (*SWAV, "model.drop_rate=0.1", "optim.ema_decay=0.9")
    assert train_tiny(run_dir, *options, stop_step=stop_step) == 143
    torch.manual_seed(99)
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0
    assert differences(content(whole_run), content(run_dir)) == []


@pytest.mark.slow
def test_two_ranks_resume_exactly(tmp_path, training_server):
    options = [*TINY_RUN, *SWAV]

    def start(name, *more, interruptions=(), codes=(0, 0)):
        arguments = [f"train.resume={tmp_path / name}"] if more else [*options, f"run_dir={tmp_path / name}"]
        output = tmp_path / f"{name}{len(more)}.output"
        runs = training_server.start_ranks(output, arguments, *interruptions, world=2)
        assert [run.wait() for run in runs] == list(codes), "".join(run.output.read_text() for run in runs)

    start("whole")
    start("cut", interruptions=[(), (Interruption("step", 3),)], codes=(143, 143))
    start("cut", "resume")
    assert differences(content(tmp_path / "whole"), content(tmp_path / "cut")) == []


@pytest.mark.parametrize("head", [*slow([["swav.projection=[8]"]]), ["swav.projection=[16,8]", "train.sync_bn=0"]])
def test_the_gradient_of_two_ranks_is_that_of_one_process(tmp_path, train_tiny, training_server, head):
    """A projection of one layer has no BatchNorm, whose statistics would be those of each rank without sync_bn."""
    options = [*SWAV, *head, "swav.freeze_prototypes_steps=0", "schedule.steps=1"]
    options += ["schedule.warmup_epochs=0", "optim.name=sgd", "optim.weight_decay=0", "swav.queue_length=0"]
    assert train_tiny(tmp_path / "one", *options) == 0
    arguments = [*TINY_RUN, *options, f"run_dir={tmp_path / 'two'}"]
    runs = training_server.start_ranks(tmp_path / "output", arguments, world=2)
    assert [run.wait() for run in runs] == [0, 0], "".join(run.output.read_text() for run in runs)
    one, two = (load_state(latest_checkpoint(tmp_path / name))["optimizer"]["state"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    # joined, because that of a bias before a BatchNorm is 0 but for rounding
    one, two = (torch.cat([state[index]["momentum_buffer"].flatten() for index in one]) for state in (one, two))
    assert (one - two).norm() < 1e-3 * one.norm()  # Sinkhorn multiplies rounding errors by 1 / epsilon


def test_prototypes_are_frozen_at_first(tmp_path, train_tiny):
    options = [*SWAV, "train.checkpoint_every_steps=1", "train.keep_checkpoints=9", "schedule.steps=4"]
    assert train_tiny(tmp_path / "run", *options) == 0
    assert len(list_checkpoints(tmp_path / "run")) == 4
    first, *later = (head(tmp_path / "run", step)["prototypes0.weight"] for step in (1, 2, 3, 4))
    assert torch.equal(first, later[0])
    assert not torch.equal(first, later[1])
    torch.testing.assert_close(first.norm(dim=1), torch.ones(PROTOTYPES))


def test_a_nan_stops_before_the_update_and_leaves_the_scores(tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = ["optim.lr=1e30", "schedule.warmup_epochs=0", "swav.freeze_prototypes_steps=0"]
    assert train.main([*TINY_RUN, *SWAV, *options, f"run_dir={run_dir}"]) == 2
    assert "Training stopped before the update" in capsys.readouterr().err
    scores = load_file(run_dir / "non_finite_rank0.safetensors")["scores0"]
    assert scores.shape == (3 * 256, PROTOTYPES)
    assert not scores.isfinite().all()


def test_a_run_is_the_start_of_a_classifier_and_is_none(tmp_path, whole_run, train_tiny, capsys):
    assert evaluate.main([f"checkpoint={whole_run}"]) == 2
    assert "has features but no classes, since it was trained without labels" in capsys.readouterr().err
    options = [f"model.checkpoint={whole_run}", "model.name=null", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    assert train_tiny(tmp_path / "fine", *options) == 0
    assert rows(tmp_path / "fine")[-1]["top1"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["task"].pop("prototypes0.weight"), '"task" must be named'),
        (
            lambda state: state["task"].update({"prototypes0.weight": torch.ones(3, 8)}),
            '"task.prototypes0.weight" must',
        ),
        (lambda state: state["ranks"][0]["task"]["queue"].fill_(math.nan), '"ranks.0.task.queue" must be finite'),
        (lambda state: state["metric_rows"][1].update(knn={"k20": "x"}), '"metric_rows" must be'),
    ],
)
def test_a_crafted_state_is_refused(tmp_path, whole_run, train_tiny, change, message):
    run_dir = tmp_path / "changed"
    shutil.copytree(whole_run, run_dir)
    checkpoint = latest_checkpoint(run_dir)
    state = load_state(checkpoint)
    change(state)
    torch.save(state, checkpoint / "state.pt")
    rewrite_manifest(checkpoint)
    with pytest.raises(UserError, match=re.escape(message)):
        train_tiny(run_dir, f"train.resume={run_dir}", "schedule.epochs=3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=swav"], "task=swav compares crops of an image: give at least two"),
        ([*SWAV, "task=classification"], "data.augment.num_crops needs task=swav"),
        ([*SWAV, "data.drop_last=false"], "task=swav needs data.drop_last=true"),
        ([*SWAV, "swav.assign_crops=[0,3]"], "swav.assign_crops has 3, but there are only 3 crops"),
        ([*SWAV, "train.accumulate=2"], "task=swav does not support train.accumulate"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["swav.queue_length=100"], "swav.queue_length=100 is below data.batch_size=256"),
        (["model.name=dvt_nano_16", "data.img_size=16"], "unlike model.name=dvt_nano_16"),
    ],
)
def test_models_and_queues_that_do_not_fit(tmp_path, train_tiny, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train_tiny(tmp_path / "run", *SWAV, *options)
