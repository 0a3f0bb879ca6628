"""Sharded checkpoints of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vitfast
from support.foreign_weights import CLASSES, DEPTH, NAME, randomize
from vitfast.errors import UserError
from vitfast.weights.weight_file import read_weight_file

INDEX = "model.safetensors.index.json"


def sharded(folder: Path, *, kind: str = "safetensors") -> dict[str, torch.Tensor]:
    """A timm model's weights in three parts and their index."""
    model = randomize(vitfast.create_model(NAME, depth=DEPTH, num_classes=CLASSES))
    state, weight_map = model.state_dict(), {}
    name = "model" if kind == "safetensors" else "pytorch_model"
    for part in range(3):
        file = f"{name}-{part + 1:05}-of-00003.{kind}"
        content = dict(list(state.items())[part::3])
        if kind == "safetensors":
            save_file(content, folder / file, {"format": "pt"})
        else:
            torch.save(content, folder / file)
        weight_map |= dict.fromkeys(content, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{name}.{kind}.index.json").write_text(json.dumps(index))
    return state


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_joined(tmp_path: Path, kind: str, as_folder: bool) -> None:
    state = sharded(tmp_path, kind=kind)
    path = tmp_path if as_folder else next(tmp_path.glob("*.index.json"))
    model = vitfast.create_model(NAME, depth=DEPTH, checkpoint=path)
    assert set(model.load_report.loaded) == state.keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert vitfast.load_weights(model, path).source == str(path)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as info:
        read_weight_file(path)
    assert str(path.parent) in str(info.value)
    return str(info.value)


def test_missing_parts_and_weights(tmp_path: Path) -> None:
    sharded(tmp_path)
    second = tmp_path / "model-00002-of-00003.safetensors"
    content = second.read_bytes()
    second.unlink()
    assert f"{second} does not exist, but {INDEX} lists weights in it; download all shards" in refusal(tmp_path / INDEX)
    save_file({"other": torch.ones(1)}, second)
    assert f"{second} lacks pos_embed, which {INDEX} lists in it" in refusal(tmp_path / INDEX)
    second.write_bytes(content[:-10])
    assert f"{second} is damaged or not a safetensors file" in refusal(tmp_path / INDEX)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "."])
def test_files_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": torch.ones(1)}, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"weight": name}}))
    assert "which is not a file beside it" in refusal(folder / INDEX)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_damaged_index(tmp_path: Path, content: Any) -> None:
    (tmp_path / INDEX).write_bytes(content.encode("latin1"))
    message = refusal(tmp_path / INDEX)
    assert "is damaged or not an index of weights" in message or "lists no weights" in message


def test_one_part_alone(tmp_path: Path) -> None:
    sharded(tmp_path)
    with pytest.raises(UserError) as info:
        vitfast.create_model(NAME, depth=DEPTH, checkpoint=tmp_path / "model-00001-of-00003.safetensors")
    assert "is one of several shards; give the folder" in str(info.value)
