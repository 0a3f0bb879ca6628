"""Files without a classifier's weights: every error names the file and the remedy."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vitfast
from support.foreign_weights import DEPTH, NAME, google_arrays
from vitfast.errors import UserError


def refusal(path: Path, name: str | None = NAME) -> str:
    """The message; the same for ``create_model``, with and without a name, and for ``load_weights``."""
    messages = []
    for call in (
        lambda: vitfast.create_model(name, checkpoint=path),
        lambda: vitfast.load_weights(vitfast.create_model(NAME, depth=DEPTH), path),
    ):
        with pytest.raises(UserError) as info:
            call()
        messages.append(str(info.value))
        assert str(path) in messages[-1]
        assert "\n" not in messages[-1]
    assert messages[0] == messages[1]
    return messages[0]


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def optimizer_state(**options: Any) -> dict[str, Any]:
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download or copy it again"),
        (b"<!DOCTYPE html>\n<html><head>", "is a web page, not weights; check that the download is complete"),
        (b"\n  <html lang='en'>", "is a web page, not weights"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file itself"),
        (b"These weights are for research only.\n", "but a text file; check that the download is complete"),
        (b'{"error":{"code": 404}}', "but a text file"),
        (gzip.compress(b"weights"), "is a compressed archive; unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file (of Keras); give the model's .npz"),
        (bytes(100), "or its first bytes are damaged"),
    ],
    ids=["empty", "html", "indented html", "xml", "git lfs", "text", "json", "gzip", "hdf5", "zeros"],
)
def test_no_weights_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vit.pth").write_bytes(content)
    assert message in refusal(tmp_path / "vit.pth")


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "is not a file; give the file that holds the weights" in refusal(tmp_path / "pipe.pth")


def test_folders_without_weights(tmp_path: Path) -> None:
    message = "is a folder without weights: it has none of manifest.json, model.safetensors, pytorch_model.bin; give"
    assert message in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("nothing")
    assert message in refusal(tmp_path)
    inside = tmp_path / "checkpoint_000003"
    inside.mkdir()
    (inside / "manifest.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match="damaged or not a manifest of vitfast: .*; the checkpoint is skipped"):
        assert "none of its 1 checkpoints is valid" in refusal(tmp_path)
    assert "manifest.json is damaged or not a manifest of vitfast" in refusal(inside)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["npz", "pth", "old pth", "safetensors", "bin"])
def test_truncated(tmp_path: Path, kind: str, cut: float) -> None:
    model = vitfast.create_model(NAME, depth=DEPTH)
    path = tmp_path / f"vit.{kind.split()[-1]}"
    if kind == "npz":
        np.savez(path, **google_arrays(model, "released"))
    elif kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"model": model.state_dict()}, path, _use_new_zipfile_serialization=kind != "old pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    assert "again" in refusal(path)


@pytest.mark.parametrize("name", ["weight.npy", "archive/data/0"])
def test_decompression_bomb(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitfast.weights.npz_file._HARMLESS_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl" if name.startswith("archive") else "small.npy", b"")
        with archive.open(name, "w", force_zip64=True) as member:
            for _ in range(3):
                member.write(bytes(1 << 20))
    assert "; nothing was unpacked" in refusal(tmp_path / "bomb")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("rpn.head.cls_logits.weight", "a detection model"),
        ("roi_heads.box_predictor.cls_score.weight", "a detection model"),
        ("head.classification_head.module_list.0.0.weight", "a detection model"),
        ("proposal_generator.rpn_head.conv.weight", "a detection model"),
        ("bbox_head.fc_cls.weight", "a detection model"),
        ("bbox_embed.layers.0.weight", "a detection model"),
        ("query_embed.weight", "a detection model"),
        ("decode_head.conv_seg.weight", "a segmentation model"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "a Swin Transformer or BEiT"),
        ("decoder_blocks.0.attn.qkv.weight", "a masked autoencoder"),
        ("text_projection", "an image-text model (CLIP)"),
    ],
)
@pytest.mark.parametrize("name", [NAME, "dvt_nano_16"])
def test_other_kinds_of_models(tmp_path: Path, key: str, kind: str, name: str) -> None:
    state = {"backbone.body.conv1.weight": torch.ones(3), key: torch.ones(3)}
    torch.save({"model": state}, tmp_path / "other.pth")
    message = f"holds weights of {kind} (it has {key}), not of a classifier; vitfast does not load these: give"
    assert message in refusal(tmp_path / "other.pth", name)


def test_torchvisions_detector(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    torch.save({key: torch.zeros(1) for key in detector.state_dict()}, tmp_path / "fasterrcnn.pth")
    assert "holds weights of a detection model (it has rpn.head." in refusal(tmp_path / "fasterrcnn.pth")


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"optimizer": state, "epoch": 3, "model": {}}])
def test_an_optimizer_alone(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(optimizer_state()), tmp_path / "optimizer.pth")
    message = refusal(tmp_path / "optimizer.pth")
    assert "holds the state of an optimizer (it has " in message
    assert "and no weights; give the file with the model's state_dict()" in message


def test_no_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "a.pth")
    assert "holds no weights but the entries epoch, best; save the model's state_dict()" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("name", [NAME, "convit_tiny", "dvt_deit_small", "torchvision/squeezenet1_1", "timm/test_vit"])
def test_malicious_pickle(tmp_path: Path, name: str) -> None:
    target = tmp_path / "attacked"
    torch.save({"model_state_dict": {"weight": torch.ones(1)}, "flops": _Attack(target)}, tmp_path / "evil.pth.tar")
    message = refusal(tmp_path / "evil.pth.tar", name)
    assert "is refused: it holds Python objects" in message
    assert "no code in it was executed" in message
    assert not target.exists()


def record(name: str = "vit_nano_patch2_8", fields: dict[str, Any] | None = None, **more: Any) -> str:
    return json.dumps({"model": {"name": name, "fields": fields or {}}} | more)


@pytest.mark.parametrize(
    "metadata",
    [
        record(exit_thresholds=[0.5, 0.5]),
        record(exit_thresholds="none"),
        record(exit_thresholds={"thresholds": [[1]], "gmacs": [1, 2]}),
        record("torchvision/vit_b_16", {"img_size": 1 << 40}),
        record("torchvision/squeezenet1_1", {"num_classes": 1 << 62}),
        record("torchvision/resnet18", {"num_classes": 100_000_000}),
        record("timm/test_vit", {"img_size": 1 << 40}),
        record("timm/test_resnet", {"num_classes": 1 << 62}),
        record("dvt_deit_small", {"img_size": 1 << 20, "patch_sizes": [1, 1, 1]}),
        record("t2t_vit_7", {"img_size": 1 << 20}),
        record("convit_tiny", {"locality_dim": 1 << 40}),
        record("convit_tiny", {"depth": 1 << 30}),
        "[" * 100_000,
    ],
    ids=lambda text: text[20:70],
)
def test_metadata_that_claim_too_much(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(vitfast.create_model("vit_nano_patch2_8", depth=4).state_dict(), path, {"vitfast": metadata})
    with pytest.raises(UserError) as info:
        vitfast.create_model(checkpoint=path)
    assert str(path) in str(info.value)


def test_layers_that_are_numbered_absurdly(tmp_path: Path) -> None:
    state = vitfast.create_model("vit_nano_patch2_8").state_dict()
    for number in ("999999", "9" * 5000):
        path = tmp_path / "model.safetensors"
        save_file(state | {f"blocks.{number}.norm1.weight": torch.ones(64)}, path)
        with pytest.raises(UserError) as info:
            vitfast.create_model("vit_nano_patch2_8", checkpoint=path)
        assert str(path) in str(info.value)


def test_a_dvts_thresholds_of_another_model(tmp_path: Path) -> None:
    """A file of vitfast says which model its thresholds are for."""
    path = tmp_path / "dvt.safetensors"
    vitfast.save_weights(vitfast.create_model("dvt_nano_16", num_classes=3), path)
    with pytest.raises(UserError) as info:
        vitfast.create_model("dvt_mini_32", checkpoint=path)
    assert str(info.value) == f"{path} holds dvt_nano_16, not dvt_mini_32; leave the name out to use the checkpoint's"
    with pytest.raises(UserError, match="does not fit dvt_mini_32: embed_dim is 64 in the file and 128 in the model"):
        vitfast.load_weights(vitfast.create_model("dvt_mini_32", num_classes=3), path)
