"""Lowering: from a model of vitfast, timm, torchvision or Hugging Face to its intermediate representation."""

from vitfast.inference.lowering.lower import Lowered, lower
from vitfast.inference.lowering.module_checks import NotRecognised

__all__ = ["Lowered", "NotRecognised", "lower"]
