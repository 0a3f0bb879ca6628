"""Every format has a name, and a wrong one lists them."""

from __future__ import annotations

import pytest

from vitfast import (
    FixedConfig,
    FloatConfig,
    FloatFormat,
    FP16_16Config,
    FP16_32Config,
    Int8Config,
    TF32Config,
    UserError,
)
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.named_configs import format_name, format_names, named_config

CASES = [
    ("FP16_16", FP16_16Config()),
    ("fp16_32", FP16_32Config()),
    ("TF32", TF32Config()),
    ("BF16", FloatConfig(FloatFormat.bf16())),
    ("FP8_E4M3FN", FloatConfig(FloatFormat.fp8_e4m3fn())),
    ("FP8_E5M2", FloatConfig(FloatFormat.fp8_e5m2())),
    ("FP6_E3M2", FloatConfig(FloatFormat.fp6_e3m2())),
    ("FP6_E2M3", FloatConfig(FloatFormat.fp6_e2m3())),
    ("FP4_E2M1", FloatConfig(FloatFormat.fp4_e2m1())),
    ("FLOAT_5_7", FloatConfig(FloatFormat.ieee(5, 7))),
    ("INT8", Int8Config()),
    ("PyTorchINT8", Int8Config("calibrated")),
    ("FixedPoint11Integral2", FixedConfig(11, 9)),
    ("FixedPoint11Integral3", FixedConfig(11, 8)),
    ("MXFP8_E4M3", FloatConfig("fp8_e4m3fn", block=32)),
    ("MXFP8_E5M2", FloatConfig("fp8_e5m2", block=32)),
    ("MXFP6_E3M2", FloatConfig("fp6_e3m2", block=32)),
    ("MXFP6_E2M3", FloatConfig("fp6_e2m3", block=32)),
    ("MXFP4", FloatConfig("fp4_e2m1", block=32)),
    ("FixedPoint11Integral4", FixedConfig(11, 7)),
    ("FIXED_16_10", FixedConfig(16, 10)),
]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_names(name: str, config: QuantizationConfig) -> None:
    assert named_config(name) == config
    if name in format_names():
        assert format_name(config) == (name if name != "PyTorchINT8" else "INT8, calibrated")


def test_all_names_are_here() -> None:
    assert set(format_names()) <= {name.replace("fp16_32", "FP16_32") for name, _ in CASES}
    assert format_name(FixedConfig(16, 10)) == "FIXED_16_10"
    assert format_name(FloatConfig(FloatFormat.ieee(5, 7))) == "FLOAT_5_7"


def test_options() -> None:
    assert named_config("FP16_16", numerics="qtorch", semantics=None) == FP16_16Config("qtorch")
    assert named_config("INT8", activations="calibrated") == Int8Config("calibrated")
    assert named_config("BF16", round_results=True) == FloatConfig("bf16", round_results=True)
    assert format_name(FP16_16Config("qtorch", semantics="legacy_convert")) == "FP16_16"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "FP12",
            {},
            r"there is no format 'FP12'.*FP16_16, FP16_32, TF32, BF16, .*INT8.*Integral4, FLOAT_e_m",
        ),
        ("fp8_e4m3", {}, "did you mean FP8_E4M3FN"),
        ("FP32", {}, "rounds nothing"),
        ("FLOAT_9_1", {}, "2 to 8 exponent bits"),
        ("FIXED_40_1", {}, "word_length must be 2 to 24"),
        ("INT8", {"numerics": "ieee"}, "the format INT8 has no option numerics; its options are activations"),
        ("FP16_16", {"round_results": True}, "the format FP16_16 has no option round_results"),
        ("FP16_16", {"numerics": "exact"}, "numerics must be one of"),
        ("FP16_16", {"backend": "qtorch"}, "backend='qtorch' computes QPyTorch's numbers; give numerics='qtorch'"),
    ],
)
def test_errors(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        named_config(name, **options)
