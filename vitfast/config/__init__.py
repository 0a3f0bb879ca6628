"""Options as dataclasses, recipes, and the parser of ``key=value`` arguments."""

from vitfast.config.help import help_text
from vitfast.config.load import load_config, load_options, to_yaml
from vitfast.config.option import option
from vitfast.config.recipes import list_recipes
from vitfast.config.schema import (
    DATASETS,
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "DATASETS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "ScheduleConfig",
    "TrainConfig",
    "help_text",
    "list_recipes",
    "load_config",
    "load_options",
    "option",
    "to_yaml",
]
