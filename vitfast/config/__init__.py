"""Options as dataclasses, recipes, and the parser of ``key=value`` arguments."""

from vitfast.config.data_schema import DATASETS as DATASETS
from vitfast.config.data_schema import AugmentConfig as AugmentConfig
from vitfast.config.data_schema import DataConfig as DataConfig
from vitfast.config.help import help_text as help_text
from vitfast.config.load import asks_for_help as asks_for_help
from vitfast.config.load import load_config as load_config
from vitfast.config.load import load_options as load_options
from vitfast.config.load import to_yaml as to_yaml
from vitfast.config.option import option as option
from vitfast.config.recipes import list_recipes as list_recipes
from vitfast.config.schema import Config as Config
from vitfast.config.schema import ModelConfig as ModelConfig
from vitfast.config.schema import OptimConfig as OptimConfig
from vitfast.config.schema import ScheduleConfig as ScheduleConfig
from vitfast.config.schema import TrainConfig as TrainConfig
