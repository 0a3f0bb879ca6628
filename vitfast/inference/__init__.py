"""Inference: accelerated models, early exit and attention maps."""

from vitfast.inference.early_exit import *  # noqa: F403
