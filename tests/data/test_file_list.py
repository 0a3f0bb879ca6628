"""Lists of images that cannot be read are refused by name and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfast.data.file_list import FileList
from vitfast.errors import UserError


@pytest.mark.parametrize(
    ("lines", "numbers", "message"),
    [
        (b"a/1.png\n\xff\xfe\n", b'{"a": 0}', "train_imagepaths.txt cannot be read: .* it must be UTF-8 text"),
        (b"a/1.png\na/\x002.png\n", b'{"a": 0}', "train_imagepaths.txt, line 2 contains a NUL character"),
        (b"a/1.png\n", b"3", "label_map.json must map the classes"),
        (b"a/1.png\n", b'{"a": [0]}', "label_map.json must map the classes"),
        (b"a/1.png\n", b"[" * 100_000, "label_map.json cannot be read"),
        (b"a/1.png\n", b"\xff", "label_map.json cannot be read"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, lines: bytes, numbers: bytes, message: str) -> None:
    (tmp_path / "train_imagepaths.txt").write_bytes(lines)
    (tmp_path / "label_map.json").write_bytes(numbers)
    with pytest.raises(UserError, match=message):
        FileList(tmp_path, "train")


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "train_imagepaths.txt").write_bytes(b"b/1.png\n\na/2.png\n")
    (tmp_path / "label_map.json").write_bytes(b'{"a": 0, "b": "1"}')
    images = FileList(tmp_path, "train")
    assert (list(images.labels), images.class_names) == ([1, 0], ["a", "b"])
