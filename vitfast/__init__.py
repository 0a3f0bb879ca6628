"""vitfast: train, quantize and run Vision Transformers, fast.

The names below are loaded when they are first used, so that ``import vitfast`` stays cheap and needs neither
torchvision nor a compiler. With the first of them, or now if torch is imported already, vitfast's operators are
registered, which ``torch.export.load`` needs.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

__version__ = "0.1.0"

# After `pip install .`, `python -m vitfast.train` in the checkout imports the checkout, which holds nothing compiled:
# what the build made is then taken from the installed package.
__path__ = pkgutil.extend_path(__path__, __name__)

# public name -> the module that holds it
_PUBLIC_NAMES = {
    "AccelerationReport": "vitfast.inference.acceleration_report",
    "EarlyExit": "vitfast.inference.early_exit",
    "ExportReport": "vitfast.inference.export",
    "FP16_16Config": "vitfast.quantization.configs",
    "FP16_32Config": "vitfast.quantization.configs",
    "FixedConfig": "vitfast.quantization.configs",
    "FloatConfig": "vitfast.quantization.configs",
    "FloatFormat": "vitfast.formats",
    "Int8Config": "vitfast.quantization.configs",
    "LoadReport": "vitfast.models.load_report",
    "QATConfig": "vitfast.quantization.configs",
    "QuantizationReport": "vitfast.quantization.report",
    "TF32Config": "vitfast.quantization.configs",
    "UserError": "vitfast.errors",
    "accelerate": "vitfast.inference.accelerate",
    "attention_maps": "vitfast.inference.attention_maps",
    "attention_rollout": "vitfast.inference.attention_rollout",
    "build_info": "vitfast.ops.library",
    "calibrate": "vitfast.quantization.calibrate",
    "calibrate_exits": "vitfast.inference.early_exit",
    "create_model": "vitfast.api",
    "custom_translation_table": "vitfast.inference.onnx_export",
    "disable_fake_quantize": "vitfast.quantization.quantize",
    "export": "vitfast.inference.export",
    "knn": "vitfast.evaluation.search",
    "list_models": "vitfast.api",
    "load": "vitfast.inference.vit_file",
    "load_quantized": "vitfast.quantization.quantized_file",
    "load_weights": "vitfast.api",
    "preprocessing": "vitfast.data.preprocessing",
    "quantization_record": "vitfast.quantization.record",
    "quantization_report": "vitfast.quantization.report",
    "quantize_": "vitfast.quantization.quantize",
    "quantize_from_record": "vitfast.quantization.record",
    "save_quantized": "vitfast.quantization.quantized_file",
    "save_weights": "vitfast.api",
    "verify": "vitfast.benchmarking.verification",
}

__all__ = ["__version__", *sorted(_PUBLIC_NAMES)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'vitfast' has no attribute {name!r}")
    _register_operators()
    return getattr(importlib.import_module(_PUBLIC_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register_operators() -> None:
    if "torch" in sys.modules:
        importlib.import_module("vitfast.ops")


_register_operators()
