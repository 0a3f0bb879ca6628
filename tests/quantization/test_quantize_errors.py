"""Errors name the argument and the remedy, and leave the model unchanged."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

import vitfast
from vitfast import FixedConfig, FloatConfig, FP16_16Config, FP16_32Config, Int8Config, QATConfig, UserError, quantize_
from vitfast.models import ImageModel


def test_preparing_twice(model: ImageModel) -> None:
    quantize_(model, QATConfig(FP16_16Config()))
    with pytest.raises(UserError, match=r"quantized already \(FP16_16, prepared\)"):
        quantize_(model, QATConfig(FP16_16Config()))
    with pytest.raises(UserError, match="quantized already"):
        quantize_(model, FP16_32Config())


def test_converting_the_unprepared_and_the_converted(model: ImageModel) -> None:
    with pytest.raises(UserError, match=r"not prepared.*step='prepare'"):
        quantize_(model, QATConfig(FP16_16Config(), step="convert"))
    quantize_(model, QATConfig(FP16_16Config()))
    with pytest.raises(UserError, match=r"prepared with FP16_16Config.*not FP16_32Config"):
        quantize_(model, QATConfig(FP16_32Config(), step="convert"))
    quantize_(model, QATConfig(step="convert"))
    with pytest.raises(UserError, match="converted already"):
        quantize_(model, QATConfig(step="convert"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FloatConfig("fp12"), r"unknown format 'fp12'.*fp8_e4m3fn.*FloatFormat\.ieee"),
        (lambda: FloatConfig(16), "format must be a FloatFormat"),  # type: ignore[arg-type]
        (lambda: FP16_16Config(numerics="half"), "numerics must be one of 'ieee', 'qtorch'; got 'half'"),  # type: ignore[arg-type]
        (lambda: FP16_16Config(semantics="old"), "semantics must be one of"),  # type: ignore[arg-type]
        (lambda: Int8Config("static"), "activations must be one of 'dynamic', 'calibrated'"),  # type: ignore[arg-type]
        (lambda: FixedConfig(25, 8), "word_length must be 2 to 24 bits"),
        (lambda: FixedConfig(8, 65), "fraction_length must be -64 to 64"),
        (lambda: QATConfig(FP16_16Config(), step="train"), "step must be 'prepare' or 'convert'"),  # type: ignore[arg-type]
        (lambda: QATConfig(), "needs a base"),
        (lambda: QATConfig("fp16"), "base must be a configuration"),  # type: ignore[arg-type]
    ],
)
def test_wrong_configurations(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("config", ["FP16_16", FP16_16Config, None])
def test_no_configuration(model: ImageModel, config: object) -> None:
    with pytest.raises(UserError, match="config must be a configuration such as"):
        quantize_(model, config)  # type: ignore[arg-type]


def test_a_filter_that_matches_nothing(model: ImageModel) -> None:
    with pytest.raises(UserError, match="filter_fn"):
        quantize_(model, FP16_16Config(), lambda module, name: name.startswith("layers"))
    quantize_(model, FP16_16Config())  # nothing was changed before


@pytest.mark.parametrize("name", ["blocks", "blocks.0.drop_path", "blocks.0.mlp.drop"])
def test_a_pattern_that_matches_modules_without_a_quantized_form(model: ImageModel, name: str) -> None:
    with pytest.raises(UserError, match=f"no module is called '{name}'"):
        quantize_(model, FP16_16Config(), overrides={name: None})


def test_a_pattern_that_matches_a_foreign_container() -> None:
    """It would not reach the layers within."""
    wrapped = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(UserError, match="no module is called '1'"):
        quantize_(wrapped, FP16_16Config(), overrides={"1": None})


def test_a_pattern_that_matches_nothing(model: ImageModel) -> None:
    with pytest.raises(UserError, match=r"no module is called 'block\.\*'"):
        quantize_(model, FP16_16Config(), overrides={"block.*": None})
    with pytest.raises(UserError, match=r"overrides\['head'\] must be a configuration or None"):
        quantize_(model, FP16_16Config(), overrides={"head": "int8"})  # type: ignore[dict-item]


def test_half_precision_parameters(model: ImageModel) -> None:
    with pytest.raises(UserError, match=r"torch\.bfloat16; call model\.float\(\)"):
        quantize_(model.bfloat16(), FP16_16Config())


def test_a_layer_of_an_unknown_class_is_not_passed_over() -> None:
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Scaled(2, 2))
    with pytest.raises(UserError, match=r"layer '1' is a Scaled.*overrides"):
        quantize_(model, FP16_32Config())
    quantize_(model, FP16_32Config(), overrides={"1": None})
    assert type(model[1]) is Scaled


def test_additions_that_cannot_be_rounded_are_reported(images: Tensor) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(self.norm(x))

    with pytest.warns(UserWarning, match="additions and concatenations in the code of Residual are not"):
        quantize_(nn.Sequential(Residual()), FP16_16Config())
    quantize_(nn.Sequential(Residual()), FP16_32Config())  # there is nothing to miss


def test_uncalibrated_activations(model: ImageModel, images: Tensor) -> None:
    quantize_(model, Int8Config("calibrated"))
    with pytest.raises(UserError, match=r"not calibrated; call vitfast\.calibrate"):
        model(images)


def test_the_unquantized_is_neither_disabled_nor_calibrated(model: ImageModel, images: Tensor) -> None:
    with pytest.raises(UserError, match="not quantized"), vitfast.disable_fake_quantize(model):
        pass
    with pytest.raises(UserError, match="not quantized"):
        vitfast.calibrate(model, [images])
    with pytest.raises(UserError, match="batches must be at least 1"):
        vitfast.calibrate(model, [images], batches=0)
    quantize_(model, Int8Config("calibrated"))
    with pytest.raises(UserError, match="no batch"):
        vitfast.calibrate(model, [])
    with pytest.raises(UserError, match="loader must yield images"):
        vitfast.calibrate(model, [{"image": images}])
