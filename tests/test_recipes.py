"""Every recipe trains two steps on generated images; and the whole RESISC45 workflow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from support.foreign_weights import SIZES, google_arrays
from support.slow import slow
from vitfast import evaluate, predict, prepare, quantize, train
from vitfast.config import list_recipes, load_config
from vitfast.weights.checkpoint import latest_checkpoint, load_state, load_weights_file, read_manifest

# one for each kind of model, data and loss
QUICK = (
    "finetune",
    "vit_digits",
    "deit_tiny_resisc45",
    "dvt_mini_cifar10_32px",
    "convit_small_imagenet",
    "swav_small_cifar10_32px",
)
CLASSES = ("airplane", "beach", "sea_ice")
# what makes any of them small; the learning rate is not scaled down to a batch of four
SMALL = (
    "schedule.steps=2",
    "schedule.warmup_steps=0",
    "schedule.min_lr=0",
    "optim.lr_batch=null",
    "data.batch_size=4",
    "data.workers=0",
    "train.threads=1",
)


def draw(path: Path, label: int, index: int) -> None:
    """A picture whose colour tells its class."""
    random = np.random.default_rng([label, index])
    pixels = random.integers(0, 100, (24, 20, 3))
    pixels[..., label] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/{train,val,test}/CLASS/*."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                draw(root / split / name / f"{index}.png", label, index)
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RESISC45 in small, as ``vitfast.prepare`` leaves it: 7 / 1 / 2 pictures of each class."""
    source, target = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("resisc45")
    for label, name in enumerate(CLASSES):
        for index in range(10):
            draw(source / name / f"{name}_{index + 1:03d}.jpg", label, index)
    assert prepare.main(["dataset=resisc45", f"source={source}", f"target={target}"]) == 0
    return target


def data_options(recipe: str, folder: Path, prepared: Path) -> list[str]:
    needs = [] if recipe == "vit_digits" else [f"recipe={recipe}", "data.root=any", "model.checkpoint=any"]
    dataset = load_config(needs).data.dataset
    if dataset == "digits":
        return []
    if dataset == "file_list":
        return [f"data.root={prepared}"]
    return ["data.dataset=image_folder", f"data.root={folder}"]


def model_options(recipe: str) -> list[str]:
    """Small images, few narrow blocks, and random weights instead of published ones."""
    if recipe == "finetune":  # of random weights
        return ["model.name=vit_mini_patch4_32", "model.checkpoint=null", "data.img_size=32"]
    config = load_config([f"recipe={recipe}", "data.root=any"] if recipe != "vit_digits" else [])
    options = ["model.checkpoint=null"]
    if config.data.img_size == 224:
        options.append(f"data.img_size={64 if 'patch32' in recipe or 'resnet' in recipe else 32}")
    if config.task == "swav":
        options.append(f"data.augment.size_crops={[32, 16][: len(config.data.augment.size_crops)]}".replace(" ", ""))
        options.append("swav.knn_every_epochs=1")
    if not config.model.name.startswith(("torchvision/", "timm/")):
        options += ["model.fields.depth=2", "model.fields.embed_dim=64", "model.fields.num_heads=4"]
    if config.model.name.startswith("convit"):
        options.append("model.fields.local_up_to_layer=1")
    return options


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, folder: Path, prepared: Path) -> dict[str, Path]:
    """A small teacher for each way in which the data lie."""
    runs = {}
    for dataset, root in (("image_folder", folder), ("file_list", prepared)):
        run = runs[dataset] = tmp_path_factory.mktemp("teachers") / dataset
        options = ["model.name=torchvision/resnet18", "model.checkpoint=null", "data.img_size=32", f"run_dir={run}"]
        data = [f"data.dataset={dataset}", f"data.root={root}"]
        assert train.main(["recipe=resnet50_teacher_resisc45", *SMALL, *options, *data]) == 0
    return runs


@pytest.mark.parametrize("recipe", [*QUICK, *slow(sorted({*list_recipes()} - {*QUICK}))])
def test_two_steps(recipe: str, tmp_path: Path, folder: Path, prepared: Path, request: pytest.FixtureRequest) -> None:
    run_dir = tmp_path / "run"
    options = [f"recipe={recipe}", *SMALL, *data_options(recipe, folder, prepared), *model_options(recipe)]
    config = load_config(options)
    if config.distill.teacher is not None:
        teacher = request.getfixturevalue("teachers")[config.data.dataset]
        options += [f"distill.teacher={teacher}", "distill.teacher_name=null"]
    assert train.main([*options, f"run_dir={run_dir}"]) == 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "val", "test"]
    assert all(line["step"] == 2 and np.isfinite(line.get("loss", 0)) for line in lines)
    assert all(("knn" in line) == (config.task == "swav" and line["split"] != "train") for line in lines)
    exits = 2 if "dvt_mini" in recipe else 3 if "dvt" in recipe else 0
    assert all(len(line.get("exits", [])) == exits for line in lines)
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    assert load_state(checkpoint)["step"] == 2


def test_fine_tuning_from_googles_file_at_another_size(tmp_path: Path, folder: Path) -> None:
    """As ViT-pytorch: other classes, a zero head, positions resized; begun with the weights of the file."""
    heads, run_dir = SIZES["heads"], tmp_path / "run"
    sizes = {"depth": 1, "embed_dim": 48, "num_heads": heads}
    source = vitfast.create_model("vit_base_patch32_224", img_size=64, num_classes=7, **sizes)
    np.savez(tmp_path / "ViT-B_32.npz", **google_arrays(source, "released"))
    options = [*SMALL, "data.dataset=image_folder", f"data.root={folder}", "data.img_size=128", "optim.lr=1e-9"]
    options += [f"model.fields.{name}={value}" for name, value in sizes.items()]
    options += [f"model.checkpoint={tmp_path / 'ViT-B_32.npz'}", f"run_dir={run_dir}"]
    assert train.main(["recipe=vit_base_patch32_cifar10", *options]) == 0
    fields = read_manifest(latest_checkpoint(run_dir))["model"]["fields"]
    assert (fields["gelu"], fields["img_size"], fields["num_classes"]) == ("tanh", 128, 3)
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    weights = load_weights_file(checkpoint)
    torch.testing.assert_close(weights["blocks.0.mlp.fc1.weight"], source.blocks[0].mlp.fc1.weight.detach())
    assert weights["pos_embed"].shape == (1, 17, 48)
    assert float(weights["head.weight"].abs().max()) < 1e-6


@pytest.mark.slow
def test_resisc45_from_the_archive_to_the_answer(
    tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepare, teacher, distilled DeiT, evaluate, predict: the commands of the recipes' headers, in small."""
    small = ["schedule.steps=null", "schedule.epochs=6", "schedule.min_lr=0", "optim.lr_batch=null", "data.img_size=32"]
    small += ["data.batch_size=7", "data.workers=0", "train.threads=1", f"data.root={prepared}"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    options = ["model.name=torchvision/resnet18", "model.checkpoint=null", "optim.lr=0.02", f"run_dir={teacher}"]
    assert train.main(["recipe=resnet50_teacher_resisc45", *small, *options]) == 0

    options = ["model.fields.depth=1", "model.drop_rate=0", "schedule.warmup_epochs=1", "schedule.epochs=20"]
    options += ["optim.lr=2e-3", f"distill.teacher={teacher}", f"run_dir={student}"]
    assert train.main(["recipe=deit_tiny_resisc45", *small, *options]) == 0
    fields = read_manifest(latest_checkpoint(student))["model"]["fields"]
    assert (fields["distillation_token"], fields["num_classes"], fields["qkv_bias"]) == ("last", 3, False)
    # the distillation token and its head come back with a resume, which myrtle-vision loses
    assert {"dist_token", "head_dist.weight"} <= _keys(student)

    capsys.readouterr()
    assert evaluate.main([f"checkpoint={student}", "split=test", "output=json", "data.workers=0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 6
    assert report["top1"] >= 5 / 6  # the colour tells the class; a guess is right for a third
    assert [row["class"] for row in report["per_class"]] == list(CLASSES)

    picture = prepared / "images" / "beach" / "beach_001.jpg"
    assert predict.main([f"checkpoint={student}", f"images={picture}", "output=jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][0] == "beach"

    # after training in half precision: the report per class, and a checkpoint of half the size that answers alike
    small_folder = tmp_path / "fp16_32"
    options = ["format=FP16_32", f"output={small_folder}", "per_class=true", "data.workers=0"]
    assert quantize.main([f"checkpoint={student}", *options]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^sea_ice +2 +\d+\.\d\d % ", shown, re.MULTILINE)
    figures = json.loads((small_folder / "quantization.json").read_text())
    assert figures["bytes"][1] < 0.6 * figures["bytes"][0]
    assert figures["quantized"]["top1"] == figures["float32"]["top1"] == report["top1"]
    assert evaluate.main([f"checkpoint={small_folder}", "output=json", "data.workers=0"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == report["top1"]
    assert predict.main([f"checkpoint={small_folder}", f"images={picture}", "output=jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"][0] == "beach"

    # training on in FP16_16, and its conversion
    aware = tmp_path / "aware"
    options = [f"model.checkpoint={student}", f"distill.teacher={teacher}", f"run_dir={aware}", "model.fields.depth=1"]
    options += ["schedule.epochs=2", "schedule.warmup_epochs=0", "quantize.format=FP16_16", "optim.lr=1e-4"]
    assert train.main(["recipe=deit_tiny_resisc45_fp16_32", *small, *options]) == 0
    capsys.readouterr()
    assert quantize.main([f"checkpoint={aware}", f"output={tmp_path / 'converted'}", "data.workers=0"]) == 0
    assert "FP16_16, converted" in capsys.readouterr().out


def _keys(run_dir: Path) -> set[str]:
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    return set(load_weights_file(checkpoint))


def test_a_teacher_of_other_classes_is_refused(tmp_path, teachers, folder, capsys):
    (tmp_path / "other" / "train").mkdir(parents=True)
    for label, name in enumerate(("cat", "dog")):
        draw(tmp_path / "other" / "train" / name / "0.png", label, 0)
    options = [
        "data.dataset=image_folder",
        f"data.root={tmp_path / 'other'}",
        *SMALL,
        "data.img_size=32",
        "data.drop_last=false",
    ]
    options += [
        "recipe=deit_tiny_resisc45",
        f"distill.teacher={teachers['image_folder']}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert train.main(options) == 2
    assert (
        "was trained on other classes than those of the data (3: airplane, beach, sea_ice, …)"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_distillation_token_is_refused(tmp_path, teachers, folder, capsys):
    options = ["recipe=vit_tiny_resisc45", "data.dataset=image_folder", f"data.root={folder}", *SMALL]
    assert train.main([*options, f"distill.teacher={teachers['image_folder']}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "model.name=vit_tiny_patch16_224 has no distillation token" in capsys.readouterr().err
