"""The torch that is compiled against, read from its files: to import it takes seconds, and may need more packages."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from vitfast_build.errors import BuildError

MIN_TORCH = (2, 11)
# the stable ABI that the libraries ask for: they load under this torch and every later one
TORCH_TARGET_VERSION = f"0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"


@dataclass(frozen=True)
class TorchInstallation:
    """An installed torch.

    Attributes:
        folder: the package.
        version: such as ``2.15.0+cu132``.
        cuda: the CUDA version that torch was built with, or None for a CPU-only torch.
    """

    folder: Path
    version: str
    cuda: str | None

    @property
    def include_folder(self) -> Path:
        """The headers; those of the stable ABI need no other folder."""
        return self.folder / "include"

    @property
    def library_folder(self) -> Path:
        """Where libtorch_cpu.so and libtorch_cuda.so are."""
        return self.folder / "lib"

    @property
    def nvidia_include_folder(self) -> Path:
        """The headers of the CUDA libraries that came with torch; the folder need not exist."""
        major = (self.cuda or "").split(".")[0]
        return self.folder.parent / "nvidia" / f"cu{major}" / "include"


def find_torch() -> TorchInstallation:
    """Finds the torch of this Python.

    Raises:
        BuildError: there is none, or it is too old.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        python = shlex.quote(sys.executable)
        raise BuildError(
            f"torch is not installed for {sys.executable}, and vitfast is compiled against it.\n"
            f'Install it: {python} -m pip install "torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}" pybind11 ninja\n'
            "or let pip bring it for the build: leave out --no-build-isolation"
        )
    return read_torch(Path(spec.origin).parent)


def read_torch(folder: Path) -> TorchInstallation:
    """Reads the versions of the torch in ``folder`` and checks that it is new enough.

    Raises:
        BuildError: torch is older than 2.11, or its version cannot be read.
    """
    path = folder / "version.py"
    text = path.read_text() if path.exists() else ""
    version = re.search(r"^__version__\s*(?::[^=]*)?=\s*['\"]((\d+)\.(\d+)[^'\"]*)['\"]", text, re.MULTILINE)
    if version is None:
        raise BuildError(
            f"The torch in {folder} does not tell its version.\nInstall it anew: pip install --force-reinstall torch"
        )
    if (int(version[2]), int(version[3])) < MIN_TORCH:
        wanted = ".".join(str(number) for number in MIN_TORCH)
        raise BuildError(
            f"torch {version[1]} is too old: vitfast needs torch >= {wanted}, whose stable ABI it is compiled for.\n"
            f'Upgrade it: pip install --upgrade "torch>={wanted}"'
        )
    cuda = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return TorchInstallation(folder, version[1], cuda[1] if cuda else None)
