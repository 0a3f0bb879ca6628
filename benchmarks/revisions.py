"""Compares the speed of two checkouts of vitfast in one interleaved run.

    python benchmarks/revisions.py before=../old after=. [key=value …] json=benchmarks/results/revisions-MACHINE.json

Each checkout runs in a separate process, with its libraries built in place (``python setup.py build_ext --inplace``).
A round times every case once in each process, in alternating order; the table shows medians and the median of the
ratios per round. ``--help`` lists the options.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# vitfast is imported within functions only: a worker runs this file with the vitfast of its checkout, maybe an old one.


def main(arguments: Sequence[str]) -> int:
    """Measures and prints the table."""
    from dataclasses import dataclass

    import torch

    from vitfast.benchmarking.machine import describe_machine
    from vitfast.config import load_options, option

    @dataclass
    class RevisionOptions:
        """Compares the speed of two checkouts of vitfast."""

        before: str = option(help="folder of the first checkout")
        after: str = option(".", "folder of the second checkout")
        seconds: float = option(300.0, "time for all rounds", above=0)
        threads: int = option(2, "CPU threads", minimum=1)
        only: str = option("", "measure only the cases whose name contains this text")
        json: str | None = option(None, "file for the results; a table is written beside it, as .md")

    options = load_options(RevisionOptions, list(arguments), "python benchmarks/revisions.py")
    folders = {"before": Path(options.before), "after": Path(options.after)}
    workers = {side: Worker(folder, options.threads, options.only) for side, folder in folders.items()}
    names = workers["before"].names
    samples: dict[str, dict[str, list[float]]] = {name: {"before": [], "after": []} for name in names}
    end, rounds = time.monotonic() + options.seconds, 0
    while time.monotonic() < end or rounds < 3:
        for name in names:
            for side in ("before", "after") if rounds % 2 == 0 else ("after", "before"):
                samples[name][side].append(workers[side].time(name))
        rounds += 1
    rows = {name: summarize(sides) for name, sides in samples.items()}
    machine = describe_machine(torch.device("cpu"))
    machine |= {"threads": options.threads, "rounds": rounds, "load_average": os.getloadavg()[0]}
    revisions = {side: worker.revision for side, worker in workers.items()}
    text = as_markdown(rows, machine, revisions)
    print(text)
    if options.json is not None:
        path = Path(options.json)
        path.write_text(json.dumps({"machine": machine, "revisions": revisions, "cases": rows}, indent=1) + "\n")
        path.with_suffix(".md").write_text(text + "\n")
    return 0


class Worker:
    """A process that imports one checkout and runs a case when its name is written to it."""

    def __init__(self, checkout: Path, threads: int, only: str) -> None:
        if not (checkout / "vitfast" / "libvitfast_cpu.so").exists():
            from vitfast.errors import UserError

            raise UserError(f"{checkout}: no built checkout of vitfast; run python setup.py build_ext --inplace there")
        git = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        self.revision = git.stdout.strip() or "unknown"
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(threads), only],
            env=os.environ | {"PYTHONPATH": str(checkout.resolve()), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = json.loads(self._read())

    def time(self, name: str) -> float:
        """Returns the seconds of one run of a case."""
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of revision {self.revision} ended with exit code {self.process.wait()}")
        return line


def run_worker(threads: int, only: str) -> None:
    """Serves ``Worker``: prints the names of the cases, then the seconds of each requested one."""
    import torch

    torch.set_num_threads(threads)
    cases = {name: run for name, run in build_cases().items() if only in name}
    for run in cases.values():  # packs, compiles and allocates
        run()
    print(json.dumps(list(cases)), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        cases[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def build_cases() -> dict[str, Callable[[], Any]]:
    """Returns the measured calls by name; they use the public API only, which both checkouts have."""
    import torch

    import vitfast
    from vitfast import ops

    def model(name: str) -> torch.nn.Module:
        torch.manual_seed(0)
        return vitfast.create_model(name, num_classes=1000).eval()

    def inference(network: torch.nn.Module, batch: int, repeat: int = 1) -> Callable[[], None]:
        images = torch.randn(batch, 3, 224, 224)

        def run() -> None:
            with torch.inference_mode():
                for _ in range(repeat):
                    network(images)

        return run

    def training_step(network: torch.nn.Module, batch: int) -> Callable[[], None]:
        images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 1000, (batch,))

        def run() -> None:
            network.train().zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()

        return run

    cases: dict[str, Callable[[], Any]] = {}
    shapes = (("vit_tiny_patch16_224", 1, 10), ("vit_tiny_patch16_224", 32, 1), ("vit_base_patch16_224", 8, 1))
    for name, batch, repeat in shapes:
        for precision in ("fp32", "bf16", "int8"):
            fast = vitfast.accelerate(model(name), precision=precision)
            cases[f"accelerate, {name}, batch {batch}, {precision}"] = inference(fast, batch, repeat)
    fast = vitfast.accelerate(model("dvt_t2t_vit_12"), precision="fp32")
    cases["accelerate, dvt_t2t_vit_12, batch 8, fp32"] = inference(fast, 8)
    for name in ("vit_tiny_patch16_224", "convit_tiny", "t2t_vit_7", "dvt_t2t_vit_12"):
        cases[f"inference, {name}, batch 8"] = inference(model(name), 8)
    cases["training step, vit_tiny_patch16_224, batch 8"] = training_step(model("vit_tiny_patch16_224"), 8)
    for label, config in (("FP16_32", vitfast.FP16_32Config()), ("FP16_16", vitfast.FP16_16Config())):
        quantized = model("vit_tiny_patch16_224")
        vitfast.quantize_(quantized, config)
        cases[f"quantized {label}, vit_tiny_patch16_224, batch 8"] = inference(quantized, 8)
        trained = model("vit_tiny_patch16_224")
        vitfast.quantize_(trained, vitfast.QATConfig(config, step="prepare"))
        cases[f"QAT step {label}, vit_tiny_patch16_224, batch 8"] = training_step(trained, 8)
    qkv, x = torch.randn(8, 197, 3, 12, 64), torch.randn(8, 197, 768)
    weight, bias = torch.ones(768), torch.zeros(768)
    cases["attention_packed, N = 197, D = 64, batch 8"] = lambda: [ops.attention_packed(qkv) for _ in range(10)]
    cases["layer_norm, C = 768, batch 8"] = lambda: [ops.layer_norm(x, weight, bias) for _ in range(20)]
    return cases


def summarize(sides: dict[str, list[float]]) -> dict[str, float]:
    """Medians in ms, and quartiles of before / after per round (above 1: the second checkout is faster)."""
    ratios = [before / after for before, after in zip(sides["before"], sides["after"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    medians = {f"{side}_ms": 1000 * statistics.median(times) for side, times in sides.items()}
    return medians | {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}


def as_markdown(rows: dict[str, dict[str, float]], machine: dict[str, Any], revisions: dict[str, str]) -> str:
    """The results as a Markdown table."""
    lines = [
        f"# vitfast {revisions['before']} (before) and {revisions['after']} (after)",
        "",
        f"{machine['cpu']['model']}, {machine['threads']} threads, {machine['rounds']} rounds, load average "
        f"{machine['load_average']:.2f} at the end, torch {machine['packages']['torch']}",
        "",
        "Median time, and the median (quartiles) of before / after per round: above 1 the second is faster.",
        "",
        "| case | before, ms | after, ms | before / after |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        lines.append(f"| {name} | {row['before_ms']:.4g} | {row['after_ms']:.4g} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        run_worker(int(sys.argv[2]), sys.argv[3])
    else:
        from vitfast.cli import run_command

        sys.exit(run_command(main, sys.argv[1:]))
