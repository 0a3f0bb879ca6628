"""``import vitfast`` imports torch and no other large package, and needs no compiler."""

from __future__ import annotations

from support.subprocesses import run_python

FORBIDDEN = {
    "torchvision",
    "matplotlib",
    "omegaconf",
    "torchmetrics",
    "qtorch",
    "timm",
    "sklearn",
    "transformers",
    "cv2",
}
PROGRAM = """
import contextlib, io, sys
import torch
before, said = set(sys.modules), io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    import vitfast, vitfast.ops
vitfast.build_info(), vitfast.FloatFormat
assert not said.getvalue(), said.getvalue()
print(*(set(sys.modules) - before))
"""


def test_import_brings_no_large_package_needs_no_compiler_and_says_nothing() -> None:
    finished = run_python("-c", PROGRAM, PATH="/nonexistent", CXX="/nonexistent", CC="/nonexistent")
    assert (finished.returncode, finished.stderr) == (0, "")
    brought = {module.split(".")[0] for module in finished.stdout.split()}
    assert "vitfast" in brought
    assert not brought & FORBIDDEN, f"import vitfast imports {brought & FORBIDDEN}"
