from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from vitfast_build import toolchain
from vitfast_build.options import BuildError
from vitfast_build.toolchain import TORCH_TARGET_VERSION, TorchInstallation, find_torch, read_torch


def test_reads_the_installed_torch_without_importing_it() -> None:
    found = find_torch()
    assert found.folder == Path(torch.__file__).parent
    assert found.version == str(torch.__version__)
    assert found.cuda == torch.version.cuda
    assert (found.folder / "include/torch/csrc/stable/library.h").exists()


def test_the_target_is_the_oldest_supported_torch() -> None:
    # torch/csrc/stable/version.h: major in the first byte, minor in the second
    assert int(TORCH_TARGET_VERSION, 16) == (2 << 56) | (11 << 48)


def test_a_cpu_only_torch_has_no_cuda(tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert read_torch(tmp_path).cuda is None


def test_an_old_torch_is_refused_with_the_command_that_upgrades_it(tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.10.1+cu128'\n")
    with pytest.raises(
        BuildError, match=r'torch 2\.10\.1\+cu128 is too old(.|\n)*pip install --upgrade "torch>=2\.11"'
    ):
        read_torch(tmp_path)


def test_no_torch_is_one_message_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(toolchain, "_find_outside_build_environment", lambda package: "")
    with pytest.raises(BuildError, match=r'pip install "torch>=2\.11" pybind11 ninja\n.*--no-build-isolation'):
        find_torch()


def test_pips_build_environment_does_not_hide_the_torch_that_is_installed(root: Path, tmp_path: Path) -> None:
    """As pip does, PYTHONPATH brings the build's packages and the environment's own folder is not searched (-S)."""
    venv.create(tmp_path / "venv", with_pip=False)
    folder = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})) / "torch"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda = '13.0'\n")
    command = [tmp_path / "venv/bin/python", "-S", "-c", "from vitfast_build.toolchain import *; print(find_torch())"]
    environment = {"PYTHONPATH": str(root / "build_backend")}
    answer = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == repr(TorchInstallation(folder, "2.13.0+cu130", "13.0"))
