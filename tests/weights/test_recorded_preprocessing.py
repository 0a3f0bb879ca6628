"""Models take the preprocessing that files beside their weights record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import vitfast
from vitfast.errors import UserError
from vitfast.models.preprocessing_settings import preprocessing_settings
from vitfast.weights.recorded_preprocessing import recorded_preprocessing

NAME = "vit_nano_patch2_8"
MEAN, STD = [0.1, 0.2, 0.3], [0.6, 0.7, 0.8]
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "image_mean": MEAN, "image_std": STD, "resample": 2}
TIMM = {"input_size": [1, 8, 8], "mean": [0.1], "std": [0.6], "interpolation": "bilinear", "crop_pct": 0.5}


def write(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("changes", "size", "crop_pct", "crop_mode"),
    [
        ({"size": 8}, 8, 1.0, "squash"),
        ({"size": {"height": 8, "width": 8}}, 8, 1.0, "squash"),
        ({"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 8}, 8, 0.5, "center"),
        ({"image_processor_type": "CLIPImageProcessor", "size": 16, "crop_size": 8}, 8, 0.5, "center"),
    ],
)
def test_image_processor(tmp_path: Path, changes: dict[str, Any], size: int, crop_pct: float, crop_mode: str) -> None:
    found = recorded_preprocessing(write(tmp_path, "preprocessor_config.json", {**PROCESSOR, **changes}))
    assert found == {
        "input_size": (3, size, size),
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }


def test_the_image_processor_of_a_processor(tmp_path: Path) -> None:
    """Transformers 5 writes one file for the processors of images and texts."""
    write(tmp_path, "processor_config.json", {"image_processor": {**PROCESSOR, "size": 8}, "processor_class": "Any"})
    found = recorded_preprocessing(tmp_path)
    assert found is not None
    assert (found["mean"], found["input_size"]) == (MEAN, (3, 8, 8))
    write(tmp_path, "processor_config.json", {"tokenizer": {}})
    assert recorded_preprocessing(tmp_path) is None


def test_without_normalization(tmp_path: Path) -> None:
    record = {**PROCESSOR, "size": 8, "do_normalize": False}
    found = recorded_preprocessing(write(tmp_path, "preprocessor_config.json", record))
    assert found is not None
    assert (found["mean"], found["std"]) == ([0.0], [1.0])


@pytest.mark.parametrize(
    "changes", [{"resample": 1}, {"rescale_factor": 1.0}, {"do_resize": False}, {"size": {"height": 8, "width": 4}}]
)
def test_unsupported_steps_are_a_warning(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, "preprocessor_config.json", {**PROCESSOR, "size": 8, **changes})
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json: this preprocessing is not supported"):
        assert recorded_preprocessing(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 100_000, {}, {**PROCESSOR, "size": "x"}, {**PROCESSOR, "size": 8, "image_std": [0.0]}]
)
def test_damaged_file_is_named(tmp_path: Path, content: Any) -> None:
    write(tmp_path, "preprocessor_config.json", content)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        recorded_preprocessing(tmp_path)


def test_a_model_takes_it_from_a_folder_and_not_from_beside_another_file(tmp_path: Path) -> None:
    state = vitfast.create_model(NAME).state_dict()
    write(tmp_path, "config.json", {"architecture": NAME, "pretrained_cfg": TIMM})
    save_file(state, tmp_path / "model.safetensors")
    save_file(state, tmp_path / "other.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        settings = preprocessing_settings(vitfast.create_model(NAME, checkpoint=path))
        assert settings is not None
        assert (settings["mean"], settings["std"], settings["crop_pct"]) == ([0.1], [0.6], 0.5)
    assert vitfast.create_model(NAME, checkpoint=tmp_path / "other.safetensors").stored_preprocessing is None
