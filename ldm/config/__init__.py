"""Configurations: read, checked, and turned into objects.

load                      YAML files and `a.b.c=value` overrides to one configuration
check                     everything wrong with it, found before anything is built
instantiate_from_config   one level: target(**params)
build                     depth first: every nested configuration becomes its object
model_block               the block `model`; instantiate_model makes it into the model
locate, trust             dotted paths, and which of them a configuration may name
"""

from ldm.config.check import check, problems_of
from ldm.config.construct import build, instantiate_from_config, to_plain
from ldm.config.errors import ConfigError, did_you_mean, nearest, nearest_path, with_key
from ldm.config.files import load
from ldm.config.model import instantiate_model, model_block, without_checkpoints
from ldm.config.targets import locate, trust

__all__ = [
    "ConfigError",
    "build",
    "check",
    "did_you_mean",
    "instantiate_from_config",
    "instantiate_model",
    "load",
    "locate",
    "model_block",
    "nearest",
    "nearest_path",
    "problems_of",
    "to_plain",
    "trust",
    "with_key",
    "without_checkpoints",
]
