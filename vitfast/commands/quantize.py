"""``vitfast quantize``: quantizes a checkpoint.

Measures accuracy in float32 and in the format, prints the error of every layer, and writes a checkpoint whose weights
are stored in 8 or 16 bits. ``evaluate``, ``predict`` and ``visualize`` load it like any other. A checkpoint of
quantization-aware training (``python -m vitfast.train quantize.format=FP16_32``) records its format itself.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import vitfast
from vitfast.commands.command_options import PLOT, REPORT, QuantizeOptions
from vitfast.data import ImageDataset
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.checkpoint_data import (
    data_of_checkpoint,
    dataset_of_split,
    loader_of_split,
)
from vitfast.evaluation.evaluate import CLASS_METRICS, Evaluation, classification_report, evaluate_model
from vitfast.evaluation.number_format import format_overrides, number_format
from vitfast.evaluation.plots import draw_quantization
from vitfast.models import ImageModel
from vitfast.quantization.calibrate import calibrate, calibrated_layers
from vitfast.quantization.configs import QATConfig
from vitfast.quantization.quantize import describe_quantization, is_converted, quantize_, quantized_modules
from vitfast.quantization.report import LayerError, QuantizationReport, quantization_report
from vitfast.runs.trained_model import TrainedModel, check_target, write_quantized_checkpoint
from vitfast.tasks import create_plain_task
from vitfast.text_table import percent, text_table
from vitfast.weights.manifest import MODEL_FILE


def run(options: QuantizeOptions) -> int:
    """Runs the command; returns the exit code."""
    trained = _load(options)
    described = trained.describe()
    if options.format is not None:
        number_format(options), format_overrides(options)  # an invalid one is reported before any computation
    images = dataset_of_split(trained, options.data, options.split)
    model, reference = trained.model, _unquantized(trained)
    output = _output(options, trained)
    check_target(output)

    _quantize(model, options, trained)  # before the evaluation, so that its errors come early
    numbers = describe_quantization(model)
    batches = partial(_batches, trained, options, images)
    before = evaluate_model(trained, batches("float32"), task=create_plain_task(reference))
    after = evaluate_model(trained, batches(numbers))
    some = batches("layers", options.report_images)
    report = quantization_report(model, some, batches=some.total, reference=reference)
    metrics = {"split": options.split, "float32": before.metrics(), "quantized": after.metrics()}
    write_quantized_checkpoint(output, trained, metrics)

    float32_bytes = sum(tensor.numel() * tensor.element_size() for tensor in reference.state_dict().values())
    sizes = [float32_bytes, (output / MODEL_FILE).stat().st_size]
    rows = classification_report(after, trained.class_names)
    cells = [(row["class"], f"{row['n']:,}", *(percent(row[name]) for name in CLASS_METRICS)) for row in rows]
    folder = Path(options.report) if options.report is not None else output
    _write_report(folder, numbers, report, {**metrics, "bytes": sizes, "per_class": rows}, trained)
    parts = [
        f"model    {described}\nnumbers  {numbers}\n"
        f"split    {options.split}, {after.images:,} of {len(images):,} images",
        _accuracy_table(before, after, sizes, numbers),
        _layer_table(report),
        *([text_table(("class", "n", "precision", "recall", "F1"), cells)] if options.per_class else []),
        f"The quantized checkpoint is {output}; evaluate, predict and visualize load it like any other checkpoint.\n"
        f"The table of layers is drawn in {folder / PLOT}, all results are in {folder / REPORT}.",
    ]
    print("\n\n".join(parts))
    return 0


def _layer_table(report: QuantizationReport) -> str:
    header = ("layer", "signal/noise", "saturated", "to zero", "not finite", "weights saturated", "to zero")
    rows = [_layer_row(layer.name or "(model)", layer) for layer in report.layers]
    title = f"layers, on {report.num_images:,} images: top-1 is the same for {percent(report.top1_agreement)}"
    return f"{title}\n\n{text_table(header, [*rows, _layer_row('logits', report.output)])}"


def _load(options: QuantizeOptions) -> TrainedModel:
    trained = options.load()
    quantized = quantized_modules(trained.model)
    if is_converted(trained.model):
        raise UserError(
            f"checkpoint={options.checkpoint} is already quantized ({describe_quantization(trained.model)}); "
            "quantize its source instead"
        )
    if options.quantized_ckpt is not None and options.quantized_ckpt != bool(quantized):
        says = "is of quantization-aware training" if quantized else "is of training in float32"
        raise UserError(f"quantized_ckpt={options.quantized_ckpt}, but checkpoint={options.checkpoint} {says}")
    if quantized and (options.format is not None or options.overrides):
        prepared = {module.quantization.config for module in quantized.values()} - {None}
        if options.overrides or prepared != {number_format(options)}:
            raise UserError(
                f"format={options.format}, but the run was trained for {describe_quantization(trained.model)}; "
                "leave out format and overrides, which the checkpoint records"
            )
    if not quantized and options.format is None:
        raise UserError("format=… is missing, for example format=FP16_32; format=? lists all formats")
    return trained


def _output(options: QuantizeOptions, trained: TrainedModel) -> Path:
    if options.output is not None:
        return Path(options.output)
    name = options.format
    if name is None:  # of quantization-aware training
        name = describe_quantization(trained.model).partition(",")[0].replace(" ", "_")
    source = trained.checkpoint
    return source.with_name(f"{source.name if source.is_dir() else source.stem}_{name.lower()}")


def _unquantized(trained: TrainedModel) -> ImageModel:
    if not quantized_modules(trained.model):
        return copy.deepcopy(trained.model)
    model = vitfast.create_model(trained.name, **trained.manifest["model"]["fields"])
    model.load_state_dict(trained.model.state_dict())
    return model.eval().to(trained.device)


def _quantize(model: ImageModel, options: QuantizeOptions, trained: TrainedModel) -> None:
    if quantized_modules(model):
        quantize_(model, QATConfig(step="convert"))
        return
    quantize_(model, number_format(options), overrides=format_overrides(options))
    if calibrated_layers(model):
        images = dataset_of_split(trained, options.data, options.calibration_split)
        some = _batches(trained, options, images, "calibration", options.calibration_images)
        calibrate(model, some, batches=some.total)


def _batches(
    trained: TrainedModel, options: QuantizeOptions, images: ImageDataset, title: str, limit: int | None = None
) -> Any:
    """Returns batches with a progress bar of their number: all images in order, or about ``limit`` random ones."""
    loader = loader_of_split(trained, options.data, images, seed=options.seed, shuffle=limit is not None)
    batches = len(loader)
    if limit is not None:
        batches = min(batches, math.ceil(limit / data_of_checkpoint(trained, options.data).batch_size))
    return tqdm(loader, desc=title, total=batches, unit="batch", leave=False, disable=not sys.stderr.isatty())


def _accuracy_table(before: Evaluation, after: Evaluation, sizes: list[int], numbers: str) -> str:
    rows = [
        (
            name,
            percent(one.top1),
            percent(one.top5),
            f"{one.loss:.4f}",
            *(percent(top1) for top1 in one.exits or []),
            f"{size / 1e6:.2f} MB",
        )
        for name, one, size in (("float32", before, sizes[0]), (numbers, after, sizes[1]))
    ]
    exits = (f"exit {number}" for number in range(1, len(after.exits or []) + 1))
    return text_table(("numbers", "top-1", "top-5", "loss", *exits, "weights"), rows)


def _layer_row(name: str, layer: LayerError) -> tuple[str, ...]:
    ratio = layer.signal_to_noise_db
    shown = "exact" if ratio == math.inf else "not finite" if not math.isfinite(ratio) else f"{ratio:.1f} dB"
    activations, weights = (
        (percent(one.saturated_share), percent(one.flushed_share), f"{one.non_finite:,}") if one.values else ("-",) * 3
        for one in (layer.activations, layer.weights)
    )
    return (name, shown, *activations, *weights[:2])


def _write_report(
    folder: Path, numbers: str, report: QuantizationReport, metrics: dict[str, Any], trained: TrainedModel
) -> None:
    layers = [{**asdict(layer), "signal_to_noise_db": _finite(layer.signal_to_noise_db)} for layer in report.layers]
    content = {
        "checkpoint": str(trained.checkpoint),
        "model": trained.name,
        "numbers": numbers,
        **metrics,
        "report_images": report.num_images,
        "top1_agreement": report.top1_agreement,
        "logits_signal_to_noise_db": _finite(report.output.signal_to_noise_db),
        "layers": layers,
    }
    with explain_os_error(f"report={folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draw_quantization(report, folder / PLOT, f"{trained.name}: {numbers}")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
