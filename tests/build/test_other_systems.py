"""macOS and Windows, simulated: the build backend there, and pure PyTorch without what only POSIX systems have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

# setup.py and the backend read sys.platform when they run; setuptools, imported before, stays that of this system
BUILD = """
import sys
import setuptools.command.build_ext
import vitfast_build.backend as backend
sys.platform = sys.argv[1]
assert backend.get_requires_for_build_wheel() == []
backend.build_wheel(sys.argv[2])
"""

# The modules of vitfast get these standard modules as Windows has them; other packages keep those of this system.
# Windows opens no folders, flushes only files that are open for writing, and its default encoding is not UTF-8.
PROGRAM = """
import builtins, fcntl, multiprocessing, os, signal, sys, types, warnings

NOT_ON_WINDOWS = set('''
    O_DIRECTORY chown fchmod fork getegid geteuid getgid getloadavg getpgid getuid killpg mkfifo nice pread pwrite
    sched_getaffinity setsid statvfs sysconf uname wait
    SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIG_BLOCK SIG_SETMASK SIG_UNBLOCK alarm pause
    pthread_kill pthread_sigmask setitimer sigwait
'''.split())
MISSING = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios"}

def as_on_windows(module, **replaced):
    copy = types.ModuleType(module.__name__)
    vars(copy).update({name: value for name, value in vars(module).items() if name not in NOT_ON_WINDOWS}, **replaced)
    return copy

def open_no_folder(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os.open(path, *arguments, **options)

def flush_what_is_writable(descriptor):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    os.fsync(descriptor)

WINDOWS = {"os": as_on_windows(os, open=open_no_folder, fsync=flush_what_is_writable), "signal": as_on_windows(signal)}
import_module = builtins.__import__

def import_as_on_windows(name, globals=None, *arguments, **options):
    if (globals or {}).get("__name__", "").startswith("vitfast"):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in WINDOWS:
            return WINDOWS[name]
    return import_module(name, globals, *arguments, **options)

builtins.__import__ = import_as_on_windows
warnings.filterwarnings("error", category=EncodingWarning, module="vitfast")

if __name__ == "__main__":  # a worker of the loader imports this file
    multiprocessing.set_start_method("spawn")
    import vitfast.cli
    vitfast.__path__[:] = [sys.argv[1]]  # without the libraries of an installed vitfast
    assert vitfast.build_info()["cpu"]["instruction_set"] == "none: pure PyTorch"
    for command in (
        "train schedule.epochs=1 schedule.warmup_epochs=0 run_dir=run train.device=cpu",
        "evaluate checkpoint=run data.workers=1",
        "predict checkpoint=run images=run/samples",
    ):
        assert vitfast.cli.main(command.split()) == 0, command
"""


@pytest.fixture
def package(root: Path, tmp_path: Path) -> Path:
    """A copy of what a wheel is built from, without compiled libraries."""
    without = shutil.ignore_patterns("*.so", "_build_config.py", "__pycache__")
    for folder in ("vitfast", "build_backend"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=without)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / file, tmp_path)
    return tmp_path


def _run(folder: Path, *arguments: str | Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.usefixtures("clean_environment")
def test_the_backend_builds_the_pure_wheel_and_says_so(package: Path, system: str) -> None:
    output = _run(package, "-c", BUILD, system, package, PYTHONPATH=str(package / "build_backend"))
    assert f"nothing compiled (the kernels need Linux, and this is {system}): correct, but slow" in output
    (wheel,) = package.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    files = zipfile.ZipFile(wheel)
    assert [name for name in files.namelist() if name.endswith(".so")] == []
    assert f"this is {system}" in files.read("vitfast/_build_config.py").decode()


@pytest.mark.slow
def test_training_evaluation_and_prediction_without_posix(package: Path) -> None:
    program = package / "program.py"
    program.write_text(PROGRAM)
    output = _run(package, program, package / "vitfast", PYTHONIOENCODING="cp1252", PYTHONWARNDEFAULTENCODING="1")
    assert "top-1" in output
