"""Which part of the CPU engine takes an accelerated model's time?

    CXXFLAGS=-g1 python setup.py build_ext --inplace
    python benchmarks/cpu_shares.py [key=value …] json=benchmarks/results/cpu_shares-MACHINE.json

Samples the process with Linux's ``perf`` while it classifies random images, and looks up (``nm``, ``addr2line``) the
function of ``csrc/packed`` that each sample is in, inlined functions included. That needs line tables, which ``-g1``
adds to the CPU library. A sample counts for the instruction that the processor waits for. ``--help`` lists the options.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

import vitfast
from vitfast.benchmarking.machine import describe_machine
from vitfast.benchmarking.results import machine_line, markdown_table, write_files
from vitfast.benchmarking.run import torch_threads
from vitfast.benchmarking.run_options import batch_option, check_json_path
from vitfast.cli import run_command
from vitfast.commands.command_options import ENGINE_PRECISIONS
from vitfast.config import load_options, option
from vitfast.errors import UserError
from vitfast.models.registry import resolve_name

LIBRARY = Path(vitfast.__file__).parent / "libvitfast_cpu.so"
SAMPLES_PER_SECOND = 1500

# Functions and classes of csrc. A sample belongs to the first part with a function on its call stack. A test checks
# that each name occurs in csrc.
PARTS: dict[str, tuple[str, ...]] = {
    "packing": ("pack_keys", "pack_values", "pack_key_panels", "pack_value_panels", "load_queries"),
    "softmax": (
        *("exponentiate", "take_some", "take_rest", "has_far", "find_references", "find_factors", "attend_again"),
        *("finish_logits", "upsample_heads", "join_sections", "performer_keys_of", "performer_queries_of"),
    ),
    "attention GEMM": (
        *("LogitSink", "ResultSink", "multiply_keys", "multiply_values", "attend_tile", "multiply_columns"),
    ),
    "LayerNorm": ("normalize_row",),
    "operands": ("convert_row", "quantize_group", "pad_bfloat16", "gather_patch"),
    "activation": ("activate",),
    "epilogue": ("finish_rows",),
    "GEMM": ("multiply_tile", "multiply_by_tiles", "multiply_panel", "open_panel"),
}
OTHER, WAITING = "other", "waiting"


@dataclass
class CpuSharesOptions:
    """Shows which part of the CPU engine takes the time of accelerated models."""

    model: list[str] = option(["vit_base_patch16_224"], "one or more models; see vitfast.list_models()")
    batch: list[int] = batch_option(8)
    precision: list[str] = option(["fp32", "bf16", "int8"], "one or more", choices=ENGINE_PRECISIONS)
    seconds: float = option(10.0, "time for each model, batch and precision", above=0)
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    json: str | None = option(None, "file for the results as JSON; the table is written beside it, as .md")

    def check(self, prefix: str = "") -> None:
        """Checks the options before anything is measured."""
        check_json_path(self.json)
        self.cases()

    def cases(self) -> list[tuple[str, int, str]]:
        """Models, batch sizes and precisions."""
        return list(product(map(resolve_name, self.model), self.batch, self.precision))


def run_cpu_shares(options: CpuSharesOptions) -> int:
    """Samples all cases; returns the exit code.

    Raises:
        UserError: a tool or the library's line tables are missing.
    """
    check_tools()
    with torch_threads(options.threads):
        machine = describe_machine(torch.device("cpu"))
        print(machine_line(machine))
        rows = []
        for model, batch, precision in options.cases():
            shares = sample_model(model, batch, precision, options.seconds)
            rows.append({"model": model, "batch": batch, "precision": precision, "shares": shares})
            print(f"{model}, batch {batch}, {precision}: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
    if options.json is not None:
        write_files({"machine": machine, "rows": rows}, markdown(machine_line(machine), rows), Path(options.json))
    return 0


def check_tools() -> None:
    """Raises UserError if a tool or the library's line tables are missing."""
    for tool in ("perf", "nm", "addr2line", "readelf"):
        try:
            subprocess.run([tool, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise UserError(f"cpu_shares needs Linux's {tool} on the PATH: install perf and binutils") from None
    if not LIBRARY.exists() or ".debug_line" not in _output("readelf", "-SW", str(LIBRARY)):
        raise UserError(f"{LIBRARY.name} has no line tables: CXXFLAGS=-g1 python setup.py build_ext --inplace")


def sample_model(name: str, batch: int, precision: str, seconds: float) -> dict[str, float]:
    """Shares of the threads' time; they add up to 1."""
    source = vitfast.create_model(name).eval()
    model = vitfast.accelerate(source, precision)
    images = torch.randn(batch, source.in_chans, source.img_size, source.img_size)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        for _ in range(3):
            model(images)
        idle = sample(lambda: model(images), samples, seconds)
        counts = count_parts(read_samples(samples))
    total = sum(counts.values())
    shares = {part: (1 - idle) * counts[part] / total for part in (*PARTS, OTHER, WAITING)}
    return shares | {WAITING: shares[WAITING] + idle}


def sample(call: Callable[[], object], path: Path, seconds: float) -> float:
    """Writes perf's samples of repeated calls; returns the share of the threads' time in which they did not run."""
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "-p", str(os.getpid())]
    with subprocess.Popen([*command, "-o", str(path), "--", "sleep", str(seconds)]) as recording:
        wall, cpu = time.perf_counter(), time.process_time()
        while recording.poll() is None:
            call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if recording.returncode != 0:
        raise UserError("perf record failed: its message is above; /proc/sys/kernel/perf_event_paranoid may forbid it")
    return max(0.0, 1 - cpu / wall / torch.get_num_threads())


def read_samples(path: Path) -> list[tuple[str, str]]:
    """Each sample's file and ``symbol+offset``."""
    text = _output("perf", "script", "--no-demangle", "-F", "ip,sym,symoff,dso", "-i", str(path))
    found = (re.fullmatch(r"\s*[0-9a-f]+ (.*) \((.*)\)", line) for line in text.splitlines())
    return [(match[2], match[1]) for match in found if match]


def count_parts(samples: Iterable[tuple[str, str]]) -> Counter[str]:
    """The number of samples in each of ``PARTS``."""
    counts: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for file, place in samples:
        if Path(file).name == LIBRARY.name:
            places[place] += 1
        else:
            counts[WAITING if "gomp" in file or "iomp" in file else OTHER] += 1
    for count, frames in zip(places.values(), look_up(list(places)), strict=True):
        counts[part_of(frames)] += count
    return counts


def look_up(places: Sequence[str]) -> Iterator[list[str]]:
    """The functions around each ``symbol+offset`` of the library, the innermost first."""
    lines = (line.split() for line in _output("nm", "--defined-only", str(LIBRARY)).splitlines())
    symbols = {name: int(address, 16) for address, _, name in lines}
    addresses = []
    for place in places:
        name, _, offset = place.rpartition("+")
        addresses.append(hex(symbols.get(name, 0) + int(offset or "0", 16)))
    text = _output("addr2line", "-e", str(LIBRARY), "-fCia", input="\n".join(addresses))
    for block in re.split(r"^0x[0-9a-f]+\n", text, flags=re.MULTILINE)[1:]:
        yield block.splitlines()[::2]


def part_of(frames: Sequence[str]) -> str:
    """The part of ``PARTS`` that a call stack belongs to."""
    for frame in frames:
        name = re.match(r"[^<(]*?(\w+)[<(]", re.sub(r"__vector\(\d+\)|\(anonymous namespace\)::", "", frame) + "(")
        words = {name[1] if name else frame, *re.findall(r"\w+Sink", frame)}
        for part, functions in PARTS.items():
            if words & set(functions):
                return part
    return OTHER


def markdown(machine: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table of the results folder."""
    parts = [*PARTS, OTHER, WAITING]
    cells = []
    for row in rows:
        title = f"{row['model']}, batch {row['batch']}, {row['precision']}"
        cells.append([title, *(f"{100 * row['shares'][part]:.1f} %" for part in parts)])
    blocks = ["# What an accelerated model's time goes to", machine.replace("\n", "  \n")]
    return "\n\n".join([*blocks, markdown_table(["model", *parts], cells)]) + "\n"


def _output(*command: str, input: str | None = None) -> str:
    return subprocess.run(command, input=input, capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str]) -> int:
    return run_cpu_shares(load_options(CpuSharesOptions, list(arguments), "python benchmarks/cpu_shares.py"))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
