"""Truncated files and flipped bits: a UserError or weights, never another exception or much memory."""

from __future__ import annotations

import io
import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import vitfast
from support.foreign_weights import google_arrays
from vitfast.errors import UserError
from vitfast.models import ImageModel

NAME, FIELDS = "vit_nano_patch2_8", {"depth": 1, "embed_dim": 6, "num_heads": 3, "num_classes": 2}
INDEX = "model.safetensors.index.json"
_MEMORY_MIB = 400


def nano() -> ImageModel:
    torch.manual_seed(0)
    return vitfast.create_model(NAME, **FIELDS)


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **google_arrays(nano(), "released"))
    return file.getvalue()


def _npz_compressed() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **google_arrays(nano(), "linen"))
    return file.getvalue()


def _torch(modern: bool) -> bytes:
    file = io.BytesIO()
    content = {"model": nano().state_dict(), "metric": np.float64(0.5), "curve": np.ones((3, 2)), "epoch": 3}
    torch.save(content, file, _use_new_zipfile_serialization=modern)
    return file.getvalue()


def _vitfast() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        vitfast.save_weights(nano(), path)
        return path.read_bytes()


def _index() -> bytes:
    return json.dumps({"weight_map": dict.fromkeys(nano().state_dict(), "part.safetensors")}).encode()


KINDS: dict[str, Callable[[], bytes]] = {
    "npz": _npz,
    "compressed npz": _npz_compressed,
    "torch": lambda: _torch(True),
    "old torch": lambda: _torch(False),
    "safetensors": lambda: save(nano().state_dict()),
    "vitfast": _vitfast,
    "index": _index,
}


def read(content: bytes, kind: str) -> None:
    """Builds a model from the bytes. Only a UserError that names the file may be raised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (INDEX if kind == "index" else "weights")
        path.write_bytes(content)
        if kind == "index":
            (path.parent / "part.safetensors").write_bytes(save(nano().state_dict()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        message = ""
        try:
            model = vitfast.create_model(None if kind == "vitfast" else NAME, checkpoint=path, **FIELDS)
        except UserError as error:
            message = str(error)
        assert message or set(model.load_report.loaded) | set(model.load_report.fresh) == model.state_dict().keys()
        assert not message or folder in message
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < _MEMORY_MIB, f"{grown:.0f} MiB"


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return {kind: make() for kind, make in KINDS.items()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_whole_files_are_read(contents: dict[str, bytes], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged below is read where it is whole."""
    loaded = []
    real = vitfast.create_model
    monkeypatch.setattr(
        vitfast, "create_model", lambda *args, **options: loaded.append(real(*args, **options)) or loaded[-1]
    )
    read(contents[kind], kind)
    assert loaded[-1].load_report.missing == loaded[-1].load_report.fresh == ()


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(contents: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    content = bytearray(contents[kind])
    place = st.integers(0, len(content) - 1)
    # most of a file is numbers; what describes them is at its ends
    edge = st.one_of(place, st.integers(0, min(400, len(content) - 1)).map(lambda back: len(content) - 1 - back))
    for flipped in data.draw(st.lists(st.one_of(edge, st.integers(0, min(400, len(content) - 1))), max_size=4)):
        content[flipped] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        content = content[: data.draw(place)]
    read(bytes(content), kind)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x08\0\0\0\0\0\0\0{", b"{"]))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes(content: bytes, beginning: bytes) -> None:
    for kind in ("torch", "index"):
        read(beginning + content, kind)
