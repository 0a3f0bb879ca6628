"""ConViT beside DeiT and timm, DVT beside its original code: the models are the same, and the scripts run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vitfast.benchmarking import convit_comparison as convit
from vitfast.benchmarking import dvt_comparison as dvt
from vitfast.benchmarking.agreement import agrees, relative_l2
from vitfast.benchmarking.family_run import ConViTOptions, DVTOptions, run_dvt_benchmark
from vitfast.config import load_options
from vitfast.errors import UserError
from vitfast.models import build_model

CPU = torch.device("cpu")
SMALL = {"img_size": 56, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5, "reuse_dim": 6, "token_dim": 8}


def test_all_convits_have_one_result() -> None:
    contest = convit.convit_comparison("tiny", 1, "fp32", CPU).build()
    assert [subject.name for subject in contest.subjects] == ["vitfast ConViT", "timm ConViT", "vitfast DeiT"]
    reference = contest.reference()
    for subject in contest.subjects[:2]:
        assert agrees(relative_l2(subject.output(), reference), "fp32")
    assert contest.subjects[2].output is None
    assert contest.subjects[2].run().shape == (1, 1000)


def test_without_timm_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    contest = convit.convit_comparison("tiny", 1, "fp32", CPU).build()
    assert [subject.name for subject in contest.subjects] == ["vitfast ConViT", "vitfast DeiT"]
    assert contest.left_out == {"timm ConViT": "not installed: pip install timm"}


# as the published code: a class by its name, and ``.cuda()`` within the forward pass
ORIGINAL = """
import torch
from vitfast.models import build_model

class DVT_T2t_vit_12(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = build_model("dvt_t2t_vit_12", **SMALL)

    def state_dict(self, *_, **__):
        return self.model.state_dict()

    def forward(self, images):
        return self.model(images + torch.zeros(1).cuda())
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that has the original's file, with a small model in it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "t2t_vit.py").write_text(f"SMALL = {SMALL}\n{ORIGINAL}")
    monkeypatch.setattr(dvt, "create_model", lambda name: build_model(name, **SMALL))
    yield tmp_path
    for name in ("models", "models.t2t_vit"):
        sys.modules.pop(name, None)


def test_the_original_and_vitfast_have_one_result(checkout: Path) -> None:
    contest = dvt.dvt_comparison("dvt_t2t_vit_12", str(checkout), 2, "fp32", CPU).build()
    assert [subject.name for subject in contest.subjects] == ["vitfast", "vitfast accelerated", "original"]
    assert contest.reference().shape == (3 * 2 * 5,)
    for subject in contest.subjects:
        assert agrees(relative_l2(subject.output(), contest.reference()), "fp32")
    assert str(checkout) not in sys.path
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()  # as before


@pytest.mark.filterwarnings("ignore:the machine is busy")
def test_the_script_prints_a_table(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"original={checkout}", "batch=1,2", "seconds=0.01", "threads=1"]
    assert run_dvt_benchmark(load_options(DVTOptions, arguments, "benchmarks/dvt.py")) == 0
    printed = capsys.readouterr().out
    assert "all exits of dvt_t2t_vit_12, batch 2, fp32" in printed
    assert "original" in printed


def test_without_a_checkout_vitfast_is_measured_alone(checkout: Path) -> None:
    contest = dvt.dvt_comparison("dvt_t2t_vit_12", None, 1, "fp32", CPU).build()
    assert [subject.name for subject in contest.subjects] == ["vitfast", "vitfast accelerated"]
    assert "no checkout" in contest.left_out["original"]
    with pytest.raises(UserError, match=r"original=.* has no models/t2t_vit.py"):
        dvt.dvt_comparison("dvt_t2t_vit_12", str(checkout / "models"), 1, "fp32", CPU).build()


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        (ConViTOptions, ["size=huge"], "size=huge"),
        (DVTOptions, ["batch=x"], "batch=x"),
        (DVTOptions, ["json=a"], "json=a"),
    ],
)
def test_mistakes_are_told(schema, arguments, message):
    with pytest.raises(UserError, match=message):
        load_options(schema, arguments, "benchmarks")
