"""Reading files of a user: regular ones only, whatever reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitfast.data import load_image
from vitfast.data.file_list import LABEL_MAP, LIST_FILES, FileList
from vitfast.errors import UserError
from vitfast.files import open_regular, read_text, sha256_of_file
from vitfast.runs.run_directory import ENVIRONMENT, RunDirectory
from vitfast.weights.manifest import MANIFEST, read_manifest
from vitfast.weights.source_checkpoint import CONFIG_FILE, _read_config


@pytest.fixture(params=["fifo", "device"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A FIFO that nobody writes to, or a link to /dev/zero."""
    path = tmp_path / "endless"
    if request.param == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


def test_a_regular_file_and_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("héllo".encode())
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert os.get_blocking(file.fileno()) is False
        assert file.read() == "héllo".encode()
    assert read_text(tmp_path / "file") == "héllo"


def test_nothing_else_is_opened(endless: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="it is a FIFO, a socket or a device, not a regular file"):
        open_regular(endless)
    with pytest.raises(OSError, match="Is a directory"):
        open_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def _file_list(endless: Path) -> object:
    endless.rename(endless.parent / LABEL_MAP)
    (endless.parent / LIST_FILES["train"]).write_text("a/1.jpg\n")
    return FileList(endless.parent, "train")


def _config(endless: Path) -> object:
    endless.rename(endless.parent / CONFIG_FILE)
    return _read_config(endless.parent / "model.safetensors")


def _manifest(endless: Path) -> object:
    endless.rename(endless.parent / MANIFEST)
    return read_manifest(endless.parent)


@pytest.mark.parametrize("read", [load_image, sha256_of_file, _file_list, _config, _manifest])
def test_every_reader_refuses_it(endless: Path, read: Callable[[Any], object]) -> None:
    with pytest.raises((UserError, OSError), match="not a regular file"):
        read(endless)


def test_an_environment_that_cannot_be_read_is_replaced(endless: Path) -> None:
    endless.rename(endless.parent / ENVIRONMENT)
    run = RunDirectory.reopen(endless.parent)
    run.write_environment({"python": "3"})
    run.close()
    assert json.loads((endless.parent / ENVIRONMENT).read_text()) == {"python": "3"}
