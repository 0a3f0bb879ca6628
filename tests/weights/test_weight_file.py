"""Untrusted files: no code runs, memory stays bounded, and every error names the file and the remedy."""

from __future__ import annotations

import collections
import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitfast.errors import UserError
from vitfast.weights.weight_file import read_weight_file


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as info:
        read_weight_file(path)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_content_determines_the_format(tmp_path: Path) -> None:
    """The four formats under a name that says nothing."""
    weight = torch.arange(6.0).view(2, 3)
    path = tmp_path / "vit_001000"
    with path.open("wb") as file:
        np.savez(file, weight=weight.numpy())
    assert torch.equal(read_weight_file(path).tensors["weight"], weight)
    save_file({"weight": weight}, path, metadata={"format": "pt"})
    assert torch.equal(read_weight_file(path).tensors["weight"], weight)
    assert read_weight_file(path).metadata == {"format": "pt"}
    for modern in (True, False):
        torch.save({"weight": weight}, path, _use_new_zipfile_serialization=modern)
        assert torch.equal(read_weight_file(path).tensors["weight"], weight)


@pytest.mark.parametrize("beginning", [b"PK", b"\x80\x02", b"\x1f\x8b", b"\x80"])
def test_safetensors_that_begin_like_other_files(tmp_path: Path, beginning: bytes) -> None:
    """Such a file begins with its header's length, which may be any number."""
    length = int.from_bytes(beginning.ljust(2, b"\x01"), "little")
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "weights"
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert read_weight_file(path).tensors["weight"].tolist() == [0.0]


def test_npz_of_every_layout(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {
        "columns first": np.asfortranarray(matrix),
        "big endian": matrix.astype(">f4"),
        "half": matrix.astype(np.float16),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "bfloat16": torch.from_numpy(matrix).to(torch.bfloat16).view(torch.int16).numpy().view("V2"),
    }
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, **arrays)
    tensors = read_weight_file(path).tensors
    for name in ("columns first", "big endian", "half", "bfloat16"):
        assert torch.equal(tensors[name].float(), torch.from_numpy(matrix)), name
    assert tensors["bfloat16"].dtype == torch.bfloat16
    assert tensors["scalar"].item() == 2.5
    assert tensors["empty"].shape == (0, 3)


@pytest.mark.parametrize(
    ("wrap", "wrapper", "ignored"),
    [
        (lambda state: state, "", ()),
        (lambda state: {"state_dict": state, "epoch": 3, "lr": {"a": [1]}}, "state_dict", ("epoch", "lr")),
        (lambda state: {"model_state_dict": state, "flops": [1.0]}, "model_state_dict", ("flops",)),
        (lambda state: {"model": state, "model_ema": state}, "model", ("model_ema",)),
        (lambda state: {"epoch": torch.tensor(3), "model": collections.OrderedDict(state)}, "model", ("epoch",)),
        (lambda state: {"model": {"note": "text", **state}}, "model", ("note",)),
        (lambda state: [state, 7], "", ("1",)),
    ],
    ids=["bare", "timm", "DVT", "averaged", "tensor beside it", "text inside", "list"],
)
def test_wrappers(tmp_path: Path, wrap: Any, wrapper: str, ignored: tuple[str, ...]) -> None:
    torch.save(wrap({"norm.weight": torch.ones(2)}), tmp_path / "weights.pth")
    raw = read_weight_file(tmp_path / "weights.pth")
    assert [key.removeprefix("0.") for key in raw.tensors] == ["norm.weight"]
    assert (raw.wrapper, raw.ignored) == (wrapper, ignored)


def test_prefixes(tmp_path: Path) -> None:
    for prefix in ("module.", "module._orig_mod.", "_orig_mod.module.", "model."):
        torch.save({f"{prefix}cls_token": torch.ones(1), f"{prefix}b": torch.ones(1)}, tmp_path / "a")
        assert list(read_weight_file(tmp_path / "a").tensors) == ["cls_token", "b"]
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "b")
    assert list(read_weight_file(tmp_path / "b").tensors) == ["module.a", "b"]


# --- what is refused --------------------------------------------------------------------------------------------------


class _Attack:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_malicious_pickle(tmp_path: Path, modern: bool, wrapped: bool) -> None:
    attack = _Attack(tmp_path / "attacked")
    content = {"model": {"weight": torch.ones(1)}, "args": attack} if wrapped else attack
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=modern)
    message = refusal(tmp_path / "weights.pth")
    assert "is refused: it holds Python objects" in message
    assert f"({os.system.__module__}.system)" in message
    assert "no code in it was executed" in message
    assert "Get the weights as .safetensors or, only if you trust the author of the file, convert them" in message
    assert not (tmp_path / "attacked").exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)  # the attack works where it is let
    assert (tmp_path / "attacked").exists()


def test_malicious_pickle_without_torch(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(pickle.dumps(_Attack(tmp_path / "attacked")))
    assert "no code in it was executed" in refusal(tmp_path / "model.bin")
    assert not (tmp_path / "attacked").exists()


def test_whole_module(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    assert "it holds Python objects (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "model.pth")


def test_pickled_objects_in_npz(tmp_path: Path) -> None:
    target = tmp_path / "attacked"
    path = npz(tmp_path / "model.npz", weight=np.array([_Attack(target)], dtype=object))
    assert "array weight cannot be read: it holds pickled Python objects, which are refused" in refusal(path)
    assert not target.exists()


def _bomb(path: Path, name: str, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl" if name.startswith("archive") else "small.npy", b"")
        with archive.open(name, "w", force_zip64=True) as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))


@pytest.mark.parametrize("name", ["weight.npy", "archive/data/0"], ids=["npz", "torch"])
def test_decompression_bomb(tmp_path: Path, name: str) -> None:
    _bomb(tmp_path / "bomb", name, 300 << 20)
    tracemalloc.start()
    message = refusal(tmp_path / "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "would unpack to 314,572,800" in message
    assert "; nothing was unpacked" in message
    assert peak < 1 << 20


def test_weights_of_any_size_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitfast.weights.npz_file._HARMLESS_BYTES", 0)
    weight = np.random.default_rng(0).standard_normal((100, 100), dtype=np.float32)
    np.savez(tmp_path / "weights.npz", weight=weight)
    assert read_weight_file(tmp_path / "weights.npz").tensors["weight"].shape == (100, 100)
    np.savez_compressed(tmp_path / "weights.npz", weight=weight, zeroed=np.zeros_like(weight))
    assert read_weight_file(tmp_path / "weights.npz").tensors["zeroed"].shape == (100, 100)
    np.savez_compressed(tmp_path / "weights.npz", zeroed=np.zeros((1000, 1000)))
    assert "decompression bomb" in refusal(tmp_path / "weights.npz")


def test_zeros_that_compress_well_are_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", head=np.zeros((1000, 1000), dtype=np.float32))
    assert read_weight_file(tmp_path / "zeros.npz").tensors["head"].shape == (1000, 1000)


@pytest.mark.parametrize("shape", [(1 << 40,), (3, 1 << 60), (7,), (-2, -3)])
def test_npz_header_with_a_wrong_size(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("weight.npy", header.getvalue() + bytes(24))
    assert f"its header claims shape {list(shape)} in" in refusal(tmp_path / "model.npz")


@pytest.mark.parametrize("header", ["{'descr': '<f4'", "(" * 5000, "\0", "{'descr': '<f4', 'shape': (1,)}", "x" * 9999])
def test_npz_header_that_cannot_be_parsed(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("weight.npy", content)
    assert "array weight cannot be read" in refusal(tmp_path / "model.npz")


def test_npz_with_damaged_lzma(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("weight.npy", bytes(1000))
    content = bytearray((tmp_path / "model.npz").read_bytes())
    content[40:60] = b"\xff" * 20
    (tmp_path / "model.npz").write_bytes(content)
    assert "array weight cannot be read" in refusal(tmp_path / "model.npz")


def test_tensor_larger_than_its_storage(tmp_path: Path) -> None:
    """With stride 0 a few bytes claim any size, and the first copy would allocate it."""
    torch.save({"weight": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "model.pth")
    assert "claims 1,099,511,627,776 elements, more than the file holds" in refusal(tmp_path / "model.pth")


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_are_not_plain(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"weight": tensor}, tmp_path / "model.pth")
    assert "a tensor in it is not dense" in refusal(tmp_path / "model.pth")


def _endless() -> Any:
    content: dict[str, Any] = {"weight": torch.ones(1)}
    content["again"] = content
    return content


def _many() -> Any:
    content: Any = [1]
    for _ in range(18):
        content = [content, content]
    return {"weight": torch.ones(1), "many": content}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds no weights but one Tensor; save the model's state_dict()"),
        ({}, "holds no weights but an empty dictionary"),
        ({"epoch": 3, "loss": 0.5}, "holds no weights but the entries epoch, loss"),
        (_endless(), "nested more than 20 levels deep"),
        (_many(), "more than 100,000 entries"),
    ],
    ids=["tensor", "empty", "numbers", "endless", "many"],
)
def test_contents_without_weights(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    assert message in refusal(tmp_path / "model.pth")


def torchscript(path: Path, content: bytes, storage: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in (("data.pkl", content), ("constants.pkl", b""), ("data/0", storage)):
            archive.writestr(f"model/{name}", member)
    return path


@pytest.mark.parametrize("half", [False, True])
def test_torchscript(tmp_path: Path, half: bool) -> None:
    """The attributes of the modules, with views of shared storages; integers and other attributes are left out."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(3, 3))
    inner[2].weight = nn.Parameter(torch.randn(3, 3).t())
    model = nn.Sequential(inner, nn.ReLU())
    model.register_buffer("scale", torch.tensor(3))
    model = model.half() if half else model
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    weights = read_weight_file(tmp_path / "model.pt")
    assert weights.tensors.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(weights.tensors[key], value), key
    assert weights.ignored == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or truncated"),
        (b"cposix\nsystem\n(Vtouch owned\ntR.", "is refused: it holds Python objects (posix.system)"),
        (b"c__torch__\nModel\n)\x81}Vname\nVtext\nsb.", "holds no weights but the attributes of a TorchScript archive"),
        (b"N.", "holds no weights but one NoneType"),
        (b"c__torch__\nModel\n)\x81N}Vcall\nK\x01s\x86b.", "an object of the program without named attributes"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}Vcall\nK\x01sb.", "the state of a function"),
    ],
    ids=["empty", "system", "no weights", "no modules", "no attributes", "changed function"],
)
def test_torchscript_is_not_trusted(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(torchscript(tmp_path / "model.pt", content))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, 5, 1), (3, 2, 1), (0, 2, 4), (0, 1000, 0), (-1, 1, 1), (0, -1, 1)]
)
def test_torchscript_tensors_stay_within_their_storage(tmp_path: Path, offset: int, size: int, stride: int) -> None:
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"
    arguments = f"I{offset}\n(I{size}\nt(I{stride}\nt".encode()
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + arguments + b"tR"
    content = b"c__torch__\nModel\n)\x81}Vweight\n" + tensor + b"sb."
    assert "a tensor of shape" in refusal(torchscript(tmp_path / "model.pt", content, bytes(16)))
    fine = content.replace(arguments, b"I1\n(I3\nt(I1\nt")
    path = torchscript(tmp_path / "fine.pt", fine, np.arange(4, dtype=np.float32).tobytes())
    assert read_weight_file(path).tensors["weight"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["npz", "safetensors", "torch", "old torch"])
def test_truncation_is_detected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights"
    weights = {f"block.{i}.weight": torch.randn(50) for i in range(3)}
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **{key: value.numpy() for key, value in weights.items()})
    elif kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "torch")
    content = path.read_bytes()
    for length in [1, 5, 9, *range(20, len(content), max(len(content) // 40, 1)), len(content) - 1]:
        path.write_bytes(content[:length])
        message = refusal(path)
        # a pickle that ends within the name of a function seems to hold another one
        expected = ("again", "check that the download is complete", *(["is refused"] if kind == "old torch" else []))
        assert any(words in message for words in expected), length


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_flipped_bits_do_not_crash(tmp_path: Path, kind: str) -> None:
    """A flipped byte either changes a weight, which only a checksum tells, or is a named error."""
    path = tmp_path / "weights"
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, weight=np.ones(20, dtype=np.float32))
    else:
        torch.save({"weight": torch.ones(20)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    errors = []
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read_weight_file(path)
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > len(content) / 3 / 4
    assert all(str(path) in error for error in errors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download or copy it again"),
        (b"<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer, not the file itself"),
        (b"\x80\x04K\x01.", "is damaged or truncated"),
        (b"PK\x03\x04", "is damaged or truncated: its zip directory cannot be read"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    assert message in refusal(tmp_path / "weights.pth")


def test_text_in_npz(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", note="hello")
    assert "array note cannot be read: it holds <U5, which is not numeric" in refusal(path)
