"""Published path of the autoencoder's networks and of the DDPM-style UNet."""

from ldm.nets.autoencoder import Decoder as Decoder
from ldm.nets.autoencoder import Encoder as Encoder
from ldm.nets.autoencoder_blocks import AttnBlock as AttnBlock
from ldm.nets.autoencoder_blocks import Downsample as Downsample
from ldm.nets.autoencoder_blocks import LinAttnBlock as LinAttnBlock
from ldm.nets.autoencoder_blocks import ResnetBlock as ResnetBlock
from ldm.nets.autoencoder_blocks import Upsample as Upsample
from ldm.nets.ddpm_unet import Model as Model
from ldm.nets.rescaler import LatentRescaler as LatentRescaler
from ldm.nets.rescaler import UpsampleDecoder as UpsampleDecoder
