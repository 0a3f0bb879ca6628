"""Real installations: source distribution, wheel, editable, pure PyTorch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitfast
from vitfast_build.toolchain import MIN_SETUPTOOLS

pytestmark = pytest.mark.slow

# what a user would notice: the kernels' state, and a number that is rounded to fp16
CHECK = """
import json, torch, vitfast
from vitfast import ops
x = torch.tensor([1.0009765625 + 2**-13, 70000.0])
assert ops.quantize_float(x, vitfast.FloatFormat.fp16()).tolist() == [1.0009765625, float("inf")]
print(json.dumps([vitfast.__file__, vitfast.build_info()["kernels"]["quantize_float"]["cpu"], torch.__version__]))
"""


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VITFAST_LIBRARIES")}
    result = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked source distribution: what is built from it needs nothing else of the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    root = Path(__file__).resolve().parents[2]
    code = "import sys, vitfast_build.backend as backend; backend.build_sdist(sys.argv[1])"
    _run(sys.executable, "-c", code, folder, cwd=root, PYTHONPATH=str(root / "build_backend"))
    (archive,) = folder.glob("vitfast-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"vitfast-{vitfast.__version__}"


def _environment(folder: Path, base: str = sys.executable) -> Path:
    """Makes an environment that sees the packages of ``base``, torch among them, except vitfast; returns its Python."""
    _run(base, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin/python"
    purelib = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    find = "import importlib.util as u; print(*(u.find_spec(name).submodule_search_locations[0] for name in NAMES))"
    packages = _run(base, "-c", find.replace("NAMES", "('torch', 'pip')"), cwd=folder).split()
    # behind the new environment's own folder, so that what is installed there comes first
    Path(purelib, "shared.pth").write_text("\n".join(sorted({str(Path(path).parent) for path in packages})) + "\n")
    return python


def _build_wheel(sources: Path, folder: Path, python: str = sys.executable, **environment: str) -> tuple[Path, str]:
    """Builds a wheel; returns it and the output."""
    command = (python, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", folder, ".")
    log = _run(*command, cwd=sources, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel, log


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that VITFAST_LIBRARIES names."""
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="module")
def wheel(sources: Path, libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the source distribution; its build leaves its libraries in ``libraries``."""
    folder = tmp_path_factory.mktemp("wheels")
    return _build_wheel(sources, folder, VITFAST_CUDA="0", VITFAST_LIBRARIES=str(libraries))[0]


def _check(python: Path, cwd: Path) -> list[str]:
    import json

    answer: list[str] = json.loads(_run(python, "-W", "ignore", "-c", CHECK, cwd=cwd).splitlines()[-1])
    return answer


def test_a_wheel_from_the_source_distribution(wheel: Path, tmp_path: Path) -> None:
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"vitfast-{vitfast.__version__}-{version}-{version}-{platform}.whl"

    names = zipfile.ZipFile(wheel).namelist()
    assert {"vitfast/libvitfast_cpu.so", "vitfast/_build_config.py"} <= set(names)
    assert f"vitfast/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert {name.split("/")[0] for name in names} == {"vitfast", f"vitfast-{vitfast.__version__}.dist-info"}
    assert [name for name in names if name.endswith((".cpp", ".cu", ".cuh", ".h", ".o"))] == []
    assert {"vitfast/data/digits.npz", "vitfast/py.typed", "vitfast/__init__.pyi"} <= set(names)
    assert any(name.startswith("vitfast/config/recipes/") and name.endswith(".yaml") for name in names)

    python = _environment(tmp_path / "venv")
    _run(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel, cwd=tmp_path)
    file, kernel, _ = _check(python, tmp_path)
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert kernel == "vitfast"


def _pythons() -> Iterator[str]:
    """This Python, and those on the PATH that have what a build requires."""
    yield sys.executable
    probe = "import ninja, pybind11, setuptools, importlib.util as u; "
    probe += f"assert u.find_spec('torch') and int(setuptools.__version__.split('.')[0]) >= {MIN_SETUPTOOLS}"
    for minor in range(10, 15):
        path = shutil.which(f"python3.{minor}") if minor != sys.version_info.minor else None
        if path and not subprocess.run([path, "-c", probe], stderr=subprocess.DEVNULL, check=False).returncode:
            yield path


def test_libraries_compiled_once_serve_every_python(
    wheel: Path, libraries: Path, sources: Path, tmp_path: Path
) -> None:
    compiled = zipfile.ZipFile(wheel).read("vitfast/libvitfast_cpu.so")
    variables = {"VITFAST_CUDA": "0", "VITFAST_LIBRARIES": str(libraries)}
    for place, base in enumerate(_pythons()):
        folder = tmp_path / str(place)
        again, log = _build_wheel(sources, folder, base, **variables)
        assert "not compiled again" in log
        assert "dispatch.cpp" not in log
        assert zipfile.ZipFile(again).read("vitfast/libvitfast_cpu.so") == compiled
        python = _environment(folder / "venv", base)
        _run(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", again, cwd=folder)
        assert _check(python, folder)[1] == "vitfast"


def test_pure_pytorch(sources: Path, tmp_path: Path) -> None:
    # in isolation: setuptools is all that it needs, and no compiler is looked for
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ".")
    _run(*command, cwd=sources, VITFAST_BUILD="none", CXX="/nowhere/g++")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"vitfast-{vitfast.__version__}-py3-none-any.whl"
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")] == []
    python = _environment(tmp_path / "venv")
    _run(python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel, cwd=tmp_path)
    _, kernel, _ = _check(python, tmp_path)
    assert kernel.startswith("torch: ")


def test_an_editable_installation_compiles_only_what_changed(sources: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "venv")
    install = (python, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--editable", ".")
    _run(*install, cwd=sources, VITFAST_CUDA="0")
    file, kernel, _ = _check(python, tmp_path)
    assert Path(file).is_relative_to(sources)
    assert kernel == "vitfast"
    assert (sources / "vitfast/_build_config.py").exists()

    source = sources / "csrc/cpu/dispatch.cpp"
    source.write_text(source.read_text() + "\n")
    log = _run(*install, cwd=sources, VITFAST_CUDA="0")
    assert "dispatch.cpp" in log
    assert "avx512.cpp" not in log
