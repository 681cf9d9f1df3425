"""Published path of the denoising networks and their blocks."""

from ldm.nets.attention import AttentionBlock as AttentionBlock
from ldm.nets.attention import AttentionPool2d as AttentionPool2d
from ldm.nets.blocks import Downsample as Downsample
from ldm.nets.blocks import ResBlock as ResBlock
from ldm.nets.blocks import TimestepEmbedSequential as TimestepEmbedSequential
from ldm.nets.blocks import Upsample as Upsample
from ldm.nets.unet import UNetModel as UNetModel
from ldm.nets.unet_encoder import EncoderUNetModel as EncoderUNetModel
