"""All options of ``python -m vitfast.train``: names, descriptions and limits.

These dataclasses are the only declaration of an option. The command line, ``--help``, the recipes and the
``config.yaml`` of a run are derived from them. ``check(prefix)`` raises UserError for options that contradict each
other; ``prefix`` precedes their names in the message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from vitfast.config.data_schema import DataConfig
from vitfast.config.option import option
from vitfast.errors import UserError

AUTO = "auto"
HUB = "hub"  # as model.checkpoint
WEIGHTS = ("auto", "ema", "model")  # of a checkpoint


@dataclass
class ModelConfig:
    """The model to train."""

    name: str | None = option(
        "vit_nano_patch2_8",
        "name of the model, see vitfast.list_models(); or timm/NAME, torchvision/NAME; null: that of model.checkpoint",
    )
    img_size: int | None = option(None, "input size in pixels; null: that of the data", minimum=1)
    checkpoint: str | None = option(
        None,
        "initial weights: a run's folder, one of its checkpoints or a weights file; hub: timm's of that name on the "
        "Hugging Face hub; null: random",
    )
    zero_head: bool = option(False, "initialize the head with zeros: uniform initial predictions")
    drop_path: float = option(
        0.0, "stochastic depth rate of the last block, increasing linearly from 0", minimum=0, below=1
    )
    drop_rate: float = option(0.0, "dropout rate after projections and MLP layers", minimum=0, below=1)
    fields: dict[str, Any] = option({}, "further fields of the model: model.fields.qkv_bias=false, …")

    def check(self, prefix: str) -> None:
        if self.name is None and self.checkpoint in (None, HUB):
            advice = f"give {prefix}checkpoint=RUN, or {prefix}name=NAME and {prefix}checkpoint=FILE or {HUB}"
            raise UserError(f"{prefix}name=null takes the model from {prefix}checkpoint: {advice}")


@dataclass
class DistillConfig:
    """Knowledge distillation (models with a distillation token)."""

    teacher: str | None = option(
        None, "the teacher: a run, a checkpoint folder or a weights file of a model with the same classes"
    )
    teacher_name: str | None = option(
        None, "name of the teacher's model, if its file does not contain it: torchvision/resnet50"
    )
    kind: str = option(
        "hard",
        "hard: the teacher's top-1 class is the label; soft: its probabilities are the target",
        choices=["hard", "soft"],
    )
    alpha: float = option(0.5, "weight of the teacher in the loss; the labels have 1 - alpha", minimum=0, maximum=1)
    temperature: float = option(1.0, "soft: temperature of teacher and student", above=0)
    soft_mean: str = option(
        "elements",
        "soft: the divergence is divided by images x classes (elements, DeiT) or by images (myrtle-vision)",
        choices=["elements", "images"],
    )

    def check(self, prefix: str) -> None:
        if self.teacher is None and self.teacher_name is not None:
            raise UserError(f"{prefix}teacher_name={self.teacher_name} needs its weights, {prefix}teacher=FILE")


@dataclass
class SwavConfig:
    """Self-supervised training by SwAV (task=swav); the crops are those of ``data.augment.num_crops``."""

    projection: list[int] = option([2048, 128], "widths of the projection's layers", minimum=1)
    prototypes: list[int] = option(
        [3000], "number of prototypes; several numbers: as many layers, whose losses are averaged", minimum=2
    )
    assign_crops: list[int] = option([0, 1], "crops whose assignments the other crops predict", minimum=0)
    temperature: float = option(0.1, "temperature of the predictions", above=0)
    epsilon: float = option(0.05, "Sinkhorn: entropy regularization", above=0)
    iterations: int = option(3, "Sinkhorn: iterations", minimum=1)
    freeze_prototypes_steps: int = option(313, "steps at the start in which the prototypes are not trained", minimum=0)
    hard_assignment_steps: int = option(0, "steps at the start with hard assignments", minimum=0)
    queue_length: int = option(
        0,
        "embeddings of earlier batches that balance the assignments of small ones, of all processes together, rounded "
        "down to whole batches; 0: none",
        minimum=0,
    )
    queue_start_step: int = option(0, "steps before the queue is filled; it is used once it is full", minimum=0)
    double_precision: bool = option(False, "loss and assignments in float64")
    knn_every_epochs: int = option(
        1, "epochs between two evaluations by a kNN classifier; 0: none, also not at the end", minimum=0
    )


@dataclass
class OptimConfig:
    """The optimizer and the loss."""

    name: str = option("adamw", "the optimizer", choices=["adamw", "adam", "sgd"])
    lr: float = option(1e-3, "peak learning rate, reached at the end of the warm-up", above=0)
    lr_batch: int | None = option(
        None,
        "reference batch size of optim.lr, which is scaled by data.batch_size / lr_batch; null: not scaled",
        minimum=1,
    )
    weight_decay: float = option(
        0.05,
        "weight decay of matrices (adam, sgd: L2 in the gradient); none for biases, norms and embeddings",
        minimum=0,
    )
    betas: list[float] = option(
        [0.9, 0.999],
        "adamw, adam: beta1 and beta2",
        minimum=0,
        below=1,
        length=[2],
    )
    eps: float = option(1e-8, "adamw, adam: epsilon", above=0)
    momentum: float = option(0.9, "sgd: momentum", minimum=0, below=1)
    nesterov: bool = option(False, "sgd: Nesterov momentum")
    larc: float | None = option(
        None, "sgd: trust coefficient of layer-wise adaptive rate scaling (LARC), SwAV: 0.001; null: off", above=0
    )
    larc_clip: bool = option(False, "LARC: no learning rate exceeds optim.lr")
    decay_all: bool = option(False, "weight decay also of biases, norms and embeddings")
    layer_decay: float | None = option(
        None,
        "layer-wise learning rate decay from the head to the embeddings; null: the same rate for all layers",
        above=0,
        maximum=1,
    )
    clip_grad: float | None = option(None, "gradient clipping: largest norm; null: off", above=0)
    ema_decay: float | None = option(None, "EMA decay of the averaged weights; null: no average", above=0, below=1)
    label_smoothing: float = option(0.0, "share of the target that is spread over all classes", minimum=0, below=1)


@dataclass
class FinetuneConfig:
    """Training that starts from the weights of ``model.checkpoint``."""

    freeze_epochs: int | None = option(
        0,
        "epochs at the start that train the head only, the rest being fixed; null: all epochs, a linear probe",
        minimum=0,
    )
    lora_rank: int | None = option(
        None,
        "LoRA: train low-rank updates of the linear layers and the head, the rest being fixed; null: all weights",
        minimum=1,
    )
    lora_alpha: int = option(16, "LoRA: scale of the updates times lora_rank", minimum=1)
    keep_preprocessing: bool = option(
        False,
        "data.img_size, in_chans, mean, std, crop_pct that are null: those of model.checkpoint (a run, hub, or a "
        "folder that records them)",
    )


@dataclass
class ScheduleConfig:
    """Length of the training and learning rate schedule: linear warm-up, then decay."""

    epochs: int = option(60, "number of epochs; see schedule.steps", minimum=1)
    steps: int | None = option(
        None, "length in optimizer steps instead of epochs; the last epoch may be incomplete", minimum=1
    )
    warmup_epochs: float = option(5.0, "length of the warm-up in epochs; see schedule.warmup_steps", minimum=0)
    warmup_steps: int | None = option(None, "length of the warm-up in steps, instead of epochs", minimum=0)
    name: str = option("cosine", "decay after the warm-up", choices=["cosine", "linear", "step", "constant"])
    warmup_lr: float | None = option(
        None, "learning rate of the first step; null: optim.lr / (warm-up steps + 1)", above=0
    )
    warmup_over_decay: bool = option(
        False, "cosine: the decay begins with the first step, and the warm-up replaces its start, as in VISSL"
    )
    min_lr: float = option(1e-6, "cosine, linear: learning rate at the end", minimum=0)
    step_epochs: float = option(30.0, "step: epochs between two drops, counted from the end of the warm-up", above=0)
    step_factor: float = option(0.1, "step: factor of each drop", above=0, maximum=1)


@dataclass
class TrainConfig:
    """Device, precision and checkpoints."""

    precision: str = option(
        "fp32",
        "bf16, fp16: autocast with fp32 weights; fp16 uses loss scaling; auto: bf16 where the device has instructions "
        "for it, else fp32",
        choices=["fp32", "bf16", "fp16", AUTO],
    )
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    compile: bool = option(False, "run the model through torch.compile")
    threads: int | None = option(None, "CPU threads of the training process; null: torch's choice", minimum=1)
    accumulate: int | None = option(
        1,
        "gradient accumulation: number of parts that a batch is split into, to save memory; null: as few as the GPU's "
        "memory allows",
        minimum=1,
    )
    recompute: bool = option(
        False, "gradient checkpointing: the backward pass recomputes each block, which saves memory; the same result"
    )
    sync_bn: int | None = option(
        None,
        "torchrun: BatchNorm with the statistics of several processes; 0: all, -1: those of a node, n: groups of n; "
        "null: each process its own",
        minimum=-1,
    )
    shard: bool = option(False, "torchrun: shard weights and optimizer over the processes (FSDP2)")
    timeout_s: float = option(600.0, "torchrun: seconds until a collective operation times out", above=0)
    log_every: int = option(50, "steps between two progress lines", minimum=1)
    checkpoint_every_epochs: int = option(1, "epochs between two checkpoints", minimum=1)
    checkpoint_every_steps: int | None = option(
        None, "steps between two additional checkpoints; null: none within an epoch", minimum=1
    )
    keep_checkpoints: int = option(2, "number of newest checkpoints to keep", minimum=1)
    resume: str | None = option(
        None, "resume a run: its folder, or one of its checkpoints; auto: the run in run_dir if there is one"
    )

    def check(self, prefix: str) -> None:
        if self.sync_bn is not None and (self.shard or self.accumulate != 1):
            other = "shard=true" if self.shard else f"accumulate={self.accumulate}"
            raise UserError(f"{prefix}sync_bn does not support {prefix}{other}; leave one of them out")
        if self.shard and self.precision == "fp16":
            raise UserError(
                f"{prefix}shard=true cannot be combined with {prefix}precision=fp16: each process would detect "
                f"overflows in its own shard only; use {prefix}precision=bf16"
            )


@dataclass
class NumberFormatOptions:
    """A simulated number format."""

    format: str | None = option(
        None, "FP16_16, FP16_32, TF32, BF16, INT8, FP8_E4M3FN, FIXED_16_10, …: an unknown one lists all; null: none"
    )
    numerics: str | None = option(
        None, "floating point: ieee, or qtorch as QPyTorch rounds; null: ieee", choices=["ieee", "qtorch"]
    )
    backend: str | None = option(
        None, "rounding implementation; qtorch: QPyTorch, for comparison; null: vitfast", choices=["vitfast", "qtorch"]
    )
    semantics: str | None = option(
        None,
        "converted models; documented: round activations; legacy_convert: do not, like myrtle-vision; null: documented",
        choices=["documented", "legacy_convert"],
    )
    round_results: bool | None = option(None, "custom formats: also round results, like FP16_16")
    activations: str | None = option(
        None,
        "INT8; dynamic: a scale per token; calibrated: a scale per layer, from images; null: dynamic",
        choices=["dynamic", "calibrated"],
    )
    overrides: list[str] = option(
        [],
        "formats of single layers by name pattern, first match wins: [head=FP32,blocks.0.*=FP8_E5M2]",
    )

    def check(self, prefix: str) -> None:
        self._require_format(prefix, "numerics", "backend", "semantics", "round_results", "activations", "overrides")

    def _require_format(self, prefix: str, *names: str) -> None:
        for name in names:
            if self.format is None and getattr(self, name) not in (None, []):
                raise UserError(f"{prefix}{name} requires {prefix}format, which is not given")


@dataclass
class QuantizeConfig(NumberFormatOptions):
    """Quantization-aware training: forward passes round to a number format, with straight-through gradients."""

    clip_gradients: bool | None = option(None, "zero the gradient of values beyond the format's range")
    calibration_batches: int = option(
        10, "activations=calibrated: number of calibration batches before training", minimum=1
    )

    def check(self, prefix: str) -> None:
        super().check(prefix)
        self._require_format(prefix, "clip_gradients")


@dataclass
class OpsConfig:
    """Operator kernels."""

    kernels: str = option(
        "auto",
        "auto: vitfast's kernels, on a GPU the proven ones; torch: torch's operators; all: also kernels that are not "
        "proven yet; or names, with torch's operators for the rest: attention,layer_norm",
    )


@dataclass
class TrackConfig:
    """Experiment trackers, in addition to metrics.jsonl."""

    tensorboard: bool = option(False, "write TensorBoard logs to RUN/tensorboard")
    wandb: str = option(
        "off",
        "log to Weights & Biases; offline: to RUN/wandb, for a later wandb sync",
        choices=["off", "online", "offline"],
    )
    project: str = option("vitfast", "wandb: the project")


@dataclass
class Config:
    """All options of a training run."""

    example: ClassVar = "recipe=finetune data.dataset=image_folder data.root=photos run_dir=runs/mine"
    most_used: ClassVar = (
        "recipe",
        "run_dir",
        "data.dataset",
        "data.root",
        "data.batch_size",
        "model.name",
        "model.checkpoint",
        "schedule.epochs",
        "optim.lr",
        "train.resume",
    )

    recipe: str = option("vit_digits", "name of a recipe, or a .yaml file; other options override it")
    seed: int = option(0, "seed of initialization, order and augmentation", minimum=0, maximum=2**32 - 1)
    run_dir: str | None = option(None, "folder of the run; null: runs/RECIPE-TIME")
    task: str = option(
        "classification",
        "classification: learn the labels; swav: learn features without labels",
        choices=["classification", "swav"],
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    swav: SwavConfig = field(default_factory=SwavConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ops: OpsConfig = field(default_factory=OpsConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def check(self, prefix: str) -> None:
        self._check_task(prefix)
        if self.optim.nesterov and self.optim.momentum == 0.0:
            raise UserError(f"{prefix}optim.nesterov=true needs {prefix}optim.momentum above 0")
        if self.optim.larc is not None and self.optim.name != "sgd":
            raise UserError(f"{prefix}optim.larc needs {prefix}optim.name=sgd, not {self.optim.name}")
        if self.optim.larc is not None and self.train.shard:
            raise UserError(f"{prefix}optim.larc does not support {prefix}train.shard=true; leave one out")
        if self.schedule.warmup_over_decay and self.schedule.name != "cosine":
            raise UserError(f"{prefix}schedule.warmup_over_decay=true needs {prefix}schedule.name=cosine")
        if self.train.shard and self.finetune.freeze_epochs != 0:
            raise UserError(f"{prefix}train.shard=true does not support {prefix}finetune.freeze_epochs; set it to 0")
        if self.train.shard and self.train.accumulate is None:
            raise UserError(f"{prefix}train.shard=true does not support {prefix}train.accumulate=null; give a number")
        if self.finetune.lora_rank is not None:
            for option_name, is_set in (("train.shard", self.train.shard), ("quantize.format", self.quantize.format)):
                if is_set:
                    raise UserError(f"{prefix}finetune.lora_rank does not support {prefix}{option_name}; leave one out")
            if self.model.checkpoint is None:
                raise UserError(f"{prefix}finetune.lora_rank updates the weights of {prefix}model.checkpoint; set it")
        if self.schedule.name in ("cosine", "linear") and self.schedule.min_lr > self.optim.lr:
            raise UserError(
                f"{prefix}schedule.min_lr={self.schedule.min_lr:g} is above {prefix}optim.lr={self.optim.lr:g}; "
                "the learning rate decays from optim.lr to schedule.min_lr"
            )

    def _check_task(self, prefix: str) -> None:
        crops = sum(self.data.augment.num_crops)
        if self.task != "swav":
            if crops:
                raise UserError(f"{prefix}data.augment.num_crops needs {prefix}task=swav; leave it out")
            return
        if crops < 2:
            raise UserError(
                f"{prefix}task=swav compares crops of an image: give at least two, for example "
                f"{prefix}data.augment.num_crops=[2] {prefix}data.augment.size_crops=[224] "
                f"{prefix}data.augment.crop_scales=[0.14,1]"
            )
        if wrong := [crop for crop in self.swav.assign_crops if crop >= crops]:
            raise UserError(f"{prefix}swav.assign_crops has {wrong[0]}, but there are only {crops} crops, from 0")
        if not self.data.drop_last:
            raise UserError(f"{prefix}task=swav needs {prefix}data.drop_last=true: all batches have the same size")
        excluded = {
            "distill.teacher": self.distill.teacher is not None,
            "finetune.freeze_epochs": self.finetune.freeze_epochs != 0,
            "finetune.lora_rank": self.finetune.lora_rank is not None,
            "quantize.format": self.quantize.format is not None,
            "train.accumulate": self.train.accumulate != 1,
            "train.shard": self.train.shard,
        }
        for name, is_set in excluded.items():
            if is_set:
                raise UserError(f"{prefix}task=swav does not support {prefix}{name}; leave it out")
