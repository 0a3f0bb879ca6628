"""Lowering: from a model of vitfast, timm, torchvision or Hugging Face to its intermediate representation."""

from vitfast.inference.lowering.lower import Lowered as Lowered
from vitfast.inference.lowering.lower import lower as lower
from vitfast.inference.lowering.lower import with_merging as with_merging
from vitfast.inference.lowering.module_checks import NotRecognised as NotRecognised
