"""Builds of a row function that fail in an actor of Ray; workers import this module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vitfast.commands.command_options import EmbedOptions
from vitfast.commands.embed import build_embedder
from vitfast.evaluation.row_functions import Embedder


def raises_once(options: EmbedOptions) -> tuple[Any, Embedder]:
    """An embedder whose first batch of all actors raises; the marker is beside the output."""
    return _build(options, always=False)


def raises_always(options: EmbedOptions) -> tuple[Any, Embedder]:
    """An embedder whose batches raise."""
    return _build(options, always=True)


def _build(options: EmbedOptions, *, always: bool) -> tuple[Any, Embedder]:
    trained, embedder = build_embedder(options)
    compute, marker = embedder.compute, Path(f"{options.output}.raised")

    def failing(images: Any) -> Any:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if not always:
                return compute(images)
        raise RuntimeError("planted")

    embedder.compute = failing  # type: ignore[method-assign]
    return trained, embedder
