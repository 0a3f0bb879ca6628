"""Random numbers that are functions of what they are for, not of what was drawn before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(purpose: str, *numbers: int) -> int:
    """Derives an independent 32-bit seed for a purpose and some numbers, the same on every machine.

    32 bits are what torch's CPU generator makes use of.

    Args:
        purpose: keeps streams apart that have the same numbers, e.g. ``"order"``.
        numbers: e.g. the seed of the run, the epoch and the index of an image.
    """
    text = ",".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded_generator(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator within the block and puts its state back afterwards.

    Unlike ``torch.manual_seed`` this leaves the generators of GPUs alone, so that dropout is no function of whether
    the training process reads the images itself.
    """
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)
