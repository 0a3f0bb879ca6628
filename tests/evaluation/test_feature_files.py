"""Features on disk: reused, and never those of another model or data set."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

import vitfast
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.evaluation.checkpoint_data import dataset_of_split
from vitfast.evaluation.feature_files import features_of_split
from vitfast.runs.trained_model import TrainedModel


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number, name in enumerate(("cat", "dog")):
        (folder / "test" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), 40 * index + number).save(folder / "test" / name / f"{index}.png")
    return folder


class Probe:
    """A small model whose forward passes are counted."""

    def __init__(self, folder) -> None:
        fields = {"embed_dim": 16, "num_heads": 2, "depth": 4, "img_size": 8, "in_chans": 1, "num_classes": 7}
        model = vitfast.create_model("vit_nano_patch2_8", **fields).eval()
        data = {"img_size": 8, "in_chans": 1, "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0}
        names = [str(label) for label in range(7)]
        manifest = {"model": {"name": model.model_name}, "class_names": names, "data": data}
        self.trained = TrainedModel(model, folder, manifest, "model")
        self.folder = folder / "features"
        self.passes = 0
        model.register_forward_hook(lambda *_: setattr(self, "passes", self.passes + 1))

    def features(self, root, *layers: str, precision: str = "fp32", **options):
        """Returns the features of a layer, and how many images were computed for it."""
        options = {"dataset": "image_folder", "root": str(root), "batch_size": 2, "workers": 0, **options}
        data, before = EvaluateDataOptions(**options), self.passes
        dataset = dataset_of_split(self.trained, data, "test", any_classes=True)
        layers = layers or ("lastCLS",)
        found = features_of_split(self.trained, data, dataset, "test", list(layers), self.folder, precision=precision)
        return found[layers[-1]], self.passes - before


@pytest.fixture
def probe(tmp_path):
    return Probe(tmp_path)


def test_they_are_computed_once(probe, images):
    first, passes = probe.features(images)
    assert passes == 3
    again, passes = probe.features(images)
    assert passes == 0
    for name in ("features", "targets", "image_ids"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert first.image_ids.tolist() == list(range(6))
    assert probe.features(images, "lastCLS", "concatCLS4")[1] == 3
    assert probe.features(images, "lastCLS", "concatCLS4")[1] == 0
    assert not list(probe.folder.glob(".*")), "temporary files are left"


def test_a_change_of_weights_images_or_options_is_noticed(probe, images):
    before, _ = probe.features(images)
    probe.trained.model.blocks[0].attn.qkv.weight.data[0, 0] += 1
    after, passes = probe.features(images)
    assert passes == 3
    assert not torch.equal(before.features, after.features)
    assert probe.features(images, precision="bf16")[1] == 3
    assert probe.features(images, on_corrupt="skip")[1] == 3
    probe.trained.manifest["data"]["mean"] = [0.4]
    assert probe.features(images)[1] == 3
    changed = images / "test" / "dog" / "1.png"
    Image.new("L", (8, 8), 255).save(changed)
    os.utime(changed, ns=(1, 1))
    assert probe.features(images)[1] == 3
    (images / "test" / "dog" / "0.png").rename(images / "test" / "cat" / "9.png")  # other labels
    assert probe.features(images)[1] == 3
    assert probe.features(images)[1] == 0


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "foreign"])
def test_a_damaged_file_is_replaced_aloud(probe, images, damage):
    expected, _ = probe.features(images)
    (file,) = probe.folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "foreign":  # of another model, under this name
        token = probe.trained.model.cls_token
        stored = token.detach().clone()
        token.data += 1
        probe.features(images)
        (other,) = set(probe.folder.iterdir()) - {file}
        content = bytearray(other.read_bytes())
        token.data = stored
    content = {"truncated": content[:-1], "empty": bytearray()}.get(damage, content)
    if damage == "bit":
        content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged or was changed; the features are computed again"):
        found, passes = probe.features(images)
    assert passes == 3
    assert torch.allclose(found.features, expected.features, atol=1e-6)
    assert probe.features(images)[1] == 0


def test_unreadable_images_are_left_out(probe, images):
    (images / "test" / "cat" / "1.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="It is excluded"):
        found, _ = probe.features(images, on_corrupt="skip")
    assert found.image_ids.tolist() == [0, 2, 3, 4, 5]
    assert found.targets.tolist() == [0, 0, 1, 1, 1]
