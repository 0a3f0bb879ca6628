"""Checkpoints of every system: read without trust, told apart by their keys, written back under timm's.

``raw_file`` reads what a file holds; ``families`` are the tables that bring it under our keys, one file a system.
"""

from vitfast.weights.load_weights import load_weights
from vitfast.weights.save_weights import save_weights
from vitfast.weights.vissl_head import load_vissl_head

__all__ = ["load_vissl_head", "load_weights", "save_weights"]
