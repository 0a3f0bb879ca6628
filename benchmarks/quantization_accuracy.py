"""What does each number format cost in accuracy, after training and in quantization-aware training?

    python benchmarks/quantization_accuracy.py
    python benchmarks/quantization_accuracy.py name=cifar10 run=runs/FOLDER aware=[FP16_16,INT8] aware_steps=300

Without options: the packaged digits, three seeds, all formats; about 15 minutes on one core. Trains float32 models,
quantizes them, and continues their training in each format (and as long in float32, to compare with). An interrupted
run continues where it stopped. ``--help`` lists the options.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitfast.benchmarking.machine import describe_machine
from vitfast.benchmarking.results import markdown_table
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.data import build_loader
from vitfast.device import select_device
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.checkpoint_data import (
    EvaluateDataOptions,
    data_of_checkpoint,
    dataset_of_split,
    loader_of_split,
)
from vitfast.evaluation.evaluate import evaluate
from vitfast.models import ImageModel
from vitfast.quantization.calibrate import calibrate
from vitfast.quantization.named_configs import format_names, named_config
from vitfast.quantization.quantize import quantize_
from vitfast.runs.run_directory import CONFIG, METRICS
from vitfast.runs.trained_model import TrainedModel, load_trained_model
from vitfast.tasks import create_plain_task
from vitfast.training.training_run import run_training
from vitfast.weights.checkpoint import latest_checkpoint

FORMAT_VERSION = 1
FLOAT32, TRAINED_ON = "float32", "float32, trained on as long"
POST_TRAINING, AWARE = "post-training", "aware"
CALIBRATION_IMAGES = 512


@dataclass
class AccuracyOptions:
    """Trains float32 models (or takes one), quantizes them, and continues their training in each format."""

    name: str = option("digits", "name of the result: quantization_accuracy-NAME")
    recipe: str = option("vit_digits", "recipe of the float32 models")
    run: str | None = option(
        None, "a finished run instead; the seeds are then used for quantization-aware training only"
    )
    seeds: list[int] = option([0, 1, 2], "seeds, one model each")
    formats: list[str] = option([], "post-training formats; empty: all named formats")
    aware: list[str] | None = option(None, "formats of quantization-aware training; null: as formats; []: none")
    aware_epochs: int = option(5, "epochs of quantization-aware training; see aware_steps", minimum=1)
    aware_steps: int | None = option(None, "steps of quantization-aware training instead", minimum=1)
    aware_lr: float = option(3e-4, "initial learning rate of quantization-aware training, with cosine decay", above=0)
    split: str = option("test", "split that is measured", choices=["train", "val", "test"])
    runs: str = option("runs/quantization_accuracy", "folder of the runs; finished ones are not repeated")
    json: str | None = option(None, "file for the results; null: benchmarks/results/quantization_accuracy-NAME.json")
    train: list[str] = option([], "other options of training: [data.root=FOLDER]")
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    data: EvaluateDataOptions = field(default_factory=EvaluateDataOptions)


def run_accuracy_benchmark(options: AccuracyOptions) -> int:
    """Measures everything that is not in the results file yet, and prints the table; returns the exit code.

    Raises:
        UserError: a format or a run does not exist, or training fails.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    formats = options.formats or format_names()
    aware = formats if options.aware is None else options.aware
    for name in (*formats, *aware):
        named_config(name)  # fails before hours of training
    path = Path(options.json or f"benchmarks/results/quantization_accuracy-{options.name}.json")
    result = Results(path, options, device)
    for seed in options.seeds:
        run = Path(options.run) if options.run is not None else _train_float32(options, seed)
        for kind, name, numbers in _after_training(run, formats, options, device, result, seed):
            result.add(seed, kind, name, numbers)
        for kind, name in [(TRAINED_ON, ""), *((AWARE, name) for name in aware)]:
            if not result.has(seed, kind, name) and aware:
                result.add(seed, kind, name, _train_on(run, name, options, seed))
    print(result.table())
    print(f"\nwritten to {path} and {path.with_suffix('.md')}")
    return 0


class Results:
    """The results so far, which are written after each measurement."""

    def __init__(self, path: Path, options: AccuracyOptions, device: torch.device) -> None:
        self.path, self.options = path, options
        self.machine = describe_machine(device)
        self.measured: list[dict[str, Any]] = []
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                same = content["options"] == self._options()
                self.measured = content["figures"] if same else []
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is not a result of this benchmark ({error!r}); move it away") from error
            if not same:
                raise UserError(f"{path} was measured with other options; give another json=, or move it away")

    def _options(self) -> dict[str, Any]:
        """The options that affect the numbers."""
        names = ("name", "recipe", "aware_epochs", "aware_steps", "aware_lr", "split")
        return {name: value for name, value in asdict(self.options).items() if name in names}

    def has(self, seed: int, kind: str, name: str) -> bool:
        """Whether something has been measured."""
        return any((one["seed"], one["kind"], one["format"]) == (seed, kind, name) for one in self.measured)

    def add(self, seed: int, kind: str, name: str, numbers: dict[str, Any]) -> None:
        """Adds a measurement and writes the files."""
        self.measured.append({"seed": seed, "kind": kind, "format": name, **numbers})
        print(f"seed {seed}  {kind:15}  {name:22}  top-1 {numbers['top1']:.2%}  {numbers['seconds']:.0f} s", flush=True)
        content = {
            "format_version": FORMAT_VERSION,
            "machine": self.machine,
            "options": self._options(),
            "figures": self.measured,
        }
        with explain_os_error(f"{self.path} cannot be written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            self.path.with_suffix(".md").write_text(self.table() + "\n", encoding="utf-8")

    def table(self) -> str:
        """Mean and standard deviation of top-1 over the seeds, and the mean difference from float32."""
        base = self._by_seed(FLOAT32, "")
        control = self._by_seed(TRAINED_ON, "")
        names = list(dict.fromkeys(one["format"] for one in self.measured if one["format"]))
        intro = (
            f"Top-1 on the {self.options.split} images in %, mean (standard deviation) over {_count(base)}; "
            "differences in points, per seed. *After training*: a float32 model is quantized. *Trained on*: its "
            f"training continues for {_length(self.options)} in that format; in float32: {_mean(control)}."
        )
        header = ("numbers", "after training", "difference", "trained on", "difference")
        rows = [("float32", _mean(base), "", _mean(control), _difference(control, base))]
        for name in names:
            after, aware = self._by_seed(POST_TRAINING, name), self._by_seed(AWARE, name)
            rows.append((name, _mean(after), _difference(after, base), _mean(aware), _difference(aware, base)))
        title = f"# Accuracy of number formats: {self.options.name}"
        return "\n\n".join([title, intro, markdown_table(header, rows)])

    def _by_seed(self, kind: str, name: str) -> dict[int, float]:
        return {one["seed"]: 100 * one["top1"] for one in self.measured if (one["kind"], one["format"]) == (kind, name)}


def _train_float32(options: AccuracyOptions, seed: int) -> Path:
    run = Path(options.runs) / f"{options.name}-seed{seed}"
    _train(run, [f"recipe={options.recipe}", f"seed={seed}", *options.train])
    return run


def _train_on(run: Path, name: str, options: AccuracyOptions, seed: int) -> dict[str, Any]:
    """Continues a float32 run in a format ('' for float32); returns its last test results."""
    start = time.perf_counter()
    checkpoint = latest_checkpoint(run)
    length = f"epochs{options.aware_epochs}" if options.aware_steps is None else f"steps{options.aware_steps}"
    target = Path(options.runs) / f"{options.name}-seed{seed}-{name or 'float32'}-{length}-lr{options.aware_lr:g}"
    arguments = [
        f"recipe={run / CONFIG}",
        *options.train,
        f"seed={seed}",
        f"model.checkpoint={checkpoint}",
    ]
    arguments += [f"optim.lr={options.aware_lr}", "optim.lr_batch=null", "schedule.min_lr=0", "model.zero_head=false"]
    arguments += [
        "schedule.name=cosine",
        "schedule.warmup_epochs=0",
        "schedule.warmup_steps=0",
        "train.checkpoint_every_epochs=1000",
    ]
    if options.aware_steps is None:
        arguments += [f"schedule.epochs={options.aware_epochs}", "schedule.steps=null"]
    else:
        arguments += [f"schedule.steps={options.aware_steps}"]
    if name:
        arguments += [f"quantize.format={name}"]
    lines = _train(target, arguments)
    numbers = lines[options.split]
    return {"top1": numbers["top1"], "loss": numbers["loss"], "seconds": time.perf_counter() - start}


def _train(run: Path, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Trains unless the run has finished; returns the last metrics of each split."""
    metrics = run / METRICS
    if not (metrics.exists() and '"test"' in metrics.read_text()):
        resume = [f"run_dir={run}", "train.resume=auto"]
        with redirect_stdout(sys.stderr):  # keeps training's output out of the table
            code = run_training([*arguments, *resume])
        if code:
            raise UserError(f"training in {run} failed, see above")
    return {line["split"]: line for line in map(json.loads, metrics.read_text().splitlines())}


def _after_training(
    run: Path, formats: list[str], options: AccuracyOptions, device: torch.device, result: Results, seed: int
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    missing = [(FLOAT32, ""), *((POST_TRAINING, name) for name in formats)]
    missing = [(kind, name) for kind, name in missing if not result.has(seed, kind, name)]
    if options.run is not None and seed != options.seeds[0]:
        # all seeds share one float32 model
        first = {(one["kind"], one["format"]): one for one in result.measured if one["seed"] == options.seeds[0]}
        yield from (
            (kind, name, {key: first[kind, name][key] for key in ("top1", "loss", "seconds")}) for kind, name in missing
        )
        return
    trained = load_trained_model(str(run), device=device) if missing else None
    for kind, name in missing:
        assert trained is not None
        model = copy.deepcopy(trained.model)
        if name:
            _quantize(model, name, trained, options)
        yield kind, name, _measure(model, trained, options, device)


def _quantize(model: ImageModel, name: str, trained: TrainedModel, options: AccuracyOptions) -> None:
    quantize_(model, named_config(name))
    data, images = data_of_checkpoint(trained, options.data), dataset_of_split(trained, options.data, "train")
    shuffled = build_loader(
        images, batch_size=data.batch_size, workers=data.workers, seed=0, epoch=0, shuffle=True, drop_last=False
    )
    calibrate(model, shuffled, batches=-(-CALIBRATION_IMAGES // data.batch_size))


def _measure(
    model: ImageModel, trained: TrainedModel, options: AccuracyOptions, device: torch.device
) -> dict[str, Any]:
    start = time.perf_counter()
    evaluation = evaluate(
        create_plain_task(model),
        loader_of_split(trained, options.data, options.split),
        num_classes=len(trained.class_names),
        num_exits=model.num_exits,
        device=device,
    )
    assert evaluation is not None  # only a stop request returns None
    return {"top1": evaluation.top1, "loss": evaluation.loss, "seconds": time.perf_counter() - start}


def _mean(by_seed: dict[int, float]) -> str:
    values = list(by_seed.values())
    if not values:
        return "-"
    spread = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _difference(by_seed: dict[int, float], base: dict[int, float]) -> str:
    differences = [value - base[seed] for seed, value in by_seed.items() if seed in base]
    return f"{statistics.mean(differences):+.2f}" if differences else "-"


def _count(by_seed: dict[int, float]) -> str:
    return f"{len(by_seed)} seed{'s' if len(by_seed) != 1 else ''}"


def _length(options: AccuracyOptions) -> str:
    if options.aware_steps is not None:
        return f"{options.aware_steps:,} steps"
    return f"{options.aware_epochs} epoch{'s' if options.aware_epochs != 1 else ''}"


def main(arguments: Sequence[str]) -> int:
    return run_accuracy_benchmark(
        load_options(AccuracyOptions, list(arguments), "python benchmarks/quantization_accuracy.py")
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
