"""Search for NVIDIA's CUTLASS headers, and the errors if they are missing or too old."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from vitfast_build.cuda_toolkit import CUTLASS_DISTRIBUTION, find_cutlass
from vitfast_build.options import BuildError


def write_headers(folder: Path, version: str = "4.2") -> Path:
    """A copy of CUTLASS, as far as the build looks at it; returns the folder for the include path."""
    (folder / "cutlass").mkdir(parents=True)
    (folder / "cutlass/cutlass.h").touch()
    major, minor = version.split(".")
    (folder / "cutlass/version.h").write_text(f"#define CUTLASS_MAJOR {major}\n#define CUTLASS_MINOR {minor}\n")
    return folder


def install(site: Path, version: str = "4.2") -> Path:
    """An installed nvidia-cutlass without its dependencies: its record, and its headers beside other files."""
    include = write_headers(site / "cutlass_library/source/include", version)
    other = site / "cutlass_library/source/tools/library/include/cutlass/library"
    other.mkdir(parents=True)
    (other / "library.h").touch()
    information = site / "nvidia_cutlass-4.2.0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {CUTLASS_DISTRIBUTION}\nVersion: 4.2.0.0\n")
    names = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.h"))]
    (information / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return include


def test_the_headers_of_the_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    include = install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_cutlass({}) == include
    assert find_cutlass({"VITFAST_CUTLASS": ""}) == include


@pytest.mark.parametrize("inner", ["", "include"])
def test_the_variable_comes_before_the_package(inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = write_headers(tmp_path / "own" / inner)
    assert find_cutlass({"VITFAST_CUTLASS": str(tmp_path / "own")}) == folder


def test_missing_headers_and_a_wrong_folder_have_different_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "files", _not_installed)
    assert find_cutlass({}) is None
    with pytest.raises(BuildError, match=r"VITFAST_CUTLASS=/nowhere has neither cutlass/cutlass\.h nor include/.*\n"):
        find_cutlass({"VITFAST_CUTLASS": "/nowhere"})


@pytest.mark.parametrize("version", ["3.9", "4.1"])
def test_old_headers_are_refused(version: str, tmp_path: Path) -> None:
    write_headers(tmp_path, version)
    message = rf"is {version}; vitfast's GEMMs need 4\.2 or newer(.|\n)*pip install --no-deps"
    with pytest.raises(BuildError, match=message):
        find_cutlass({"VITFAST_CUTLASS": str(tmp_path)})


def test_headers_without_a_version_are_refused(tmp_path: Path) -> None:
    write_headers(tmp_path)
    (tmp_path / "cutlass/version.h").unlink()
    with pytest.raises(BuildError, match="of an unknown version"):
        find_cutlass({"VITFAST_CUTLASS": str(tmp_path)})


def _not_installed(name: str) -> list[importlib.metadata.PackagePath]:
    raise importlib.metadata.PackageNotFoundError(name)
