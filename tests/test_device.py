"""Selection of the device."""

from __future__ import annotations

import pytest
import torch

from vitfast.device import autocast, describe_device, has_fast_bf16, select_device
from vitfast.errors import UserError


def test_auto_selects_the_available_device():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"device=cuda .* use device=cpu"):
        select_device("cuda")


def test_precision():
    layer = torch.nn.Linear(2, 2)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert layer(torch.ones(1, 2)).dtype == torch.float32


def test_the_description_counts_threads():
    threads = torch.get_num_threads()
    assert describe_device(torch.device("cpu")) == f"CPU, {threads} thread{'' if threads == 1 else 's'}"


@pytest.mark.parametrize(
    ("processor", "instructions", "expected"),
    [
        ("AMD EPYC", (), False),
        ("AMD EPYC", ("avx512_bf16",), True),
        ("Intel Xeon", ("avx512_bf16",), False),
        ("Intel Xeon", ("avx512_bf16", "amx_tile"), True),
    ],
)
def test_bf16_is_fast_with_instructions_for_it(monkeypatch, processor, instructions, expected):
    monkeypatch.setattr("vitfast.device.cpu_model", lambda: processor)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in instructions)
    assert has_fast_bf16(torch.device("cpu")) is expected
