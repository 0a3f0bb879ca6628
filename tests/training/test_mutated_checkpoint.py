"""Mutations of a valid checkpoint, with correct hashes: it is used or refused by name, without much memory."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfast
from support.mutations import VALUES, mutated
from support.small_training import make_step, new_state
from vitfast.data import eval_transform
from vitfast.errors import UserError
from vitfast.evaluation.checkpoint_data import EvaluateDataOptions, data_of_checkpoint
from vitfast.evaluation.predict import predict
from vitfast.runs.trained_model import PREPROCESSING, load_trained_model
from vitfast.weights.checkpoint import load_state, load_weights_file, save_checkpoint, verify_checkpoint
from vitfast.weights.manifest import manifest_text

CPU = torch.device("cpu")
_MEMORY_MIB = 300
TENSORS: tuple[Any, ...] = (
    *(torch.zeros(count) for count in (0, 1, 3, 5000)),
    *(torch.tensor(number) for number in (1, -1, 2**62, float("nan"), 1e38)),
    *(torch.full((8, 8), number) for number in (float("nan"), float("inf"), -1.0)),
    torch.zeros(8, 8, dtype=torch.float64),
    torch.zeros(16, 8).t(),
    (1, 2),
)


def _save(folder: Path, manifest: dict[str, Any], **content: Any) -> Path:
    data = {"img_size": 8, "in_chans": 1, "mean": [0.5], "std": [0.5], "interpolation": "bicubic", "crop_pct": 1.0}
    common = {"class_names": ["a", "b", "c"], "data": {"dataset": "digits", "resize": "short_side", **data}, "epoch": 0}
    return save_checkpoint(folder, step=2, manifest={**common, **manifest}, **content)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    state = new_state()
    for _ in range(2):
        make_step(state)
    model = state.task.model
    record = {"model": {"name": model.model_name, "fields": model.model_fields}}
    content = {"model": state.model_state(), "ema": state.ema_state(), "state": state.state_dict()}
    plain = _save(tmp_path_factory.mktemp("plain"), {**record, "quantization": None, "metrics": {}}, **content)
    vitfast.quantize_(model, vitfast.Int8Config(activations="calibrated"))
    vitfast.calibrate(model, [torch.randn(2, 1, 8, 8)])
    quantization = vitfast.quantization_record(model)
    quantized = _save(
        tmp_path_factory.mktemp("quantized"), {**record, "quantization": quantization}, model=model.state_dict()
    )
    return {"manifest": plain, "quantized": quantized, "state": plain}


def use_model(checkpoint: Path) -> None:
    """What evaluate, predict and create_model do."""
    trained = load_trained_model(str(checkpoint), device=CPU)
    data_of_checkpoint(trained, EvaluateDataOptions())
    eval_transform(**{name: trained.data[name] for name in PREPROCESSING})
    images = torch.zeros(1, trained.data["in_chans"], trained.data["img_size"], trained.data["img_size"])
    assert len(list(predict(trained, [([Path("image.png")], images)], top=3))) == 1
    trained.describe()
    vitfast.create_model(checkpoint=checkpoint)


def use_state(checkpoint: Path) -> None:
    """What a resumed run does; the weights stay finite."""
    verify_checkpoint(checkpoint)
    state = new_state()
    state.load_state_dict(load_state(checkpoint), load_weights_file(checkpoint), load_weights_file(checkpoint, "ema"))
    make_step(state)
    assert all(parameter.isfinite().all() for parameter in state.task.parameters())
    assert all(parameter.isfinite().all() for parameter in state.evaluated_task.parameters())
    assert torch.rand(()) >= 0


def write_mutation(folder: Path, kind: str, chance: random.Random) -> None:
    """Mutates the manifest or the training state, and corrects the hashes, as who crafts a checkpoint can."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if kind == "state":
        torch.save(mutated(torch.load(folder / "state.pt"), chance, VALUES + TENSORS), folder / "state.pt")
        manifest["files"]["state.pt"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    else:
        entry = chance.choice([name for name in manifest if name not in ("manifest_sha256", "vitfast_version")])
        manifest[entry] = mutated(manifest[entry], chance, VALUES)
        manifest = manifest if chance.random() < 0.95 else {**manifest, "format_version": chance.choice(VALUES)}
    (folder / "manifest.json").write_text(manifest_text(manifest))


@pytest.mark.parametrize(
    ("kind", "use"),
    [("manifest", use_model), ("quantized", use_model), ("state", use_state)],
    ids=lambda value: str(value)[:9],
)
@pytest.mark.parametrize("examples", [10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_mutations(
    checkpoints: dict[str, Path], tmp_path: Path, kind: str, use: Callable[[Path], None], examples: int
) -> None:
    folder = tmp_path / "checkpoint_000002"
    use(shutil.copytree(checkpoints[kind], folder))
    messages = []
    for seed in range(examples):
        shutil.copytree(checkpoints[kind], folder, dirs_exist_ok=True)
        write_mutation(folder, kind, random.Random(seed))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            use(folder)
        except UserError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < _MEMORY_MIB, f"seed {seed}: {grown:.0f} MiB"
    assert len(messages) > examples / 3
    assert not any("\n" in message for message in messages)
