"""Published path of the functions that scripts and notebooks import."""

from ldm.config import instantiate_from_config as instantiate_from_config
from ldm.config import locate as get_obj_from_str
from ldm.tensor import count_parameters as count_params
from ldm.tensor import mean_flat as mean_flat
