"""The start of a run: from weights, with a zero head, or resumed."""

from __future__ import annotations

import json
import math
import resource

import pytest
import torch
import yaml
from PIL import Image

from support.checkpoints import rewrite_manifest
from support.run_content import content, differences
from support.tiny_run import TINY_RUN
from vitfast.errors import UserError
from vitfast.weights.checkpoint import latest_checkpoint, list_checkpoints, load_weights_file


def test_a_zero_head_predicts_all_classes_alike(tmp_path, train_tiny):
    assert train_tiny(tmp_path / "run", "model.zero_head=true", stop_step=0) == 143
    weights = load_weights_file(latest_checkpoint(tmp_path / "run"))
    assert not weights["head.weight"].any()
    assert not weights["head.bias"].any()
    assert weights["blocks.0.attn.qkv.weight"].any()
    assert train_tiny(tmp_path / "first", "model.zero_head=true", "schedule.steps=1", "schedule.warmup_epochs=0") == 0
    assert content(tmp_path / "first")["metrics"][0]["loss"] == pytest.approx(math.log(10), rel=1e-6)


def test_weights_of_another_run(tmp_path, train_tiny):
    assert train_tiny(tmp_path / "first") == 0
    first = latest_checkpoint(tmp_path / "first")
    assert train_tiny(tmp_path / "second", f"model.checkpoint={first}", stop_step=0) == 143
    begun = load_weights_file(latest_checkpoint(tmp_path / "second"))
    assert all(torch.equal(begun[key], tensor) for key, tensor in load_weights_file(first).items())


def test_weights_that_do_not_exist(tmp_path, train_tiny):
    with pytest.raises(UserError, match=r"checkpoint nowhere\.npz does not exist"):
        train_tiny(tmp_path / "run", "model.checkpoint=nowhere.npz")
    assert not (tmp_path / "run").exists()


def test_steps_instead_of_epochs(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    options = [
        "schedule.steps=8",
        "schedule.warmup_steps=2",
        "train.checkpoint_every_steps=3",
        "train.keep_checkpoints=9",
    ]
    assert train_tiny(run_dir, *options) == 0
    lines = content(run_dir)["metrics"]
    assert [(line["split"], line["epoch"], line["step"]) for line in lines] == [
        ("train", 1, 6),
        ("val", 1, 6),
        ("train", 2, 8),
        ("val", 2, 8),
        ("test", 2, 8),
    ]
    assert [path.name for path in list_checkpoints(run_dir)] == [
        "checkpoint_000008",
        "checkpoint_000006",
        "checkpoint_000003",
    ]
    assert train_tiny(tmp_path / "cut", *options, stop_step=7) == 143
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}") == 0
    assert differences(content(run_dir), content(tmp_path / "cut")) == []


def test_auto_begins_and_goes_on(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(tmp_path / "whole") == 0
    command = [*TINY_RUN, "train.resume=auto", f"run_dir={run_dir}"]
    assert train_tiny(run_dir, *command, stop_step=4) == 143
    assert train_tiny(run_dir, *command) == 0
    assert differences(content(tmp_path / "whole"), content(run_dir)) == []


def test_auto_begins_again_where_no_checkpoint_was_left(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    (run_dir / "checkpoint_000001").rename(tmp_path / "elsewhere")
    (run_dir / "metrics.jsonl").write_text('{"split": "train"}\n')
    assert train_tiny(run_dir, *TINY_RUN, "train.resume=auto", f"run_dir={run_dir}") == 0
    assert train_tiny(tmp_path / "whole") == 0
    assert differences(content(tmp_path / "whole"), content(run_dir)) == []


def test_auto_writes_into_no_folder_that_is_not_a_run(tmp_path, train_tiny):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(UserError, match="is not empty, and a run overwrites nothing"):
        train_tiny(tmp_path, *TINY_RUN, "train.resume=auto", f"run_dir={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_auto_needs_a_folder(train_tiny, tmp_path):
    with pytest.raises(UserError, match=r"train\.resume=auto needs run_dir=FOLDER"):
        train_tiny(tmp_path, "train.resume=auto")


@pytest.fixture
def folder(tmp_path):
    """Classes b and c with four pictures each."""
    root = tmp_path / "images"
    for name in ("b", "c"):
        for index in range(4):
            (root / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 30 * index).save(root / "train" / name / f"{index}.png")
    return root


FOLDER = ("data.dataset=image_folder", "data.in_chans=1", "data.batch_size=4", "data.drop_last=true")


def test_other_data_are_not_resumed(tmp_path, train_tiny, folder):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, *FOLDER, f"data.root={folder}", stop_step=1) == 143
    Image.new("L", (8, 8)).save(folder / "train" / "b" / "more.png")
    with pytest.raises(UserError, match=r"9 train instead of 8 train; .* or accept these with data.allow_changes=true"):
        train_tiny(run_dir, f"train.resume={run_dir}")
    (folder / "train" / "b").rename(folder / "train" / "d")
    with pytest.raises(UserError, match=r"other classes .* class 0 is c instead of b \(2 classes instead of 2\)"):
        train_tiny(run_dir, f"train.resume={run_dir}", "data.allow_changes=true")
    (folder / "train" / "d").rename(folder / "train" / "b")
    assert train_tiny(run_dir, f"train.resume={run_dir}", "data.allow_changes=true") == 0


def test_images_that_changed_places_are_noticed(tmp_path, train_tiny, folder):
    """Each class keeps its number of images, and each label its place in the order."""
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    assert train_tiny(run_dir, *FOLDER, f"data.root={folder}", stop_step=1) == 143
    folder.rename(moved)  # the folder as a whole may be elsewhere
    assert train_tiny(run_dir, f"train.resume={run_dir}", f"data.root={moved}", stop_step=2) == 143
    first, second = (sorted((moved / "train" / name).iterdir()) for name in ("b", "c"))
    first[0].rename(moved / "train" / "c" / "of_b.png")
    second[0].rename(moved / "train" / "b" / "of_c.png")
    resume = [f"train.resume={run_dir}", f"data.root={moved}"]
    with pytest.raises(UserError, match=r"as many images .* but with other names or in other classes; .*allow_changes"):
        train_tiny(run_dir, *resume)
    assert train_tiny(run_dir, *resume, "data.allow_changes=true") == 0


@pytest.mark.parametrize("changed", ["embed_dim: 30000000", "depth: 2000000"])
@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_resumed_model_is_compared_before_it_is_built(tmp_path, train_tiny, changed, with_manifest):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    name, value = changed.split(": ")
    config = run_dir / "config.yaml"
    options = yaml.safe_load(config.read_text())
    options["model"]["fields"][name] = int(value)
    config.write_text(yaml.safe_dump(options))
    (checkpoint,) = list_checkpoints(run_dir)
    model = json.loads((checkpoint / "manifest.json").read_text())["model"]
    if with_manifest:
        model["fields"][name] = int(value)
    rewrite_manifest(checkpoint, options={}, model=model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"{name}.*{value}"):
        train_tiny(run_dir, f"train.resume={run_dir}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_an_edited_config_is_not_resumed(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    assert train_tiny(run_dir, stop_step=1) == 143
    file = run_dir / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("seed: 0", "seed: 5").replace("batch_size: 256", "batch_size: 128"))
    message = (
        r"config\.yaml was changed since .*: seed=5 \(the checkpoint: 0\), data\.batch_size=128 \(the checkpoint: 256\)"
    )
    with pytest.raises(UserError, match=message):
        train_tiny(run_dir, f"train.resume={run_dir}")
    file.write_text(text)
    assert train_tiny(run_dir, f"train.resume={run_dir}") == 0


def test_the_machine_chooses_the_precision(tmp_path, train_tiny, monkeypatch):
    for is_fast, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("vitfast.training.training_run.has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        assert train_tiny(tmp_path / chosen, "train.precision=auto", stop_step=1) == 143
        assert f"precision: {chosen}\n" in (tmp_path / chosen / "config.yaml").read_text()
        assert "no fast bf16 instructions" not in (tmp_path / chosen / "log.txt").read_text()
    # on the machine without: the run keeps its precision, and says that it is slow
    resume = f"train.resume={tmp_path / 'bf16'}"
    assert train_tiny(tmp_path / "bf16", resume, "train.precision=auto", "train.accumulate=null", stop_step=2) == 143
    log = (tmp_path / "bf16" / "log.txt").read_text()
    assert log.count("this device has no fast bf16 instructions: fp32 is faster; train.precision=auto chooses") == 1


def test_the_command_to_evaluate_names_a_split_that_exists(tmp_path, train_tiny, folder, capsys):
    short = ("schedule.steps=1", "schedule.warmup_epochs=0")
    assert train_tiny(tmp_path / "run", *FOLDER, f"data.root={folder}", *short) == 0
    assert f"evaluate checkpoint={tmp_path / 'run'} split=train\n" in capsys.readouterr().out
    options = ["model.checkpoint=" + str(tmp_path / "run"), "data.val_share=0.25", "data.mean=[0.3]", "data.std=[0.4]"]
    assert train_tiny(tmp_path / "second", *FOLDER, f"data.root={folder}", *short, *options) == 0
    assert f"evaluate checkpoint={tmp_path / 'second'} split=val\n" in capsys.readouterr().out
    log = (tmp_path / "second" / "log.txt").read_text()
    assert f"weights   vit_nano_patch2_8: 20 tensors loaded from {tmp_path / 'run'}" in log
    assert "pixels    mean [0.3], std [0.4]; the weights were trained with mean [0.449], std [0.226]" in log
