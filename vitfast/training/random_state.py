"""The random generators of a process: seeding, saving and restoring all of them together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from vitfast.errors import UserError


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators (the latter on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator, for whoever draws from it)
    torch.manual_seed(seed)


def capture_random_state() -> dict[str, Any]:
    """Returns the state of all generators as tensors and plain values, for ``torch.load(weights_only=True)``."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached_gaussian)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts all generators back to where ``capture_random_state`` found them.

    A state from a machine with another number of GPUs restores the generators that exist on both.

    Raises:
        UserError: if ``state`` is not what ``capture_random_state`` returns.
    """
    try:
        version, internal, gauss = state["python"]
        name, keys, position, has_gauss, cached_gaussian = state["numpy"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index, cuda_state in enumerate(state["cuda"][:devices]):
            torch.cuda.set_rng_state(cuda_state, index)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"the saved state of the random generators cannot be restored: {error}") from error
