"""From a model of vitfast, timm, torchvision or Hugging Face to a description of what it computes."""

from vitfast.inference.lowering.lower import Lowered, describe_block, lower
from vitfast.inference.lowering.not_recognised import NotRecognised

__all__ = ["Lowered", "NotRecognised", "describe_block", "lower"]
