"""Checkpoints of every system: read without trust, identified by their keys, written under timm's keys.

``weight_file`` reads the tensors of a file, ``key_tables`` maps their keys and layouts, one module per format,
``source_checkpoint`` combines both, and ``load_weights`` fills a model.
"""

from vitfast.weights.key_tables.vissl import load_vissl_head as load_vissl_head
from vitfast.weights.load_weights import load_weights as load_weights
from vitfast.weights.save_weights import save_weights as save_weights
