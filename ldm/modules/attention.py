"""Published path of the attention layers."""

from ldm.nets.attention import CrossAttention as CrossAttention
from ldm.nets.attention import LinearAttention as LinearAttention
from ldm.nets.transformer import GEGLU as GEGLU
from ldm.nets.transformer import BasicTransformerBlock as BasicTransformerBlock
from ldm.nets.transformer import FeedForward as FeedForward
from ldm.nets.transformer import SpatialTransformer as SpatialTransformer
