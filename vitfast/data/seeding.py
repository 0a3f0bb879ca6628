"""Random numbers as stateless functions of a purpose and indices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(purpose: str, *numbers: int) -> int:
    """Derives an independent 32-bit seed from a purpose and some numbers, the same on every machine.

    torch's CPU generator uses 32 bits of its seed.

    Args:
        purpose: separates streams with the same numbers, e.g. ``"order"``.
        numbers: e.g. the seed of the run, the epoch and the index of an image.
    """
    text = ",".join([purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded_generator(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator within the block and restores its state afterwards.

    Unlike ``torch.manual_seed`` it does not seed the generators of GPUs, so that dropout does not depend on whether
    the training process reads the images itself.
    """
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)
