"""The models, which only build and compute: no files, no training, no command line."""

from vitfast.models.convit import ConViT
from vitfast.models.convit_fields import ConViTFields
from vitfast.models.deit import DistilledVisionTransformer
from vitfast.models.image_model import ImageModel, ModelFields
from vitfast.models.registry import build_model, list_models
from vitfast.models.vit import VisionTransformer
from vitfast.models.vit_fields import ViTFields

__all__ = [
    "ConViT",
    "ConViTFields",
    "DistilledVisionTransformer",
    "ImageModel",
    "ModelFields",
    "ViTFields",
    "VisionTransformer",
    "build_model",
    "list_models",
]
