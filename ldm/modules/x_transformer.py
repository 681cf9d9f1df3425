"""Published path of the small text transformer."""

from ldm.nets.text import Encoder as Encoder
from ldm.nets.text import TransformerWrapper as TransformerWrapper
