"""The splits of a run and their loaders."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from vitfast.config.schema import Config
from vitfast.data import ImageDataset, available_splits, build_dataset, build_loader
from vitfast.errors import UserError
from vitfast.runs.trained_model import PREPROCESSING
from vitfast.training.distributed import Ranks
from vitfast.weights.manifest import read_manifest


class TrainingData:
    """The data sets of a run.

    Attributes:
        train: the training split.
        val: the split evaluated after each epoch, or None.
        test: the split evaluated at the end, or None.
        warn: called for each unreadable image that is skipped.
        steps_per_epoch: batches of the train split.

    Raises:
        UserError: if there is a single class, or an epoch has no batch.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._config = config.data
        self._ranks = ranks
        self._seed = config.seed
        self.warn: Callable[[str], None] = warnings.warn
        splits = available_splits(config.data)
        self.train = self._build("train", config)
        self.val = self._build("val", config) if "val" in splits else None
        self.test = self._build("test", config) if "test" in splits else None
        if len(self.train.class_names) < 2 and config.task == "classification":
            raise UserError(
                f"the data have a single class, {self.train.class_names[0]}: there is nothing to classify; give "
                "images of at least two classes, in a folder for each class"
            )
        batches, rest = divmod(len(self.train), config.data.batch_size)
        self.steps_per_epoch = batches + (1 if rest and not config.data.drop_last else 0)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"data.drop_last=true leaves no batch: the train split has {len(self.train)} images and "
                f"data.batch_size={config.data.batch_size}; use a smaller batch"
            )

    def _build(self, split: str, config: Config) -> ImageDataset:
        return build_dataset(config.data, split, seed=config.seed, img_size=config.model.img_size)

    @property
    def images_per_epoch(self) -> int:
        """Images in a training epoch."""
        if self._config.drop_last:
            return self.steps_per_epoch * self._config.batch_size
        return len(self.train)

    def batch_size(self, step_in_epoch: int) -> int:
        """Images in a step of an epoch (from 0), of all ranks together."""
        return min(self._config.batch_size, len(self.train) - step_in_epoch * self._config.batch_size)

    def train_loader(self, epoch: int, first_step: int) -> DataLoader[Any]:
        """Returns the loader of this rank's share of an epoch (from 0), starting at a step."""
        start = first_step * self._config.batch_size
        return self._load(self.train, epoch=epoch, shuffle=True, drop_last=self._config.drop_last, start=start)

    def evaluation_loader(self, dataset: ImageDataset) -> DataLoader[Any]:
        """Returns the loader of this rank's share of a split, in order."""
        return self._load(dataset, epoch=0, shuffle=False)

    @cached_property
    def train_as_evaluated(self) -> ImageDataset:
        """The train split without augmentation."""
        img_size = self.train.img_size
        return build_dataset(self._config, "train", seed=self._seed, img_size=img_size, augment=False)

    def _load(self, dataset: ImageDataset, **options: Any) -> DataLoader[Any]:
        config = self._config
        return build_loader(
            dataset,
            batch_size=config.batch_size,
            workers=config.workers,
            seed=self._seed,
            rank=self._ranks.rank,
            world=self._ranks.world,
            warn=self.warn,
            **options,
        )

    def describe(self) -> str:
        """One line for the log."""
        counts = " / ".join(f"{len(dataset):,} {name}" for name, dataset in self.splits.items())
        size = self.train.img_size
        return f"{counts} images, {len(self.train.class_names)} classes, {self.train.in_chans} x {size} x {size} pixels"

    @property
    def splits(self) -> dict[str, ImageDataset]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: dataset for name, dataset in splits.items() if dataset is not None}

    def manifest(self) -> dict[str, Any]:
        """The preprocessing for a checkpoint's manifest, which evaluation and prediction repeat."""
        preprocessing = {name: getattr(self.train, name) for name in PREPROCESSING}
        return {
            "dataset": self._config.dataset,
            "val_share": self._config.val_share,
            "images": {name: len(dataset) for name, dataset in self.splits.items()},
            "assignments": self._assignments,
            **preprocessing,
        }

    @cached_property
    def _assignments(self) -> dict[str, str]:
        return {name: dataset.assignment(self._config.root) for name, dataset in self.splits.items()}

    def check_resumed(self, checkpoint: Path) -> None:
        """Compares the data with those of a checkpoint that is resumed; checkpoints of early versions lack the counts.

        Raises:
            UserError: the classes differ, or the images or their labels do without ``data.allow_changes``.
        """
        manifest = read_manifest(checkpoint)
        before, now = manifest["class_names"], self.train.class_names
        if before != now:
            pairs = ((label, *pair) for label, pair in enumerate(zip_longest(before, now)))
            label, old, new = next(one for one in pairs if one[1] != one[2])
            raise UserError(
                f"data.root={self._config.root} has other classes than the run {checkpoint.parent}: class {label} is "
                f"{new} instead of {old} ({len(now)} classes instead of {len(before)}); resume with the run's data"
            )
        if self._config.allow_changes:
            return
        recorded, current = manifest["data"], self.manifest()
        advice = "resume with the run's data, or accept these with data.allow_changes=true"
        counts, images = recorded.get("images"), current["images"]
        if counts not in (None, images):
            old, new = (", ".join(f"{count:,} {name}" for name, count in one.items()) for one in (counts, images))
            raise UserError(
                f"data.root={self._config.root} has other images than the run {checkpoint.parent}: {new} instead of "
                f"{old}; {advice}"
            )
        if recorded.get("assignments") not in (None, current["assignments"]):
            raise UserError(
                f"data.root={self._config.root} has as many images as the run {checkpoint.parent}, but with other "
                f"names or in other classes; {advice}"
            )
