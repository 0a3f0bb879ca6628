"""The message when training stops before a non-finite update."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from support.tiny_run import RICH
from vitfast.config import AugmentConfig, DataConfig
from vitfast.data import EpochBatchSampler, build_dataset, build_loader
from vitfast.training.finite_guard import NonFiniteError, batch_indices, not_finite
from vitfast.weights.checkpoint import latest_checkpoint


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(20)), batch_size=4, sampler=[*range(10, 20), *range(10)])


def error(indices: list[int], norm: float = 1.0, **options) -> NonFiniteError:
    return not_finite(torch.tensor(float("nan")), torch.tensor(norm), step=7, epoch=2, indices=indices, **options)


def test_the_step_and_the_images_are_named():
    found = error(batch_indices(loader(), 2))
    assert str(found).startswith("not finite at step 7, epoch 2: loss nan, gradient norm 1 on images 18, 19, 0, 1 of")
    assert "no weight has changed" in str(found)
    assert found.step == 7
    assert found.indices == [18, 19, 0, 1]


def test_files_are_named_where_the_data_know_them():
    found = error([18, 19], file_of=lambda index: f"train/cat/{index}.png")
    assert "(train/cat/18.png, train/cat/19.png)" in str(found)


def test_a_long_batch_is_shortened():
    assert "images 0, 1, 2, 3, 4, 5, 6, 7 and 12 more of" in str(error(list(range(20))))


def test_a_repetition_is_named_as_its_image():
    dataset = build_dataset(DataConfig(augment=AugmentConfig(repeats=3)), "train", seed=0)
    loader = build_loader(dataset, batch_size=7, workers=0, seed=0, epoch=0, shuffle=True)
    sampler = EpochBatchSampler(len(dataset), 3, seed=0, epoch=0, shuffle=True)
    a, b, c = next(iter(sampler))
    assert batch_indices(loader, 0) == [a, a, a, b, b, b, c]
    assert batch_indices(loader, 1)[:2] == [c, c]


def test_bad_image_is_named_with_its_replacement(tmp_path):
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    for index in range(4):
        Image.new("RGB", (8, 8)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"")
    data = DataConfig(dataset="image_folder", root=str(tmp_path), img_size=8, on_corrupt="skip")
    dataset = build_dataset(data, "train", seed=0)
    loader = build_loader(dataset, batch_size=4, workers=0, seed=0, epoch=5, shuffle=False, warn=[].append)
    list(loader)
    dataset.set_epoch(5)
    (stand_in,) = {dataset.image_of(2)} - {2}
    assert batch_indices(loader, 0) == [0, 1, stand_in, 3]


def test_all_is_written_down(tmp_path):
    records = []

    def write_record(record):
        records.append(json.loads(json.dumps(record, allow_nan=False)))
        return tmp_path / "non_finite.json"

    indices = list(range(40, 60))
    found = error(indices, norm=float("-inf"), file_of="{}.png".format, write_record=write_record)
    assert re.search(r"no weight has changed\. .*non_finite.json lists the whole batch\. Check", str(found))
    assert records == [
        {
            "step": 7,
            "epoch": 2,
            "loss": "nan",
            "gradient_norm": "-inf",
            "indices": indices,
            "files": [f"{index}.png" for index in indices],
        }
    ]


def test_failed_writes_are_not_reported_as_saved():
    assert "no weight has changed. Check" in str(error([1, 2], write_record=lambda record: None))


def test_a_loader_without_batches_has_no_indices():
    assert batch_indices(DataLoader(TensorDataset(torch.arange(3)), batch_size=None), 0) == []
    assert batch_indices(loader(), 99) == []


# The first update throws the weights so far that the second step is not finite.
HOPELESS = (*RICH, "optim.lr=1e30", "schedule.warmup_epochs=0")


def fail(train_tiny, run_dir: Path, *options: str) -> tuple[NonFiniteError, dict]:
    """The error, and what the run has written down."""
    with pytest.raises(NonFiniteError) as info:
        train_tiny(run_dir, *options)
    return info.value, json.loads((run_dir / "non_finite.json").read_text())


def test_the_whole_batch_is_listed(tmp_path, train_tiny):
    run_dir = tmp_path / "run"
    error, record = fail(train_tiny, run_dir, *HOPELESS)
    assert str(run_dir / "non_finite.json") in str(error)
    assert record["step"] == error.step
    assert record["epoch"] == 1
    assert "nan" in (record["loss"], record["gradient_norm"])
    assert record["indices"] == error.indices
    assert len(record["indices"]) == 256
    assert len(set(record["indices"])) == 86  # each three times, the last one once
    assert all(0 <= index < 1293 for index in record["indices"])
    assert record["files"] == []  # the digits are not files
    assert str(run_dir / "non_finite.json") in (run_dir / "log.txt").read_text()


def test_a_resumed_epoch_counts_from_its_beginning(tmp_path, train_tiny):
    _, whole = fail(train_tiny, tmp_path / "whole", *HOPELESS)
    assert train_tiny(tmp_path / "cut", *HOPELESS, stop_step=1) == 143
    _, resumed = fail(train_tiny, tmp_path / "cut", f"train.resume={tmp_path / 'cut'}")
    assert resumed == whole
    assert latest_checkpoint(tmp_path / "cut") == tmp_path / "cut" / "checkpoint_000001"
