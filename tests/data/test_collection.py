"""Collections of images: what is listed, in which order, and that the listed bytes are read."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitfast.data.collection import StoredImage, find_stored, list_images
from vitfast.data.image_file import decode_image
from vitfast.errors import UserError


def encoded(number: int, format: str = "png") -> bytes:
    """A grey image of its own for each number."""
    stream = io.BytesIO()
    Image.new("L", (4, 3), number).save(stream, format=format)
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_parquet(path: Path, columns: dict, row_group_size: int = 100) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path, row_group_size=row_group_size)


def names(images: str) -> list[str]:
    return [one.path for one in list_images(images)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Image files ``a.png``, ``b/1.png``, ``b.png`` and ``c.JPG``; the working directory is above them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "b").mkdir(parents=True)
    for number, name in enumerate(("c.JPG", "a.png", "b.png", "b/1.png")):
        (tmp_path / "in" / name).write_bytes(encoded(number))
    (tmp_path / "in" / "note.md").write_text("no image")
    return tmp_path / "in"


def test_a_folder_is_listed_in_the_order_of_its_paths(folder):
    assert names("in") == ["in/a.png", "in/b.png", "in/b/1.png", "in/c.JPG"] == sorted(names("in"))
    os.chdir(folder)
    assert names(".") == ["a.png", "b.png", "b/1.png", "c.JPG"]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("in/b,in", ["in/b/1.png", "in/a.png", "in/b.png", "in/c.JPG"]),
        ("in,in/b,in/a.png", ["in/a.png", "in/b.png", "in/b/1.png", "in/c.JPG"]),
        ("in/c.JPG,in//b,./in", ["in/c.JPG", "in/b/1.png", "in/a.png", "in/b.png"]),
        ("in/*.png,in/**/*.png", ["in/a.png", "in/b.png", "in/b/1.png"]),
        ("in/b/1.png,in/b/1.png", ["in/b/1.png"]),
    ],
)
def test_overlapping_entries_list_an_image_once(folder, images, expected):
    assert names(images) == expected


def test_a_list_names_files_beside_it_and_tar_files(folder):
    write_tar(folder / "shard.tar", {"x.png": encoded(9)})
    (folder / "list.txt").write_text("b/1.png\n\n  a.png \nshard.tar\nmissing.png\n")
    listed = list(list_images("in/list.txt"))
    assert [one.path for one in listed] == ["in/b/1.png", "in/a.png", "in/shard.tar/x.png", "in/missing.png"]
    assert listed[0].read() == encoded(3)
    with pytest.raises(UserError, match=r"in/missing\.png cannot be read"):
        listed[3].read()


def test_members_of_a_tar_are_read_where_they_are(tmp_path):
    members = {f"{number:03}.png": encoded(number) for number in range(5)}
    long_name = f"{'deep/' * 40}z.jpeg"
    path = tmp_path / "shard.tar"
    write_tar(path, {"000.json": b"{}", "000.cls": b"1", **members, long_name: encoded(7)})
    listed = list(list_images(str(path)))
    assert [one.path for one in listed] == [f"{path}/{name}" for name in (*members, long_name)]
    assert [one.read() for one in reversed(listed)] == [encoded(7), *reversed(members.values())]
    assert find_stored(f"{path}/003.png").read() == encoded(3)
    assert np.asarray(find_stored(f"{path}/{long_name}").load(1)).max() == 7


def test_listing_a_tar_takes_no_memory(tmp_path):
    path = tmp_path / "shard.tar"
    write_tar(path, {f"{number}.png": b"" for number in range(3000)})
    tracemalloc.start()
    assert sum(1 for _ in list_images(str(path))) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000  # the members would take 3 MB


@pytest.mark.parametrize("order", [range(300), range(299, -1, -7), [0, 299, 0, 150, 151, 149]])
def test_rows_of_a_parquet_file_are_read_in_any_order(tmp_path, order):
    path = tmp_path / "images.parquet"
    content = [encoded(number % 256) for number in range(300)]
    images = [{"bytes": one, "path": "x.png"} for one in content]
    write_parquet(path, {"label": list(range(300)), "image": images, "thumb": content[::-1]})
    listed = list(list_images(str(path)))
    assert [one.path for one in listed] == [f"{path}/{row}" for row in range(300)]
    assert all(listed[row].read() == content[row] for row in order)


def test_the_only_column_of_bytes_is_taken(tmp_path):
    write_parquet(tmp_path / "images.parquet", {"key": ["a", "b"], "data": [encoded(1), None]})
    first, second = list_images(str(tmp_path / "images.parquet"))
    assert first.read() == encoded(1)
    with pytest.raises(UserError, match=r"images\.parquet/1 cannot be read: the row has no image"):
        second.read()


def test_a_parquet_file_without_images_names_its_columns(tmp_path):
    write_parquet(tmp_path / "no.parquet", {"key": ["a"], "x": [b"a"], "y": [b"b"]})
    with pytest.raises(UserError, match="columns key, x, y; one of image, "):
        list(list_images(str(tmp_path / "no.parquet")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.tar", b"no tar file" * 100, r"bad\.tar is no tar file, or damaged"),
        ("bad.parquet", b"PAR1 no", r"bad\.parquet is no Parquet file, or damaged"),
        ("bad.tar.gz", b"", "is compressed"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(list_images(str(tmp_path / name)))


def test_a_truncated_tar_is_no_short_tar(tmp_path):
    write_tar(tmp_path / "whole.tar", {f"{number}.png": encoded(number) * 99 for number in range(3)})
    (tmp_path / "part.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:9000])
    with pytest.raises(UserError, match=r"part\.tar is no tar file, or damaged"):
        list(list_images(str(tmp_path / "part.tar")))


def test_a_tar_without_images_and_an_empty_list_are_refused(tmp_path):
    write_tar(tmp_path / "shard.tar", {"x.txt": b"text"})
    (tmp_path / "list.txt").write_text("\n")
    for name in ("shard.tar", "list.txt"):
        with pytest.raises(UserError, match="holds no image"):
            list_images(str(tmp_path / name))


def test_a_folder_of_tar_files_says_how_to_give_them(tmp_path):
    write_tar(tmp_path / "shard.tar", {"x.png": encoded(1)})
    with pytest.raises(UserError, match=r"given as .*\*\.tar"):
        list_images(str(tmp_path))
    assert names(f"{tmp_path}/*.tar") == [f"{tmp_path}/shard.tar/x.png"]


def test_a_name_that_is_no_text_is_listed_and_read(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(name, "wb") as file:
        file.write(encoded(5))
    (listed,) = list_images(str(tmp_path))
    assert listed.path == f"{tmp_path}/caf\\xe9.png"
    assert listed.read() == encoded(5)


def test_a_fifo_and_a_huge_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(1 << 30)
    for listed, reason in zip(list_images(str(tmp_path)), ("a FIFO", "scale the image down"), strict=True):
        with pytest.raises(UserError, match=reason):
            listed.read()
    with pytest.raises(UserError, match="NUL"):
        StoredImage("a\0b", "a\0b").read()


@pytest.mark.parametrize(
    ("size", "decoded"), [((1000, 800), (250, 200)), ((399, 1000), (399, 1000)), ((90, 80), (90, 80))]
)
def test_a_jpeg_is_decoded_at_the_size_that_suffices(size, decoded):
    stream = io.BytesIO()
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.save(stream, "jpeg")
    small = decode_image(stream, "x", 3, shrink_to=200)
    assert small.size == decoded
    exact = np.asarray(image.resize(decoded, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(small).astype(int) - exact).max() < 6
