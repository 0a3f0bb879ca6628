"""``python -m vitfast.visualize``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from support.bright_looker import save_bright_looker
from support.tiny_run import TINY_RUN
from vitfast.evaluation.plots import GAP, LABEL, PANEL, TITLE, attention_figure_size
from vitfast.evaluation.visualize import figure_names
from vitfast.train import main as train
from vitfast.visualize import main
from vitfast.weights.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert (
        train([*TINY_RUN, "model.fields.depth=3", "schedule.epochs=1", "schedule.warmup_epochs=0", f"run_dir={path}"])
        == 0
    )
    return path


@pytest.fixture(scope="module")
def looker(tmp_path_factory):
    return save_bright_looker(tmp_path_factory.mktemp("runs") / "looker", depth=2, num_heads=2)


@pytest.fixture
def photos(tmp_path):
    """Images with a bright corner; two have the same name."""
    for name in ("a.jpg", "a.png", "below/a.jpg", "b.bmp"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((60, 80, 3), 40, np.uint8)
        pixels[10:25, 50:65] = 230
        Image.fromarray(pixels).save(file)
    return tmp_path / "photos"


def test_a_trained_run_draws_every_image(run_dir, photos, tmp_path, capsys):
    target = tmp_path / "new" / "folder"
    capsys.readouterr()
    assert main([f"checkpoint={run_dir}", f"images={photos}", f"target={target}", "batch_size=3"]) == 0
    head, empty, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("vit_nano_patch2_8, plain weights of ")
    assert empty == ""
    names = ["a_rollout.png", "a-2_rollout.png", "b_rollout.png", "a-3_rollout.png"]
    for line, image, name in zip(lines, ("a.jpg", "a.png", "b.bmp", "below/a.jpg"), names, strict=True):
        path, prediction, picture = line.split("  ")
        assert (path, picture) == (str(photos / image), str(target / name))
        digit, probability = prediction.split()
        assert digit in "0123456789"
        assert probability.endswith("%")
    assert sorted(path.name for path in target.iterdir()) == sorted(names)
    for path in target.iterdir():
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", attention_figure_size(2))


@pytest.mark.parametrize(
    ("options", "name", "panels"),
    [
        ([], "b_rollout.png", 2),
        (["layer=2"], "b_layer2.png", 2),
        (["layer=0", "head=1"], "b_layer0_head1.png", 2),
        (["layer=all"], "b_all.png", 5),
        (["layer=all", "head=0"], "b_all_head0.png", 4),  # no rollout of a single head
        (["layer=all", "precision=bf16", "device=cpu"], "b_all.png", 5),
    ],
)
def test_random_numbers(run_dir, photos, tmp_path, options, name, panels):
    target = tmp_path / "out"
    assert main([f"checkpoint={run_dir}", f"images={photos / 'b.bmp'}", f"target={target}", *options]) == 0
    assert [path.name for path in target.iterdir()] == [name]
    with Image.open(target / name) as picture:
        assert picture.size == attention_figure_size(panels)


def test_a_hybrid(photos, tmp_path):
    """Patches are positions of a ResNet's feature map, in the layout of the image."""
    hybrid = [
        "model.name=R50-ViT-B_16",
        "model.fields.resnet_layers=[1]",
        "model.fields.resnet_width=32",
    ]
    run = tmp_path / "run"
    assert train([*TINY_RUN, *hybrid, "schedule.epochs=1", "schedule.warmup_epochs=0", f"run_dir={run}"]) == 0
    assert main([f"checkpoint={run}", f"images={photos / 'b.bmp'}", f"target={tmp_path / 'out'}"]) == 0
    with Image.open(tmp_path / "out" / "b_rollout.png") as picture:
        assert picture.size == attention_figure_size(2)


@pytest.mark.parametrize("options", [[], ["layer=1"], ["layer=0", "head=1"]])
def test_map_is_aligned_with_the_attended_patches(looker, photos, tmp_path, options, capsys):
    """The model attends to bright pixels, here in the upper right of the image."""
    assert main([f"checkpoint={looker}", f"images={photos / 'a.png'}", f"target={tmp_path / 'out'}", *options]) == 0
    assert "a.png  bright 95.3%  " in capsys.readouterr().out
    (path,) = (tmp_path / "out").iterdir()
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int).sum(2)
    top, left = TITLE + LABEL, GAP
    image = pixels[top : top + PANEL, left : left + PANEL]
    mapped = pixels[top : top + PANEL, left + PANEL + GAP : left + PANEL + GAP + PANEL]
    # resized to 36 and cut to 32: the square is in rows 4..13 and columns 22..31 of 32
    inside = np.zeros((PANEL, PANEL), bool)
    inside[int(5 / 32 * PANEL) : int(12 / 32 * PANEL), int(23 / 32 * PANEL) : int(30 / 32 * PANEL)] = True
    outside = np.zeros((PANEL, PANEL), bool)
    outside[PANEL // 2 + 20 :], outside[:, : PANEL // 2] = True, True
    assert image[inside].min() > 600
    assert image[outside].max() < 200
    assert mapped[inside].min() > mapped[outside].max() + 100


def test_image_is_shown_as_the_model_receives_it(looker, tmp_path):
    """Undoing the normalization restores the colours."""
    Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / "a.png")
    assert main([f"checkpoint={looker}", f"images={tmp_path / 'a.png'}", f"target={tmp_path / 'out'}"]) == 0
    picture = np.asarray(Image.open(tmp_path / "out" / "a_rollout.png").convert("RGB")).astype(int)
    panel = picture[TITLE + LABEL : TITLE + LABEL + PANEL, GAP : GAP + PANEL]
    assert np.abs(panel - (200, 100, 50)).max() <= 1


def _save(model: vitfast.models.ImageModel, run_dir: Path) -> Path:
    run_dir.mkdir()
    data = {"img_size": model.img_size, "in_chans": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    data |= {"interpolation": "bicubic", "crop_pct": 1.0}
    manifest = {
        "model": {"name": model.model_name, "fields": model.model_fields},
        "class_names": ["x", "y"],
        "data": data,
    }
    return save_checkpoint(run_dir, step=1, model=model.state_dict(), manifest=manifest)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("convit_tiny", {"depth": 3, "local_up_to_layer": 2}),
        ("convit_tiny", {"depth": 2, "local_up_to_layer": 1, "pooling": "mean"}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}),
        ("t2t_vit_7", {"depth": 2}),
        ("dvt_deit_small", {"depth": 2}),
    ],
)
def test_other_families(tmp_path, photos, name, fields):
    checkpoint = _save(vitfast.create_model(name, num_classes=2, img_size=64, **fields), tmp_path / "run")
    options = [f"checkpoint={checkpoint}", f"images={photos / 'b.bmp'}", f"target={tmp_path / 'out'}"]
    assert main([*options, "layer=all"]) == 0
    with Image.open(tmp_path / "out" / "b_all.png") as picture:
        assert picture.size == attention_figure_size(2 + fields["depth"])


def test_again_replaces_and_says_so(looker, photos, tmp_path, capsys):
    options = [f"checkpoint={looker}", f"images={photos / 'b.bmp'}", f"target={tmp_path / 'out'}"]
    assert main(options) == 0
    assert "(replaced)" not in capsys.readouterr().out
    first = (tmp_path / "out" / "b_rollout.png").read_bytes()
    assert main(options) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("b_rollout.png (replaced)")
    assert (tmp_path / "out" / "b_rollout.png").read_bytes() == first


def test_figures_never_overwrite_images(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "A.jpg", "a_rollout.png", "a-2.png", "x/a-2.png")]
    names = figure_names(paths, tmp_path, "rollout")
    assert [names[path].name for path in paths] == [
        "a-2_rollout.png",
        "A-3_rollout.png",
        "a_rollout_rollout.png",
        "a-2-2_rollout.png",
        "a-2-3_rollout.png",
    ]


def test_a_bad_image_is_named_and_the_others_are_drawn(looker, photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"no image")
    assert main([f"checkpoint={looker}", f"images={photos}", f"target={tmp_path / 'out'}"]) == 1
    shown = capsys.readouterr()
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert "skipped: " in shown.err
    assert "broken.jpg" in shown.err
    assert shown.err.splitlines()[-1] == "1 of 5 images could not be read"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["images=PHOTOS"], "checkpoint=… is missing"),
        (["checkpoint=LOOKER"], "images=… is missing"),
        (["checkpoint=LOOKER", "images=nowhere.png"], "images=nowhere.png does not exist"),
        (["checkpoint=PHOTOS", "images=PHOTOS"], "contains no checkpoint_NNNNNN folder"),
        (["checkpoint=LOOKER", "images=PHOTOS", "layer=2"], "layer=2 does not exist; this model's numbers are 0 to 1"),
        (["checkpoint=LOOKER", "images=PHOTOS", "layer=-1"], "or use rollout or all"),
        (["checkpoint=LOOKER", "images=PHOTOS", "layer=last"], "layer=last does not exist"),
        (
            ["checkpoint=LOOKER", "images=PHOTOS", "layer=0", "head=2"],
            "head=2 does not exist; this model's numbers are",
        ),
        (["checkpoint=LOOKER", "images=PHOTOS", "layer=0", "head=max"], "0 to 1, or use mean"),
        (["checkpoint=LOOKER", "images=PHOTOS", "head=0"], "head=0 cannot be combined with layer=rollout"),
        (["checkpoint=LOOKER", "images=PHOTOS", "target=FILE/x"], "cannot be written: Not a directory; check target="),
        (["checkpoint=RESNET", "images=PHOTOS"], "torchvision/resnet18 has no attention layer whose map can be read"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(looker, photos, tmp_path, capsys, options, message):
    paths = {"LOOKER": looker, "PHOTOS": photos, "FILE": photos / "b.bmp", "OUT": tmp_path / "out"}
    if "checkpoint=RESNET" in options:
        paths["RESNET"] = _save(vitfast.create_model("torchvision/resnet18", num_classes=2), tmp_path / "resnet")
    text = " ".join(["target=OUT", *options] if "target=FILE/x" not in options else options)
    for word, path in paths.items():
        text = text.replace(f"={word}", f"={path}")
    assert main(text.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_gradients_are_kept(looker, photos, tmp_path, monkeypatch):
    from vitfast.evaluation import visualize

    seen = []
    monkeypatch.setattr(visualize, "attention_rollout", lambda maps: seen.extend(maps) or torch.ones(4, 17, 17) / 17)
    assert main([f"checkpoint={looker}", f"images={photos}", f"target={tmp_path}"]) == 0
    assert [(tuple(one.shape), one.requires_grad) for one in seen] == [((4, 1, 17, 17), False)] * 2
