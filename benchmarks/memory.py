"""How much memory does it take to load a model from a file and to run one image?

    python benchmarks/memory.py json=benchmarks/results/memory-MACHINE.json

Every engine loads its own file in a new process, which imports nothing else. Anonymous memory is what the process has
allocated; pages of a mapped file are not part of it, since the system can drop and read them again at any time. Linux
only. ``--help`` lists the options.
"""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_model

import vitfast
from vitfast.benchmarking.machine import describe_machine
from vitfast.benchmarking.model_cases import seeded_model
from vitfast.benchmarking.peers import Unavailable, import_peer, timm_model
from vitfast.benchmarking.results import machine_line, markdown_table, write_files
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.models import ImageModel

MIB = 1 << 20
SAMPLE_S = 0.005


@dataclass
class MemoryOptions:
    """Compares the memory of engines."""

    model: str = option("vit_large_patch16_224", "model, with random weights")
    json: str | None = option(None, "file for the results, and its folder")


@dataclass(frozen=True)
class Loading:
    """An engine: the file that it loads, what it imports, and how it loads the file at ``path`` and runs ``images``."""

    file: str
    imports: str
    load: str
    run: str


_ONNXRUNTIME = (
    "import onnxruntime",
    "session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])",
    "session.run(None, {session.get_inputs()[0].name: images})",
)
_OPENVINO = (
    "import openvino",
    "network = openvino.compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'})",
    "network([images])",
)
_TORCH = (
    "import timm, torch\nfrom safetensors.torch import load_model",
    "with torch.device('meta'):\n    model = timm.create_model(name)\n"
    "model = model.to_empty(device='cpu').eval()\nload_model(model, path)",
    "with torch.inference_mode():\n    model(torch.from_numpy(images))",
)
ENGINES = {
    **{
        f"vitfast, {precision}": Loading(
            "model.vit",
            "import torch, vitfast",
            f"model = vitfast.load(path, {precision!r})",
            "model(torch.from_numpy(images))",
        )
        for precision in ("fp32", "bf16", "int8")
    },
    "PyTorch, fp32": Loading("model.safetensors", *_TORCH),
    "ONNX Runtime, fp32": Loading("model.onnx", *_ONNXRUNTIME),
    "ONNX Runtime, int8": Loading("int8.onnx", *_ONNXRUNTIME),
    "OpenVINO, fp32": Loading("model.xml", *_OPENVINO),
    "OpenVINO, int8": Loading("int8.xml", *_OPENVINO),
}


def write_model_files(model: ImageModel, folder: Path) -> None:
    """Writes the files of all engines."""
    images = torch.randn(4, 3, model.img_size, model.img_size)
    vitfast.export(vitfast.accelerate(model), folder / "model.vit")
    save_model(timm_model(model), str(folder / "model.safetensors"))
    vitfast.export(model, folder / "model.onnx")
    vitfast.export(model, folder / "int8.onnx", images=images, int8=True)
    try:
        openvino = import_peer("openvino")
    except Unavailable:
        return  # its rows will say so
    for path in (folder / "model.onnx", folder / "int8.onnx"):
        openvino.save_model(openvino.Core().read_model(path), path.with_suffix(".xml"), compress_to_fp16=False)


def measure(engine: Loading, name: str, size: int, path: Path) -> dict[str, float]:
    """Runs an engine in a new process.

    Returns:
        In MiB: what the libraries allocate, and beside it the largest anonymous memory and that after a run; and the
        largest resident size, with libraries and mapped files.

    Raises:
        Unavailable: the engine cannot load or run the file; the message says why.
    """
    pause = "print(flush=True); sys.stdin.readline()"
    program = f"""import numpy, sys
path, name, images = *sys.argv[1:], numpy.zeros((1, 3, {size}, {size}), numpy.float32)
{engine.imports}
{pause}
{engine.load}
{engine.run}
{pause}"""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
        ) as process,
    ):
        try:
            libraries = _largest_until_pause(process)["RssAnon"]
            process.stdin.write(b"\n")  # type: ignore[union-attr]
            largest = _largest_until_pause(process)
            after = _status(process.pid)
        except EOFError:
            errors.seek(0)
            raise Unavailable(errors.read().decode().strip().rpartition("\n")[2]) from None
        finally:
            process.kill()
    return {
        "libraries": libraries,
        "peak": largest["RssAnon"] - libraries,
        "after": after["RssAnon"] - libraries,
        "resident": largest["VmHWM"],
    }


def _largest_until_pause(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Returns the largest values of ``_status`` until the process waits for input.

    Raises:
        EOFError: it has ended.
    """
    largest: dict[str, float] = {}
    while True:
        is_waiting = bool(select.select([process.stdout], [], [], SAMPLE_S)[0])
        if is_waiting and not process.stdout.read(1):  # type: ignore[union-attr]
            raise EOFError
        for key, value in _status(process.pid).items():
            largest[key] = max(value, largest.get(key, 0.0))
        if is_waiting:
            return largest


def _status(pid: int) -> dict[str, float]:
    """Resident memory of a process in MiB, by the names of Linux's proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[key].split()[0]) / 1024 for key in ("RssAnon", "VmHWM")}


def main(arguments: Sequence[str]) -> int:
    options = load_options(MemoryOptions, list(arguments), "python benchmarks/memory.py")
    model = seeded_model(options.model)
    machine = describe_machine(torch.device("cpu"))
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model_files(model, folder)
        for title, engine in ENGINES.items():
            try:
                rows[title] = measure(engine, options.model, model.img_size, folder / engine.file)
            except Unavailable as reason:
                print(f"{title}: {reason}", file=sys.stderr)
                continue
            print(title, {key: round(value) for key, value in rows[title].items()}, flush=True)
    header = ["MiB", "libraries", "peak", "after a run", "peak with libraries and mapped files"]
    table = markdown_table(
        header, [[title, *(f"{value:.0f}" for value in row.values())] for title, row in rows.items()]
    )
    text = f"# Memory of {options.model}: loading a file and running one image\n\n{machine_line(machine)}\n\n{table}\n"
    print(text)
    if options.json:
        write_files({"machine": machine, "model": options.model, "engines": rows}, text, Path(options.json))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
