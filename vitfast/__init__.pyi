"""The public names of `vitfast` for type checkers; `__init__.py` loads them lazily."""

from vitfast.api import create_model as create_model
from vitfast.api import list_models as list_models
from vitfast.api import load_weights as load_weights
from vitfast.api import save_weights as save_weights
from vitfast.benchmarking.verification import verify as verify
from vitfast.data.preprocessing import preprocessing as preprocessing
from vitfast.errors import UserError as UserError
from vitfast.evaluation.search import knn as knn
from vitfast.formats import FloatFormat as FloatFormat
from vitfast.inference.accelerate import accelerate as accelerate
from vitfast.inference.acceleration_report import AccelerationReport as AccelerationReport
from vitfast.inference.attention_maps import attention_maps as attention_maps
from vitfast.inference.attention_rollout import attention_rollout as attention_rollout
from vitfast.inference.early_exit import EarlyExit as EarlyExit
from vitfast.inference.early_exit import calibrate_exits as calibrate_exits
from vitfast.inference.export import ExportReport as ExportReport
from vitfast.inference.export import export as export
from vitfast.inference.onnx_export import custom_translation_table as custom_translation_table
from vitfast.inference.vit_file import load as load
from vitfast.models.load_report import LoadReport as LoadReport
from vitfast.ops.library import build_info as build_info
from vitfast.quantization.calibrate import calibrate as calibrate
from vitfast.quantization.configs import FixedConfig as FixedConfig
from vitfast.quantization.configs import FloatConfig as FloatConfig
from vitfast.quantization.configs import FP16_16Config as FP16_16Config
from vitfast.quantization.configs import FP16_32Config as FP16_32Config
from vitfast.quantization.configs import Int8Config as Int8Config
from vitfast.quantization.configs import QATConfig as QATConfig
from vitfast.quantization.configs import TF32Config as TF32Config
from vitfast.quantization.quantize import disable_fake_quantize as disable_fake_quantize
from vitfast.quantization.quantize import quantize_ as quantize_
from vitfast.quantization.quantized_file import load_quantized as load_quantized
from vitfast.quantization.quantized_file import save_quantized as save_quantized
from vitfast.quantization.record import quantization_record as quantization_record
from vitfast.quantization.record import quantize_from_record as quantize_from_record
from vitfast.quantization.report import QuantizationReport as QuantizationReport
from vitfast.quantization.report import quantization_report as quantization_report

__version__: str
