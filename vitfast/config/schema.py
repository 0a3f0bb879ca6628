"""Every option of ``python -m vitfast.train``: what it is called, what it means, what it allows.

These dataclasses are the only place where an option is declared. The command line, ``--help``, the recipes and the
``config.yaml`` of a run all follow from them.
"""

# ruff: noqa: RUF009 (option() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vitfast.config.format_value import format_value
from vitfast.config.option import option
from vitfast.errors import UserError

DATASETS = ("digits", "cifar10", "cifar100", "image_folder", "file_list")


@dataclass
class ModelConfig:
    """The model to train."""

    name: str = option("vit_nano_patch2_8", "name of the model, see vitfast.list_models()")
    img_size: int | None = option(None, "side of the input in pixels; null: that of the data", minimum=1)
    checkpoint: str | None = option(
        None, "weights to start from: a run's folder, one of its checkpoints or a weights file; null: random ones"
    )
    zero_head: bool = option(False, "start the head from zero, so that the first prediction is uniform")
    drop_path: float = option(0.0, "stochastic depth of the last block, 0 in the first", minimum=0, below=1)
    drop_rate: float = option(0.0, "dropout after projections and MLP layers", minimum=0, below=1)
    fields: dict[str, Any] = option(
        default_factory=dict, help="further fields of the model: model.fields.qkv_bias=false, …"
    )


@dataclass
class AugmentConfig:
    """Random changes of the training images; 0 switches one off."""

    crop_scale: float = option(
        0.0, "random resized crop: smallest share of the area that is kept", minimum=0, maximum=1
    )
    crop_ratio: list[float] = option(
        default_factory=lambda: [3 / 4, 4 / 3],
        help="random resized crop: smallest and largest width / height",
        above=0,
        length=[2],
    )
    crop_pad: int = option(0, "random shift: pixels of padding on each side before a random crop", minimum=0)
    flip: float = option(0.0, "probability of a horizontal flip", minimum=0, maximum=1)
    affine_degrees: float = option(0.0, "random rotation by up to ± this many degrees", minimum=0, maximum=180)
    affine_translate: float = option(0.0, "random shift by up to ± this share of the side", minimum=0, maximum=1)
    affine_scale: float = option(0.0, "random zoom by a factor of 1 ± this", minimum=0, below=1)
    color_jitter: float = option(0.0, "brightness, contrast and saturation by a factor of 1 ± this", minimum=0, below=1)
    hue: float = option(
        0.0, "colour jitter of the hue: by up to ± this share of the colour circle", minimum=0, maximum=0.5
    )
    rand_ops: int = option(0, "RandAugment: operations for each image, chosen at random", minimum=0)
    rand_magnitude: int = option(9, "RandAugment: strength of its operations", minimum=0, maximum=30)
    erase: float = option(0.0, "probability that a random rectangle becomes noise", minimum=0, maximum=1)
    repeats: int = option(
        1,
        "repeated augmentation: times that an image comes in an epoch, each time changed otherwise; an epoch keeps its "
        "length, so that it has only a part of the images, each epoch another; 1: off, DeiT: 3",
        minimum=1,
    )
    mixup: float = option(0.0, "MixUp: parameter of the beta distribution that shares are drawn from", minimum=0)
    cutmix: float = option(0.0, "CutMix: the same; with both, each batch takes one of them at random", minimum=0)

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` stands before their names."""
        if self.crop_scale and self.crop_pad:
            raise UserError(
                f"{prefix}crop_scale={self.crop_scale:g} and {prefix}crop_pad={self.crop_pad} are two ways to crop; "
                f"set one of them to 0"
            )
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise UserError(
                f"{prefix}crop_ratio={format_value(self.crop_ratio)}: the first number must not exceed the second"
            )


@dataclass
class DataConfig:
    """The images to learn from and to test on."""

    dataset: str = option("digits", "the data set; digits is embedded", choices=DATASETS)
    root: str | None = option(
        None,
        "folder of the data: for image_folder ROOT/train/CLASS/*, ROOT/val and/or ROOT/test; for cifar10 and cifar100 "
        "where the archive is unpacked; for file_list that of train_imagepaths.txt",
    )
    download: bool = option(False, "cifar10, cifar100: fetch the archive if it is not in data.root")
    val_share: float = option(
        0.0,
        "where the data have no val split: share of each class's train images that are kept out of training to be it",
        minimum=0,
        below=1,
    )
    img_size: int | None = option(
        None, "side in pixels; null: the data set's (digits 8, cifar 32, others 224)", minimum=1
    )
    in_chans: int | None = option(None, "channels; null: the data set's (digits 1, others 3)", choices=[1, 3])
    batch_size: int = option(128, "images in a step; see train.accumulate", minimum=1)
    workers: int = option(0, "processes that read images ahead; 0: the training process reads them", minimum=0)
    on_corrupt: str = option(
        "raise",
        "an image that cannot be read; raise: end and name it; skip: warn, train on another in its place, leave it out "
        "of what is measured, and end when more than 0.1 % of the train split are bad",
        choices=["raise", "skip"],
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    resize: str = option(
        "short_side",
        "evaluation, and training without augment.crop_scale; short_side: keep the proportions and cut out the centre; "
        "both_sides: squash the image to a square, all of which crop_pct=1 keeps",
        choices=["short_side", "both_sides"],
    )
    interpolation: str = option("bicubic", "how images are resized", choices=["nearest", "bilinear", "bicubic"])
    crop_pct: float | None = option(
        None,
        "evaluation: share of the resized side that the centre crop keeps; null: digits, cifar 1, others 0.875",
        above=0,
        maximum=1,
    )
    mean: list[float] | None = option(None, "mean of each channel, pixels in 0..1; null: the data set's", length=[1, 3])
    std: list[float] | None = option(
        None, "standard deviation of each channel; null: the data set's", above=0, length=[1, 3]
    )
    drop_last: bool = option(False, "leave out the last batch of an epoch if it is smaller")

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` stands before their names."""
        if self.dataset == "digits" and self.root is not None:
            raise UserError(
                f"{prefix}root={self.root} is given, but {prefix}dataset=digits is embedded and has no folder; "
                f"add {prefix}dataset=image_folder, and choose a model for such images"
            )
        for name in ("color_jitter", "hue", "rand_ops"):
            if self.dataset == "digits" and getattr(self.augment, name):
                raise UserError(
                    f"{prefix}augment.{name} changes colours, but {prefix}dataset=digits has 17 levels of grey; "
                    "set it to 0"
                )
        if self.dataset != "digits" and self.root is None:
            holds = {"image_folder": "train/CLASS/*.jpg", "file_list": "train_imagepaths.txt and label_map.json"}.get(
                self.dataset, "the unpacked archive"
            )
            raise UserError(f"{prefix}dataset={self.dataset} needs {prefix}root=FOLDER, which holds {holds}")


@dataclass
class DistillConfig:
    """Learning from a teacher as well (models with a distillation token)."""

    teacher: str | None = option(
        None, "the teacher: a run, a checkpoint folder or a weights file of a model that knows the same classes"
    )
    teacher_name: str | None = option(
        None, "name of the teacher's model, where its file does not say it: torchvision/resnet50"
    )
    kind: str = option(
        "hard",
        "hard: the teacher's first choice is the label; soft: its probabilities are the target",
        choices=["hard", "soft"],
    )
    alpha: float = option(0.5, "share of the teacher in the loss, the labels have the rest", minimum=0, maximum=1)
    temperature: float = option(1.0, "soft: the logits of both are divided by it", above=0)
    soft_mean: str = option(
        "elements",
        "soft: the divergence is divided by images x classes (elements, DeiT) or by images alone (myrtle-vision)",
        choices=["elements", "images"],
    )

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` stands before their names."""
        if self.teacher is None and self.teacher_name is not None:
            raise UserError(f"{prefix}teacher_name={self.teacher_name} needs {prefix}teacher=FILE, its weights")


@dataclass
class OptimConfig:
    """The optimizer and the loss."""

    name: str = option("adamw", "the optimizer", choices=["adamw", "adam", "sgd"])
    lr: float = option(1e-3, "learning rate at the end of the warm-up", above=0)
    lr_batch: int | None = option(
        None, "batch that optim.lr is meant for: it is scaled by data.batch_size over this; null: not scaled", minimum=1
    )
    weight_decay: float = option(
        0.05,
        "decay of matrices (adam, sgd: through the gradient); biases, norms and embeddings have none",
        minimum=0,
    )
    betas: list[float] = option(
        default_factory=lambda: [0.9, 0.999],
        help="adamw, adam: decay of the two averages",
        minimum=0,
        below=1,
        length=[2],
    )
    eps: float = option(1e-8, "adamw, adam: epsilon", above=0)
    momentum: float = option(0.9, "sgd: momentum", minimum=0, below=1)
    nesterov: bool = option(False, "sgd: Nesterov's momentum")
    layer_decay: float | None = option(
        None,
        "learning rate of a block over that of the next one, the embeddings last; null: all learn alike",
        above=0,
        maximum=1,
    )
    clip_grad: float | None = option(None, "largest norm of the gradient; null: not clipped", above=0)
    ema_decay: float | None = option(None, "decay of the averaged weights; null: none are kept", above=0, below=1)
    label_smoothing: float = option(0.0, "share of the target that is spread over all classes", minimum=0, below=1)


@dataclass
class ScheduleConfig:
    """How long, and how the learning rate goes: linear up, then down."""

    epochs: int = option(60, "passes over the training images; see schedule.steps", minimum=1)
    steps: int | None = option(None, "length in steps instead; the last epoch may be cut short", minimum=1)
    warmup_epochs: float = option(
        5.0, "epochs until the learning rate is reached; see schedule.warmup_steps", minimum=0
    )
    warmup_steps: int | None = option(None, "steps until the learning rate is reached, instead of epochs", minimum=0)
    name: str = option("cosine", "how it falls after the warm-up", choices=["cosine", "linear", "step", "constant"])
    min_lr: float = option(1e-6, "cosine, linear: learning rate at the end", minimum=0)
    step_epochs: float = option(30.0, "step: epochs between two drops, from the end of the warm-up on", above=0)
    step_factor: float = option(0.1, "step: the learning rate after a drop over that before", above=0, maximum=1)


@dataclass
class TrainConfig:
    """How it runs, and what is kept."""

    precision: str = option(
        "fp32",
        "arithmetic; bf16, fp16: autocast, weights stay fp32; fp16 scales the loss",
        choices=["fp32", "bf16", "fp16"],
    )
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    compile: bool = option(False, "run the model through torch.compile")
    threads: int | None = option(None, "CPU threads of the training process; null: torch's choice", minimum=1)
    accumulate: int = option(1, "parts that a batch is computed in, one after the other, to save memory", minimum=1)
    shard: bool = option(
        False, "torchrun: spread weights and optimizer over the processes (FSDP2), for models that do not fit"
    )
    timeout_s: float = option(600.0, "torchrun: seconds that a process waits for the others", above=0)
    log_every: int = option(50, "steps between two lines of progress", minimum=1)
    checkpoint_every_epochs: int = option(1, "epochs between two checkpoints", minimum=1)
    checkpoint_every_steps: int | None = option(
        None, "steps between two checkpoints, in addition; null: none within an epoch", minimum=1
    )
    keep_checkpoints: int = option(2, "newest checkpoints that stay", minimum=1)
    resume: str | None = option(
        None, "continue a run: its folder, or one of its checkpoints; auto: what is in run_dir, or else begin"
    )

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` stands before their names."""
        if self.shard and self.precision == "fp16":
            raise UserError(
                f"{prefix}shard=true does not go with {prefix}precision=fp16, whose overflows each process would see "
                f"for its part only; use {prefix}precision=bf16"
            )


@dataclass
class NumberFormatOptions:
    """A number format that a model is simulated in, and its rules."""

    format: str | None = option(
        None, "FP16_16, FP16_32, TF32, BF16, INT8, FP8_E4M3FN, FIXED_16_10, …: an unknown one lists all; null: none"
    )
    numerics: str | None = option(
        None, "floating point: ieee, or qtorch as QPyTorch rounds; null: ieee", choices=["ieee", "qtorch"]
    )
    backend: str | None = option(
        None, "whose code rounds; qtorch: QPyTorch's own, to compare; null: vitfast", choices=["vitfast", "qtorch"]
    )
    semantics: str | None = option(
        None,
        "converted models; documented: round activations; legacy_convert: do not, as myrtle-vision; null: documented",
        choices=["documented", "legacy_convert"],
    )
    round_results: bool | None = option(None, "formats of any bits: results are rounded, too, as FP16_16 does")
    activations: str | None = option(
        None,
        "INT8; dynamic: a scale for each token; calibrated: one for a layer, from images; null: dynamic",
        choices=["dynamic", "calibrated"],
    )
    overrides: list[str] = option(
        default_factory=list,
        help="other formats by the name of a layer, the first that matches: [head=FP32,blocks.0.*=FP8_E5M2]",
    )

    def check(self, prefix: str) -> None:
        """Raises UserError for options without a format; ``prefix`` stands before their names."""
        for name in ("numerics", "backend", "semantics", "round_results", "activations"):
            if self.format is None and getattr(self, name) is not None:
                raise UserError(f"{prefix}{name} is given, but {prefix}format is not: nothing is quantized")
        if self.format is None and self.overrides:
            raise UserError(f"{prefix}overrides are given, but {prefix}format is not: nothing is quantized")


@dataclass
class QuantizeConfig(NumberFormatOptions):
    """Quantization-aware training: each forward pass rounds as low precision would, gradients pass straight through."""

    clip_gradients: bool | None = option(None, "no gradient for what lies beyond the format's largest value")
    calibration_batches: int = option(
        10, "activations=calibrated: batches that are looked at before training", minimum=1
    )

    def check(self, prefix: str) -> None:
        """Raises UserError for options without a format; ``prefix`` stands before their names."""
        super().check(prefix)
        if self.format is None and self.clip_gradients is not None:
            raise UserError(f"{prefix}clip_gradients is given, but {prefix}format is not: nothing is quantized")


@dataclass
class OpsConfig:
    """The code that computes the operators."""

    kernels: str = option(
        "auto",
        "auto: vitfast's kernels, on a GPU those that a committed result proves; torch: torch's operators; all: also "
        "kernels that are not proven yet; or names, torch's operators for the rest: attention,layer_norm",
    )


@dataclass
class TrackConfig:
    """Where else the figures go; metrics.jsonl has them always."""

    tensorboard: bool = option(False, "write them for TensorBoard, too: RUN/tensorboard")
    wandb: str = option(
        "off",
        "pass them to Weights & Biases; offline: keep them in RUN/wandb until wandb sync sends them",
        choices=["off", "online", "offline"],
    )
    project: str = option("vitfast", "wandb: the project")


@dataclass
class Config:
    """All options of a training run."""

    recipe: str = option("vit_digits", "a recipe by name, or a .yaml file; the other options are set on top of it")
    seed: int = option(0, "seed of weights, order and augmentation", minimum=0, maximum=2**32 - 1)
    run_dir: str | None = option(None, "folder of the run; null: runs/RECIPE-TIME")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ops: OpsConfig = field(default_factory=OpsConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` stands before their names."""
        if self.optim.nesterov and self.optim.momentum == 0.0:
            raise UserError(f"{prefix}optim.nesterov=true needs {prefix}optim.momentum above 0")
        if self.schedule.name in ("cosine", "linear") and self.schedule.min_lr > self.optim.lr:
            raise UserError(
                f"{prefix}schedule.min_lr={self.schedule.min_lr:g} is above {prefix}optim.lr={self.optim.lr:g}; "
                "the learning rate falls from optim.lr to schedule.min_lr"
            )
