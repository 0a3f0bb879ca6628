"""The models: fields, architectures and modules. They do not read files, train or parse options."""

from vitfast.models.convit import ConViT as ConViT
from vitfast.models.convit import ConViTFields as ConViTFields
from vitfast.models.deit import DistilledVisionTransformer as DistilledVisionTransformer
from vitfast.models.dvt import DVT as DVT
from vitfast.models.dvt import ExitState as ExitState
from vitfast.models.dvt_fields import DVTFields as DVTFields
from vitfast.models.hybrid import HybridFields as HybridFields
from vitfast.models.hybrid import HybridViT as HybridViT
from vitfast.models.image_model import ImageModel as ImageModel
from vitfast.models.model_fields import ModelFields as ModelFields
from vitfast.models.multi_crop import MultiCrop as MultiCrop
from vitfast.models.registry import build_model as build_model
from vitfast.models.registry import list_models as list_models
from vitfast.models.saved_exits import SavedExits as SavedExits
from vitfast.models.t2t_vit import T2TViT as T2TViT
from vitfast.models.t2t_vit import T2TViTFields as T2TViTFields
from vitfast.models.vit import VisionTransformer as VisionTransformer
from vitfast.models.vit import ViTFields as ViTFields
