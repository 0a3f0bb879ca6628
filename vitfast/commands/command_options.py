"""The options of all commands but ``train``, whose options are ``vitfast.config.schema.Config``.

``--help`` and errors in the arguments need this module only: it must not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from vitfast.benchmarking.run_options import ModelRunOptions, seconds_option
from vitfast.config import option
from vitfast.config.data_schema import EvaluateDataOptions, ForeignDataOptions
from vitfast.config.schema import WEIGHTS, NumberFormatOptions
from vitfast.errors import UserError

if TYPE_CHECKING:
    import torch

    from vitfast.runs.trained_model import TrainedModel

PRECISIONS = ("fp32", "bf16", "fp16")
ACCELERATED_PRECISIONS = ("fp32", "bf16", "fp16", "fp16_32", "fp16_16", "int8", "fp8")
CHECKPOINT_HELP = "folder of a run (its best checkpoint) or of a checkpoint, or a weights file"
ENGINE_PRECISIONS = ("fp32", "bf16", "int8", "fp16_32")
LIBRARIES = ("torchvision", "timm")
PEER_NAMES = ("eager", "compile", "onnxruntime", "openvino", "torchao", "zentorch")
PLOT, REPORT = "quantization.png", "quantization.json"  # what `vitfast quantize` writes beside the checkpoint


@dataclass(kw_only=True)
class CheckpointOptions:
    """The checkpoint to load, and where it runs."""

    checkpoint: str = option(help=CHECKPOINT_HELP)
    model: str | None = option(None, "name of the model, for a weights file that does not contain it")
    weights: str = option("auto", "auto: averaged weights (EMA) if available", choices=WEIGHTS)
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)

    def load(self, *, headless: bool = False) -> TrainedModel:
        """Loads the model onto the device, and sets the number of CPU threads.

        Args:
            headless: whether it may be one without classes, or with others than its data set's.
        """
        # these import torch, for which --help does not wait
        from vitfast.evaluation.checkpoint_data import is_weights_file, load_foreign_checkpoint
        from vitfast.runs.trained_model import load_trained_model, refuse_name

        device = self.prepare_device()
        if is_weights_file(self.checkpoint):
            data = getattr(self, "data", None)  # of the commands that read a data set
            return load_foreign_checkpoint(self.checkpoint, self.model, data, device, any_classes=headless)
        refuse_name(self.checkpoint, self.model)
        return load_trained_model(self.checkpoint, weights=self.weights, device=device, headless=headless)

    def prepare_device(self) -> torch.device:
        """Returns the device, and sets the number of CPU threads."""
        import torch

        from vitfast.device import select_device

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return select_device(self.device)


@dataclass
class SweepOptions:
    """Options of ``exits=sweep``: accuracy against speed and cost."""

    calibration: str = option(
        "val", "held-out images that the thresholds are chosen on, another split", choices=["train", "val", "test"]
    )
    tolerance: float = option(
        0.2, "percentage points of top-1 on the calibration images that the chosen thresholds may lose", minimum=0
    )
    batch_size: int | None = option(None, "batch size of the speed measurement; null: data.batch_size", minimum=1)
    images: int = option(512, "number of images for the speed measurement, evenly spaced in the split", minimum=1)
    seconds: float = option(
        60.0, "time to measure the chosen thresholds against all exits; the curve takes additional time", above=0
    )
    folder: str | None = option(None, "folder for the figures; null: the run's folder")


@dataclass
class ProbingOptions:
    """Options of ``probe=…``: the frozen features that a classifier is fitted to."""

    layers: list[str] | None = option(
        None,
        "linear: lastCLS, the input of the head; concatCLS4, the class tokens of the last four blocks; null: those "
        "that the model has",
        choices=["lastCLS", "concatCLS4"],
    )
    folder: str | None = option(
        None,
        "folder for the figure and the features, which later calls reuse; null: the run's folder, or that of the "
        "weights file",
    )


@dataclass
class PrepareOptions:
    """Brings a data set into the layout that training reads."""

    example: ClassVar = "source=NWPU-RESISC45 target=resisc45"

    source: str = option(help="the unpacked archive: a folder with a folder of images for each class")
    target: str = option(help="folder to make; it may exist, and what it holds already is kept")
    dataset: str = option("resisc45", "the data set", choices=["resisc45"])
    split: str = option(
        "myrtle",
        "myrtle: the first 489, then 71, then 140 images of each class; torchgeo: its published lists, in "
        "source: resisc45-train.txt, resisc45-val.txt and resisc45-test.txt",
        choices=["myrtle", "torchgeo"],
    )


@dataclass(kw_only=True)
class EvaluateOptions(CheckpointOptions):
    """Evaluates a checkpoint on a split of its training data, or on other data."""

    example: ClassVar = "checkpoint=runs/mine split=val"
    most_used: ClassVar = (
        "checkpoint",
        "split",
        "data.dataset",
        "data.root",
        "data.batch_size",
        "output",
        "accelerate",
        "probe",
        "weights",
        "device",
    )

    split: str = option("test", "the images", choices=["train", "val", "test"])
    output: str = option("table", "format of the results", choices=["table", "json"])
    exits: str = option(
        "each",
        "models with exits; each: accuracy of each exit; sweep: accuracy, images/s and cost of 59 choices of "
        "thresholds, and plots; see sweep.…",
        choices=["each", "sweep"],
    )
    quantized_ckpt: bool | None = option(
        None, "for compatibility with myrtle-vision; ignored, the checkpoint records it"
    )
    early_exit: bool = option(False, "also evaluate early exit, with the thresholds of python -m vitfast.exits")
    accelerate: str | None = option(
        None,
        "also evaluate the model accelerated by vitfast.accelerate for this CPU, in this precision; null: only the "
        "original model",
        choices=["fp32", "bf16", "fp16_32", "int8"],
    )
    merge_tokens: int = option(
        0, "with accelerate: how many tokens each block merges with similar ones (vitfast.accelerate)", minimum=0
    )
    probe: str | None = option(
        None,
        "evaluate the model's frozen features instead of its head, by a classifier of the train split's; knn: nearest "
        "neighbours; linear: a linear layer; see probing.…",
        choices=["knn", "linear"],
    )
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])
    data: ForeignDataOptions = field(default_factory=ForeignDataOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)
    probing: ProbingOptions = field(default_factory=ProbingOptions)

    def check(self, prefix: str = "") -> None:
        """Raises UserError if ``accelerate`` or ``probe`` is combined with an option that it excludes."""
        if self.probe is not None:
            self._check_probe()
        others = {
            f"precision={self.precision}": self.precision != "fp32",
            f"device={self.device}": self.device == "cuda",
            f"exits={self.exits}": self.exits == "sweep",
            "early_exit=true": self.early_exit,
        }
        wrong = [name for name, given in others.items() if given]
        if self.merge_tokens and self.accelerate is None:
            raise UserError(f"merge_tokens={self.merge_tokens} needs an accelerated model; add accelerate=fp32")
        if self.accelerate is not None and wrong:
            raise UserError(
                f"accelerate={self.accelerate} evaluates whole models on the CPU, in that precision; "
                f"leave out {' and '.join(wrong)}, or accelerate"
            )

    def _check_probe(self) -> None:
        others = {
            f"accelerate={self.accelerate}": self.accelerate is not None,
            f"exits={self.exits}": self.exits == "sweep",
            "early_exit=true": self.early_exit,
        }
        wrong = [name for name, given in others.items() if given]
        if wrong:
            raise UserError(f"probe={self.probe} evaluates features; leave out {' and '.join(wrong)}, or probe")
        if self.split == "train":
            raise UserError(f"probe={self.probe} learns from the train split; evaluate it on split=test or split=val")


@dataclass(kw_only=True)
class ExitsOptions(CheckpointOptions):
    """Calibrates the exit thresholds of a checkpoint, and stores them in it."""

    example: ClassVar = "checkpoint=runs/mine budget_gmacs=1.0"
    most_used: ClassVar = (
        "checkpoint",
        "budget_gmacs",
        "budget_ms",
        "split",
        "data.dataset",
        "data.root",
        "data.batch_size",
        "precision",
        "weights",
        "device",
    )

    budget_gmacs: float | None = option(None, "mean cost of an image in GMACs; null: see budget_ms", above=0)
    budget_ms: float | None = option(
        None, "mean latency of an image in ms, measured on this machine; null for both: only print", above=0
    )
    split: str = option("val", "held-out images for the calibration", choices=["train", "val", "test"])
    search: bool = option(True, "refine the thresholds of the geometric family by a search")
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])
    data: EvaluateDataOptions = field(default_factory=EvaluateDataOptions)


@dataclass(kw_only=True)
class QuantizeOptions(NumberFormatOptions, CheckpointOptions):
    """Quantizes a checkpoint, measures the loss of accuracy, and writes it with packed low-bit weights."""

    example: ClassVar = "checkpoint=runs/mine format=INT8"
    most_used: ClassVar = (
        "checkpoint",
        "format",
        "output",
        "split",
        "activations",
        "overrides",
        "per_class",
        "data.dataset",
        "data.root",
        "device",
    )

    quantized_ckpt: bool | None = option(
        None, "whether the checkpoint is of quantization-aware training; optional, because the checkpoint records it"
    )
    output: str | None = option(None, "folder of the new checkpoint; null: CHECKPOINT_FORMAT, next to the source")
    report: str | None = option(None, f"folder for {REPORT} and {PLOT}; null: that of the new checkpoint")
    split: str = option("test", "images for the accuracy", choices=["train", "val", "test"])
    report_images: int = option(256, "number of images for the errors of the layers", minimum=1)
    calibration_split: str = option(
        "train", "activations=calibrated: split for the calibration", choices=["train", "val", "test"]
    )
    calibration_images: int = option(512, "number of calibration images, chosen at random", minimum=1)
    seed: int = option(0, "seed of the random choice of images", minimum=0)
    per_class: bool = option(False, "also print precision, recall and F1 of each class")
    data: ForeignDataOptions = field(default_factory=ForeignDataOptions)


@dataclass(kw_only=True)
class CollectionOptions(CheckpointOptions):
    """What ``embed`` and ``predict`` share: a model of any source, and results in shards."""

    checkpoint: str | None = option(None, f"{CHECKPOINT_HELP}, or a .vit file")  # type: ignore[assignment]
    model: str | None = option(
        None,
        "without checkpoint: pretrained weights of this name, of timm (timm/NAME) or Hugging Face (ORGANIZATION/NAME, "
        "FOLDER/NAME); else the name of the model of a weights file that does not contain it",
    )
    images: str = option(
        help="image files, patterns, folders (searched recursively), lists (.txt), tar and Parquet files, separated by "
        "commas"
    )
    precision: str | None = option(
        None,
        "as in vitfast.accelerate; null: that of a quantized model or .vit file, else fp32",
        choices=ACCELERATED_PRECISIONS,
    )
    batch_size: int = option(32, "images in a batch", minimum=1)
    shard_size: int = option(1000, "images in a file of results", minimum=1)
    format: str = option(
        "parquet", "files of results; npy: the layout of clip-retrieval", choices=["parquet", "jsonl", "npy"]
    )
    engine: str = option(
        "local",
        "ray: actors of a Ray cluster write the files, each with threads=… CPUs (null: 1), and a GPU with device=cuda",
        choices=["local", "ray"],
    )
    shrink_jpeg: bool = option(
        True, "decode large JPEGs at 1/2, 1/4 or 1/8 of their size, at least twice as large as the model's input"
    )

    def load(self, *, headless: bool = False) -> TrainedModel:
        """Loads the model of a checkpoint or of a name; see ``CheckpointOptions``."""
        from vitfast.evaluation.pretrained import load_any

        device = self.prepare_device()
        source = (self.checkpoint, self.model, self.weights)
        return load_any(*source, device=device, headless=headless, precision=self.precision)

    def check(self, prefix: str = "") -> None:
        """Raises UserError if there is no model."""
        if self.checkpoint is None and self.model is None:
            raise UserError(f"checkpoint=… is missing: {CHECKPOINT_HELP}; or give model=timm/NAME")


@dataclass(kw_only=True)
class EmbedOptions(CollectionOptions):
    """Computes embeddings of a collection of images, and writes them in shards."""

    example: ClassVar = "model=timm/vit_small_patch14_dinov2 images=photos output=embeddings"
    most_used: ClassVar = (
        *("checkpoint", "model", "images", "output", "shard_size", "precision", "format", "batch_size", "normalize"),
        "device",
    )

    output: str = option(help="folder of the results, created if missing; a killed run continues in it")
    normalize: bool = option(False, "divide each embedding by its L2 norm")


@dataclass
class SearchOptions:
    """Finds similar images among the embeddings that ``embed`` has written."""

    example: ClassVar = "index=embeddings image=photo.jpg k=8 picture=neighbours.png"

    index: str = option(help="folder of python -m vitfast.embed")
    image: str | None = option(
        None, "images to compare with, as images= of embed; null: near-duplicates within the index"
    )
    k: int = option(8, "number of similar images", minimum=1)
    threshold: float = option(0.95, "cosine similarity of near-duplicates", above=0, maximum=1)
    picture: str | None = option(None, "PNG file for a contact sheet of the first 40 results; null: none")
    output: str = option("table", "table, or one JSON list of [path, similarity] per line", choices=["table", "jsonl"])
    batch_size: int = option(32, "images in a batch", minimum=1)
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)


@dataclass(kw_only=True)
class PredictOptions(CollectionOptions):
    """Classifies images with a checkpoint."""

    example: ClassVar = "checkpoint=runs/mine images=photos,cat.jpg top=5"
    most_used: ClassVar = (
        *("checkpoint", "images", "top", "output", "target", "batch_size", "model", "precision", "weights", "device"),
    )

    top: int = option(3, "number of classes per image", minimum=1)
    early_exit: bool = option(
        True,
        "if the checkpoint has thresholds (python -m vitfast.exits), stop at the first confident exit",
    )
    output: str = option("table", "what is printed: table, or one JSON object per line", choices=["table", "jsonl"])
    target: str | None = option(
        None, "folder of results in shards, by an accelerated model, as of python -m vitfast.embed; null: print them"
    )
    precision: str | None = option(
        None,
        "bf16: autocast; with target, as in vitfast.accelerate; null: that of a quantized model or .vit file, or fp32",
        choices=ACCELERATED_PRECISIONS,
    )

    def check(self, prefix: str = "") -> None:
        """Raises UserError if options contradict each other."""
        super().check(prefix)
        if self.target is None and self.precision not in (None, "fp32", "bf16"):
            raise UserError(f"precision={self.precision} is for target=FOLDER; without it allowed: fp32, bf16")
        if self.target is not None and self.format == "npy":
            raise UserError("format=npy is for embeddings; predictions are written as parquet or jsonl")


@dataclass(kw_only=True)
class ExportOptions(CheckpointOptions):
    """Writes a checkpoint to a file for deployment, and compares the file's outputs with the model's."""

    example: ClassVar = "checkpoint=runs/mine path=model.onnx int8=true images=photos"
    most_used: ClassVar = (
        *("checkpoint", "path", "images", "int8", "precision", "exit", "aot", "max_images", "model", "weights"),
    )

    path: str = option(help="file to write: model.vit, model.pt2 or model.onnx")
    images: str | None = option(
        None, "files, patterns and folders of images for the comparison and for int8; null: random images"
    )
    max_images: int = option(128, "largest number of images to read, spread over those that are found", minimum=1)
    int8: bool = option(False, ".onnx: quantize linear layers to int8, calibrated on the images")
    precision: str | None = option(
        None, ".vit, .pt2: export the model accelerated in this precision", choices=list(ENGINE_PRECISIONS)
    )
    exit: int | None = option(None, ".pt2, .onnx of a model with exits: the exit, from 1; null: all", minimum=1)
    aot: bool = option(False, ".pt2: compile the program with AOTInductor")


@dataclass(kw_only=True)
class VisualizeOptions(CheckpointOptions):
    """Draws the attention of a checkpoint over images."""

    example: ClassVar = "checkpoint=runs/mine images=photos layer=all"
    most_used: ClassVar = (
        *("checkpoint", "images", "target", "layer", "head", "model", "batch_size", "precision", "weights", "device"),
    )

    images: str = option(help="image files, patterns and folders (searched recursively), separated by commas")
    target: str = option("attention_maps", "folder of the figures, created if missing")
    layer: str = option("rollout", "rollout: through all layers; all: one panel per layer; or a layer number, from 0")
    head: str = option("mean", "mean of all heads, or a head number, from 0 (not with layer=rollout)")
    batch_size: int = option(8, "images in a batch", minimum=1)
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])


@dataclass
class BenchmarkOptions(ModelRunOptions):
    """Compares vitfast's models and operators with torchvision's, timm's and torch's, in one interleaved run."""

    example: ClassVar = "model=vit_small_patch16_224 mode=inference batch=1,8 json=speed.json"
    most_used: ClassVar = (
        "model",
        "mode",
        "precision",
        "batch",
        "peers",
        "seconds",
        "json",
        "compile",
        "device",
        "threads",
    )

    model: list[str] = option(["vit_tiny_patch16_224"], "one or more models; see vitfast.list_models()")
    precision: list[str] = option(
        ["fp32"],
        f"one or more of {', '.join(PRECISIONS)}; fp16 is not measured in training; "
        f"with peers: {', '.join(ENGINE_PRECISIONS)}",
    )
    peers: list[str] = option(
        ["none"],
        "compare accelerated models with other engines instead; engines that are not installed are reported",
        choices=["none", "all", *PEER_NAMES],
    )
    mode: str = option(
        "all",
        "whole models in evaluation, training steps, single operators at the models' shapes, or all three",
        choices=["inference", "training", "operators", "all"],
    )
    operator: list[str] = option(
        ["all"],
        "operators: only these, by the names in the tables: operator=attention,mlp",
    )
    backward: bool = option(False, "operators: measure forward and backward together")
    heads: int | None = option(None, "operators: number of heads; null: the model's", minimum=1)
    compile: bool = option(False, "models: also measure each one with torch.compile")
    libraries: list[str] = option(["all"], "models: libraries beside vitfast", choices=["all", *LIBRARIES])
    limits: bool = option(False, "measure a large copy and a large GEMM in each table, and shares of them")
    cold_cache: bool = option(False, "flush the caches before every run")
    seconds: float = seconds_option(45.0)

    def check(self, prefix: str = "") -> None:
        """Checks the options before anything is measured."""
        from vitfast.models.registry import resolve_name  # imports torch

        super().check(prefix)
        for name in self.model:
            resolve_name(name)
        allowed = ENGINE_PRECISIONS if self.engines() else PRECISIONS
        for precision in self.precision:
            if precision not in allowed:
                raise UserError(f"precision={precision} is unknown; allowed: {', '.join(allowed)}")
        if "fp16" in self.precision and self.mode == "training":
            raise UserError("precision=fp16 cannot be measured in training, which would need a loss scale; use bf16")
        chosen = ["backward=true"] if self.backward else []
        if self.operator != ["all"]:
            chosen.append(f"operator={','.join(self.operator)}")
        if self.heads is not None:
            chosen.append(f"heads={self.heads}")
        for given in chosen:
            if self.mode not in ("operators", "all"):
                raise UserError(f"{given} is about single operators; mode={self.mode} has none, use mode=operators")
        if self.compile and self.mode == "operators":
            raise UserError(
                "compile=true is about whole models; mode=operators has none, use mode=inference or training"
            )
        if self.engines() and (self.mode not in ("inference", "all") or self.compile or chosen):
            raise UserError(
                f"peers={','.join(self.peers)} compares whole models in evaluation; "
                "leave mode, compile, operator, backward out"
            )

    def engines(self) -> list[str]:
        """The engines that accelerated models are compared with; empty: compare libraries."""
        return [name for name in PEER_NAMES if name in self.peers or "all" in self.peers]


@dataclass(kw_only=True)
class VerifyOptions:
    """Checks the CUDA kernels against float64 on this GPU, times them against torch's operators, and records both."""

    example: ClassVar = "quick=true"
    most_used: ClassVar = ("quick", "repeat")

    quick: bool = option(False, "fewer shapes, in under 20 seconds; otherwise up to two minutes")
    repeat: bool = option(False, "verify kernels again that the record contains")
