"""ConViT beside DeiT and timm, DVT beside its original code: the models are the same, and the scripts run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.scripts import load_script
from vitfast.benchmarking.table import agrees, relative_l2
from vitfast.config import load_options
from vitfast.errors import UserError
from vitfast.models import build_model

convit, dvt = load_script("convit"), load_script("dvt")
CPU = torch.device("cpu")
SMALL = {"img_size": 56, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5, "reuse_dim": 6, "token_dim": 8}


def test_all_convits_have_one_result() -> None:
    table = convit.convit_table("tiny", 1, "fp32", CPU)
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast ConViT", "timm ConViT", "vitfast DeiT"]
    reference = table.reference
    for case in cases[:2]:
        assert agrees(relative_l2(case.output(), reference), "fp32")
    assert cases[2].output is None
    assert cases[2].run().shape == (1, 1000)


def test_without_timm_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    table = convit.convit_table("tiny", 1, "fp32", CPU)
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast ConViT", "vitfast DeiT"]
    assert table.left_out == {"timm ConViT": "the comparison needs timm: pip install timm"}


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
    monkeypatch.setattr(dvt, "seeded_model", lambda name: build_model(name, **SMALL).eval())
    yield tmp_path
    for name in ("models", "models.t2t_vit"):
        sys.modules.pop(name, None)


def test_the_original_and_vitfast_have_one_result(checkout: Path) -> None:
    table = dvt.dvt_table("dvt_t2t_vit_12", str(checkout), 2, "fp32", CPU)
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast", "vitfast accelerated", "original"]
    assert table.reference.shape == (3 * 2 * 5,)
    for case in cases:
        assert agrees(relative_l2(case.output(), table.reference), "fp32")
    assert str(checkout) not in sys.path
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()  # as before


@pytest.mark.filterwarnings("ignore:the machine is busy")
def test_the_script_prints_a_table(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"original={checkout}", "batch=1,2", "seconds=0.01", "threads=1"]
    assert dvt.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "all exits of dvt_t2t_vit_12, batch 2, fp32" in printed
    assert "original" in printed


def test_without_a_checkout_vitfast_is_measured_alone(checkout: Path) -> None:
    table = dvt.dvt_table("dvt_t2t_vit_12", None, 1, "fp32", CPU)
    cases = table.cases()
    assert [case.name for case in cases] == ["vitfast", "vitfast accelerated"]
    assert "no checkout" in table.left_out["original"]
    with pytest.raises(UserError, match=r"original=.* has no models/t2t_vit.py"):
        dvt.dvt_table("dvt_t2t_vit_12", str(checkout / "models"), 1, "fp32", CPU).cases()


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        (convit.ConViTOptions, ["size=huge"], "size=huge"),
        (dvt.DVTOptions, ["batch=x"], r"batch=\[x\]"),
        (dvt.DVTOptions, ["json=a"], "json=a"),
    ],
)
def test_mistakes_are_reported(schema, arguments, message):
    with pytest.raises(UserError, match=message):
        load_options(schema, arguments, "benchmarks")
