"""Training in fp16: loss scaling, and the limit on skipped steps."""

from __future__ import annotations

import pytest
import torch

from support.run_content import content, differences
from vitfast.training.finite_guard import NonFiniteError
from vitfast.training.training_state import TrainingState
from vitfast.weights.checkpoint import latest_checkpoint, list_checkpoints, load_state, load_weights_file

FP16 = "train.precision=fp16"


def test_it_learns_as_fp32_does(tmp_path, train_tiny):
    assert train_tiny(tmp_path / "fp32") == 0
    assert train_tiny(tmp_path / "fp16", FP16) == 0
    one, other = (content(tmp_path / name)["metrics"] for name in ("fp32", "fp16"))
    for line, other_line in zip(one, other, strict=True):
        assert other_line["loss"] == pytest.approx(line["loss"], rel=1e-2)
    state = load_state(latest_checkpoint(tmp_path / "fp16"))
    assert state["scaler"]["scale"] == 65536.0


def test_the_scaler_is_in_the_checkpoint(tmp_path, train_tiny):
    assert train_tiny(tmp_path / "whole", FP16) == 0
    assert train_tiny(tmp_path / "cut", FP16, stop_step=8) == 143
    assert load_state(latest_checkpoint(tmp_path / "cut"))["scaler"]["_growth_tracker"] == 8
    assert train_tiny(tmp_path / "cut", f"train.resume={tmp_path / 'cut'}") == 0
    assert differences(content(tmp_path / "whole"), content(tmp_path / "cut")) == []


@pytest.fixture
def scale_of(monkeypatch):
    """Begins with another scale of the loss."""

    def set_scale(scale: float) -> None:
        original = TrainingState.__init__

        def prepared(self, *arguments):
            original(self, *arguments)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        monkeypatch.setattr(TrainingState, "__init__", prepared)

    return set_scale


def test_an_overflow_skips_the_step_and_halves_the_scale(tmp_path, train_tiny, scale_of, recwarn):
    scale_of(2.0**24)
    assert train_tiny(tmp_path / "run", FP16, "optim.ema_decay=0.5") == 0
    state = load_state(latest_checkpoint(tmp_path / "run"))
    skipped = int(24 - torch.tensor(state["scaler"]["scale"]).log2())
    assert 0 < skipped < 10
    assert state["skipped_in_a_row"] == 0
    assert int(state["ema_updates"]) == 12 - skipped
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]
    metrics = content(tmp_path / "run")["metrics"]
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_overflows_without_end_are_an_error(tmp_path, train_tiny, scale_of):
    scale_of(2.0**100)
    with pytest.raises(NonFiniteError, match=r"not finite at step 11, epoch 2: loss 2\.\d+, gradient norm (nan|inf)"):
        train_tiny(tmp_path / "run", FP16)
    checkpoint = list_checkpoints(tmp_path / "run")[0]
    assert load_state(checkpoint)["skipped_in_a_row"] == 6
    weights = load_weights_file(checkpoint)
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
