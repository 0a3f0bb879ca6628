"""The emulation detects faults and reports their kind and place."""

from __future__ import annotations

import pytest
import torch

from support import simt

# tests/simt/programs/faults.cpp: fault -> the variant that finds it, its kind, a part of the message
FAULTS = {
    1: ("race", "race", "are not ordered by a barrier"),
    2: ("race", "race", "are not ordered by a barrier"),
    3: ("race", "race", "are not ordered by a barrier"),
    4: ("race", "uninitialized", "which nothing has written"),
    5: ("race", "pending", "has not waited for it"),
    6: ("race", "race", "are not ordered by a barrier"),
    7: ("plain", "pending", "never waited for"),
    8: ("plain", "runtime", "deadlock"),
    9: ("plain", "runtime", "others wait at"),
    10: ("plain", "runtime", "lanes of a warp have parted"),
    11: ("plain", "runtime", "takes 512 bytes of shared memory, but the launch asked for 256"),
    12: ("address", "address", "AddressSanitizer"),
    13: ("address", "address", "heap-buffer-overflow"),
    14: ("plain", "runtime", "no multiple of 16"),
    15: ("address", "address", "heap-buffer-overflow"),
}


def run(fault: int, variant: str, order: str = "forward") -> torch.Tensor:
    outputs = {"y": ((64,), torch.float32)}
    inputs = {"x": torch.arange(64, dtype=torch.float32)}
    return simt.run("faults", inputs, outputs, {"fault": fault}, variant=variant, order=order)["y"]


@pytest.mark.parametrize("variant", ["plain", "address", "race"])
def test_a_right_kernel_passes(variant: str) -> None:
    assert torch.equal(run(0, variant), torch.arange(63, -1, -1, dtype=torch.float32))


@pytest.mark.parametrize("order", ["forward", "reversed", "7"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: int, order: str) -> None:
    variant, kind, message = FAULTS[fault]
    with pytest.raises(simt.SimtError, match=message) as error:
        run(fault, variant, order)
    assert simt.fault(error.value) == kind


def test_a_message_names_thread_block_and_line() -> None:
    with pytest.raises(simt.SimtError, match=r"thread \d+ of block 0 at .*faults\.cpp:\d+: "):
        run(14, "plain")


def test_a_missing_option_is_named() -> None:
    with pytest.raises(simt.SimtError, match="the option fault= is missing"):
        simt.run("faults", {}, {}, {})
