"""Fixtures that train tiny models."""

from support.run_fixtures import train_tiny, training_server

__all__ = ["train_tiny", "training_server"]
