"""The guard that stops before a bad update."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vitfast.engine.finite_guard import NonFiniteError, batch_indices, check_finite


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(20)), batch_size=4, sampler=[*range(10, 20), *range(10)])


def check(loss: float, norm: float, **options) -> None:
    options.setdefault("loader", loader())
    check_finite(torch.tensor(loss), torch.tensor(norm), step=7, epoch=2, batch_in_loader=2, **options)


def test_finite_values_pass():
    check(2.0, 1e30)


@pytest.mark.parametrize(
    ("loss", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (1.0, float("inf"))]
)
def test_the_step_and_the_images_are_named(loss, norm):
    with pytest.raises(
        NonFiniteError, match=r"step 7, epoch 2: loss .* images 18, 19, 0, 1 .* no weight has changed"
    ) as info:
        check(loss, norm)
    assert info.value.step == 7
    assert info.value.indices == [18, 19, 0, 1]


def test_files_are_named_where_the_data_know_them():
    with pytest.raises(NonFiniteError, match=r"train/cat/18.png, train/cat/19.png"):
        check(float("nan"), 1.0, file_of=lambda index: f"train/cat/{index}.png")


def test_a_long_batch_is_shortened():
    long = DataLoader(TensorDataset(torch.arange(60)), batch_size=20)
    with pytest.raises(NonFiniteError, match=r"40, 41, 42, 43, 44, 45, 46, 47 and 12 more"):
        check(float("nan"), 1.0, loader=long)


def test_all_is_written_down(tmp_path):
    long, records = DataLoader(TensorDataset(torch.arange(60)), batch_size=20), []

    def write_down(record):
        records.append(json.loads(json.dumps(record, allow_nan=False)))
        return tmp_path / "non_finite.json"

    with pytest.raises(NonFiniteError, match=r"no weight has changed\. .*non_finite.json lists the whole batch\. Look"):
        check(float("nan"), float("-inf"), loader=long, file_of="{}.png".format, write_down=write_down)
    indices = list(range(40, 60))
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
    check(1.0, 1.0, write_down=write_down)
    assert len(records) == 1


def test_what_could_not_be_written_down_is_not_promised():
    with pytest.raises(NonFiniteError, match=r"no weight has changed\. Look"):
        check(float("nan"), 1.0, write_down=lambda record: None)


def test_a_loader_without_batches_has_no_indices():
    assert batch_indices(DataLoader(TensorDataset(torch.arange(3)), batch_size=None), 0) == []
    assert batch_indices(loader(), 99) == []
