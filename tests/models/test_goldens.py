"""Golden logits of the original implementations, with weights computed by a formula.

The originals were run outside this project; ``tests/goldens/*.json`` hold their results, what was run and what had to
be changed to run it. On both sides the weights, under the originals' names, come from ``support.formula_weights``; they
are loaded through a file in the original's format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfast
from support.formula_weights import formula_images, formula_numbers, formula_state
from vitfast.layers import SwavHead
from vitfast.models import ImageModel

GOLDENS = Path(__file__).parents[1] / "goldens"
# float32 leaves 7e-7; a LayerNorm's epsilon of 1e-5 instead of 1e-6 changes these logits by 7e-6 and more
TOLERANCE = 5e-6


@dataclass(frozen=True)
class Original:
    """How an original is rebuilt here.

    Attributes:
        name: our architecture.
        fields: its sizes; all that the original always does is taken from its file.
        entry: where in its files it puts the weights, ``a.b`` for nested dictionaries.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    entry: str = ""


_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
_VISSL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
_VISSL_ENTRY = "classy_state_dict.base_model.model"
_MYRTLE = {"img_size": 40, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
_CONVIT = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 4,
    "local_up_to_layer": 2,
}

ORIGINALS = {
    "jeonsworld_vit": Original("ViT-B_16", {"img_size": 32, "patch_size": 8, **_VIT}),
    "jeonsworld_r50_vit": Original(
        "R50-ViT-B_16", {"img_size": 80, "resnet_layers": (2, 1, 2), "resnet_width": 32, **_VIT}
    ),
    "convit": Original("convit_tiny", _CONVIT, "model"),
    "t2t_vit": Original("t2t_vit_14", {"img_size": 64, **_VIT}, "state_dict_ema"),
    "t2t_vit_t": Original("t2t_vit_t_14", {"img_size": 64, **_VIT}, "state_dict_ema"),
    "dvt_deit": Original("DVT_Deit_small", _VIT, "model_state_dict"),
    "dvt_t2t_vit": Original("DVT_T2t_vit_12", {"embed_dim": 64, "depth": 2}, "model_state_dict"),
    "dvt_t2t_vit_12": Original("DVT_T2t_vit_12", {}, "model_state_dict"),
    "myrtle_vit": Original("vit_tiny_patch16_224", _MYRTLE, "model"),
    "vissl_vit": Original("vit_base_patch16_224", _VISSL, _VISSL_ENTRY),
    "vissl_vit_2021": Original("vit_base_patch16_224", _VISSL, _VISSL_ENTRY),
    "vissl_convit": Original("convit_small", {**_CONVIT, "locality_dim": 10}, _VISSL_ENTRY),
}
SLOW = {"dvt_t2t_vit_12"}
SWAV = "vissl_swav_head"


def read_golden(golden_name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{golden_name}.json").read_text(encoding="utf-8"))


def load_original(golden: dict[str, Any], original: Original, folder: Path) -> ImageModel:
    """Builds our model from the file that the original would have saved."""
    content: Any = _nested(formula_state(golden["weights"]), original.entry)
    torch.save(content, folder / "original.bin")
    model = vitfast.create_model(original.name, checkpoint=folder / "original.bin", **original.fields)
    report = model.load_report
    assert (report.missing, report.unexpected, report.mismatched, report.skipped, report.fresh) == ((),) * 5
    return model.eval()


def _nested(state: dict[str, Tensor], entry: str) -> dict[str, Any]:
    content: dict[str, Any] = dict(state)
    if entry == _VISSL_ENTRY:  # trunk and heads are separate dictionaries
        content = {
            part: {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{part}.")}
            for part in ("trunk", "heads")
        }
    for name in reversed(entry.split(".") if entry else []):
        content = {name: content}
    return content


def assert_equals_golden(outputs: Any, golden: dict[str, Any]) -> None:
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    for output, (name, values) in zip(outputs, golden["logits"].items(), strict=True):
        expected = torch.tensor(values)
        assert output.shape == expected.shape
        distance = float((output - expected).norm() / expected.norm())
        assert distance <= TOLERANCE, f"{name}: relative L2 distance {distance:.2e} > {TOLERANCE:.0e}"


def run(model: nn.Module, golden: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return model(formula_images(golden["images"]))


@pytest.mark.parametrize(
    "golden_name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ORIGINALS]
)
def test_logits(golden_name: str, tmp_path: Path) -> None:
    golden = read_golden(golden_name)
    model = load_original(golden, ORIGINALS[golden_name], tmp_path)
    assert_equals_golden(run(model, golden), golden)


def test_swav_head() -> None:
    golden = read_golden(SWAV)
    head = SwavHead([48, 64, 32], [20, 12])
    head.load_state_dict(formula_state(golden["weights"]))
    assert_equals_golden(run(head.eval(), golden), golden)


def test_every_golden_is_checked() -> None:
    assert {path.stem for path in GOLDENS.glob("*.json")} == {*ORIGINALS, SWAV}


def test_every_golden_says_where_it_is_from() -> None:
    for path in GOLDENS.glob("*.json"):
        golden = read_golden(path.stem)
        assert golden["repository"].startswith("https://github.com/")
        assert len(golden["commit"]) == 40
        assert golden["model"]
        assert golden["made_with"].startswith("torch ")


def test_the_formula() -> None:
    """Worked out with Python's whole numbers, so that the formula stays what the goldens were made with."""

    def number(name_crc: int, index: int) -> float:
        z = ((name_crc << 32) + index + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return 2 * ((z ^ z >> 31) >> 11) / 2**53 - 1

    crc = 0x806A8420  # of "head.weight"
    numbers = formula_numbers("head.weight", 1000)
    assert numbers.tolist() == [number(crc, index) for index in range(1000)]
    state = formula_state({"head.weight": [4, 250], "norm.weight": [8], "head.bias": [8], "cls_token": [1, 1, 8]})
    assert state["head.weight"][1, 3].item() == pytest.approx(number(crc, 253) * (3 / 250) ** 0.5, rel=1e-6)
    assert state["head.weight"].std().item() == pytest.approx(250**-0.5, rel=0.1)
    assert (state["norm.weight"] - 1).abs().max() < 0.25
    assert state["head.bias"].abs().max() < 0.25
    assert state["cls_token"].abs().max() < 0.5
    kernels = formula_state({"conv.weight": [8, 2, 3, 3]})["conv.weight"]
    assert (kernels[3].abs().max() < kernels[0].abs().max() / 20).item()
