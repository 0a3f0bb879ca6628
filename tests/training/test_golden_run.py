"""Training is bit-reproducible: 62 steps, in processes that share only the seed and the thread count."""

from __future__ import annotations

import json
import textwrap

import pytest

from support.subprocesses import run_python
from support.tiny_run import RICH, TINY_RUN

pytestmark = pytest.mark.slow

STEPS = 62
# 1,293 images in batches of 43: 31 steps an epoch
OPTIONS = (*TINY_RUN, *RICH, "data.batch_size=43", "train.accumulate=1", "train.threads=1", "optim.lr=0.003")
OPTIONS += ("data.augment.affine_degrees=10", "data.augment.affine_translate=0.1")

# Trains with each seed in turn, and prints every loss and the hashes of what comes out.
TRAIN = """
    import hashlib, json, sys
    from pathlib import Path
    from vitfast.training import training_run, training_state
    from vitfast.weights.checkpoint import latest_checkpoint

    class RecordingMeter(training_state.ClassificationMeter):
        def update(self, loss, *others):
            losses.append(loss.item().hex())
            super().update(loss, *others)

    training_state.ClassificationMeter = RecordingMeter
    for seed in sys.argv[2].split(","):
        losses, run_dir = [], Path(sys.argv[1], seed)
        arguments = [*sys.argv[3:], f"seed={seed}", f"run_dir={run_dir}"]
        assert training_run.run_training(arguments) == 0
        files = [latest_checkpoint(run_dir) / name for name in ("model.safetensors", "ema.safetensors")]
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        print(json.dumps({"losses": losses, "hashes": hashes}), file=sys.stderr)
"""


def train(folder, seeds: str, hash_seed: str) -> list[dict]:
    """The losses and hashes of one process; its sets and dictionaries are ordered by another hash each time."""
    finished = run_python(
        "-c", textwrap.dedent(TRAIN), str(folder), seeds, *OPTIONS, PYTHONHASHSEED=hash_seed, OMP_NUM_THREADS="1"
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stderr.splitlines() if line.startswith('{"losses"')]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("golden") for _ in range(2)]
    return train(folders[0], "0", "1"), train(folders[1], "0,1", "2")


def test_another_process_repeats_every_loss_and_every_weight(processes):
    (first,), (second, _) = processes
    assert len(first["losses"]) == STEPS
    assert len(set(first["losses"])) == STEPS  # it does learn something
    differing = [step for step in range(STEPS) if first["losses"][step] != second["losses"][step]]
    assert differing == []
    assert first["hashes"] == second["hashes"]


def test_another_seed_is_another_run(processes):
    _, (first, other) = processes
    assert len(other["losses"]) == STEPS
    assert all(a != b for a, b in zip(first["losses"], other["losses"], strict=True))
    assert not set(first["hashes"]) & set(other["hashes"])
