"""NumPy numbers and arrays in a torch file are read without NumPy's functions; everything else is refused."""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitfast.errors import UserError
from vitfast.weights.restricted_pickle import NUMPY_STAND_INS, NumpyArray
from vitfast.weights.weight_file import read_weight_file


def beside(path: Path, value: Any, **options: Any) -> Any:
    torch.save({"model": {"weight": torch.ones(1)}, "value": value}, path, **options)
    return read_weight_file(path).entries["value"]


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?"])
def test_arrays_and_numbers(tmp_path: Path, code: str, modern: bool) -> None:
    for array in (
        np.arange(6).reshape(2, 3).astype(code),
        np.asfortranarray(np.arange(6).reshape(2, 3).astype(code)),
        np.arange(3).astype(np.dtype(code).newbyteorder(">")),
        np.array(5).astype(code),
    ):
        read = beside(tmp_path / "a.pth", array, _use_new_zipfile_serialization=modern)
        assert isinstance(read, NumpyArray)
        assert read.tensor.tolist() == array.tolist()
        assert read.tensor.dtype == torch.from_numpy(array.astype(code)).dtype
    number = np.arange(3).astype(code)[2]
    read = beside(tmp_path / "a.pth", number, _use_new_zipfile_serialization=modern)
    assert (read, type(read)) == (number.item(), type(number.item()))


def test_the_names_of_numpy_1(tmp_path: Path) -> None:
    """NumPy 2 moved its functions; the released files are from before that."""
    torch.save({"model": {"weight": torch.ones(1)}, "value": [np.float64(2.5), np.ones(2)]}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            content = new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, content)
    number, array = read_weight_file(tmp_path / "old.pth").entries["value"]
    assert (number, array.tensor.tolist()) == (2.5, [1.0, 1.0])


def test_arrays_as_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": np.ones((2, 2), dtype=np.float32)}}, tmp_path / "a.pth")
    assert torch.equal(read_weight_file(tmp_path / "a.pth").tensors["weight"], torch.ones(2, 2))


class _Reduced:
    """Is pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(1).__reduce__()[0]
OBJECTS = np.dtype("O")


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, "a", None], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array([1 + 2j]),
        np.array(["2021-01-01"], dtype="datetime64[D]"),
        _Reduced(SCALAR, (OBJECTS, b"12345678")),
        _Reduced(SCALAR, (np.dtype("f8"), b"1234")),
        _Reduced(SCALAR, (np.dtype("f8"), 3)),
        _Reduced(SCALAR, ("f8", b"12345678")),
        _Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1 << 40,), np.dtype("f8"), False, b"12345678")),
        _Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1, -1), np.dtype("f8"), False, b"12345678")),
        _Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,) * 40, np.dtype("f8"), False, b"12345678")),
        _Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("f8"), False, [1.0])),
        _Reduced(RECONSTRUCT, (dict, (0,), b"b")),
        _Reduced(np.ndarray, ((1 << 40,), np.dtype("f8"))),
        _Reduced(np.frombuffer, (b"12345678", np.dtype("f8"))),
        np.random.RandomState(0),
        np.ma.masked_array([1.0], mask=[True]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_non_numeric_values_are_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"weight": torch.ones(1)}, "value": value}, path)
    with pytest.raises(UserError) as info:
        read_weight_file(path)
    assert str(path) in str(info.value)
    assert "no code in it was executed" in str(info.value)


def test_a_whole_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(
        UserError, match=r"\(torch.nn.modules.linear.Linear\).*content.state_dict\(\) if the file holds"
    ):
        read_weight_file(path)


@pytest.mark.parametrize("wrap", [lambda attack: [np.float64(1), attack], lambda attack: np.array([attack])])
def test_an_attack_among_numbers(tmp_path: Path, wrap: Any) -> None:
    """Letting NumPy's numbers in lets nothing else in: neither beside them nor as elements of an array."""
    target, path = tmp_path / "attacked", tmp_path / "DVT.pth.tar"
    content = {"model_state_dict": {"weight": torch.ones(1)}, "dynamic_threshold": wrap(_Attack(target))}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"is refused: it holds Python objects .*no code in it was executed"):
        read_weight_file(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the attack works where it is let
    assert target.exists()


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (_Reduced(bytearray, (1 << 28,)), "bytearray"),
        (_Reduced(torch.Tensor, (1 << 28,)), "torch.Tensor"),
        (_Reduced(torch.FloatTensor, (1 << 28,)), "torch.FloatTensor"),
        (_Reduced(torch.UntypedStorage, (1 << 28,)), "UntypedStorage"),
        (_Reduced(range, (1 << 28,)), "range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "old format"])
def test_calls_that_allocate(tmp_path: Path, call: Any, what: str, modern: bool) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"weight": torch.ones(1)}, "value": call}, path, _use_new_zipfile_serialization=modern)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"a\.pth is (refused|damaged).*no code in it was executed"):
        read_weight_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def archive(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"c_codecs\nencode\nq\0X\0\0\x01\0" + b"a" * (1 << 16) + b"Vlatin1\n\x86q\x01" + b"h\0h\x01R" * 1000 + b".",
        b"c__builtin__\nset\nq\0](" + b"K\1" * (1 << 12) + b"e\x85q\x01" + b"h\0h\x01R" * 1000 + b".",
        b"}" + b")" + b"\x85" * 200_000 + b"K\1s.",
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"X\xff\xff\xff\xff.",
        b"(" * 1000 + b".",
        b"cargparse\nNamespace\n)\x81}U\x06appendc_codecs\nencode\nsbK\1a.",
    ],
    ids=["repeated call", "repeated set", "deep key", "bytearray", "long text", "marks", "append"],
)
def test_crafted_programs(tmp_path: Path, content: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="no code in it was executed"):
        read_weight_file(archive(tmp_path / "a.pth", content))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_a_large_memo_index(tmp_path: Path) -> None:
    """The unpickler in C would allocate a table of 2^32 entries."""
    with pytest.raises(UserError, match="holds no weights but an empty dictionary"):
        read_weight_file(archive(tmp_path / "a.pth", b"}r\xff\xff\xff\x7f."))


def test_what_training_programs_store(tmp_path: Path) -> None:
    """Options, counters, parameters with attributes, and all types of numbers."""
    tensor = torch.arange(6.0).view(2, 3)
    tensor.note = "text"  # type: ignore[attr-defined]
    values = {
        "args": argparse.Namespace(lr=0.1, sizes=(1, 2)),
        "milestones": Counter([3, 3]),
        "names": {"a", "b"},
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "noted": tensor,
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "complex": torch.tensor([1 + 2j]),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "big": 1 << 100,
        "bytes": b"abc",
    }
    for modern in (True, False):
        if not modern:
            del values["float8"]
        read = beside(tmp_path / "a.pth", values, _use_new_zipfile_serialization=modern)
        assert vars(read.pop("args")) == {"lr": 0.1, "sizes": (1, 2)}
        assert {key: value for key, value in read.items() if not isinstance(value, torch.Tensor)} == {
            **{"milestones": {3: 2}, "names": {"a", "b"}, "size": (2, 3), "dtype": torch.bfloat16, "big": 1 << 100},
            "bytes": b"abc",
        }
        for key, value in read.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, values[key].detach()), key
                assert value.stride() == values[key].stride()


def test_nothing_of_numpy_itself_is_let_in() -> None:
    for stand_in, name in NUMPY_STAND_INS:
        assert stand_in.__module__ == "vitfast.weights.restricted_pickle", name
    read = {name for _, name in NUMPY_STAND_INS}
    assert {pickle.whichmodule(RECONSTRUCT, "_reconstruct") + "._reconstruct", "numpy.ndarray"} <= read
