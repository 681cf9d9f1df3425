"""Published path of the conditioning encoders."""

from ldm.conditioning.clip import FrozenClipImageEmbedder as FrozenClipImageEmbedder
from ldm.conditioning.clip import FrozenCLIPTextEmbedder as FrozenCLIPTextEmbedder
from ldm.conditioning.labels import ClassEmbedder as ClassEmbedder
from ldm.conditioning.spatial import SpatialRescaler as SpatialRescaler
from ldm.conditioning.t5 import FrozenT5Embedder as FrozenT5Embedder
from ldm.conditioning.text import BERTEmbedder as BERTEmbedder
from ldm.conditioning.text import BERTTokenizer as BERTTokenizer
from ldm.conditioning.text import FrozenCLIPEmbedder as FrozenCLIPEmbedder
from ldm.conditioning.text import TransformerEmbedder as TransformerEmbedder
