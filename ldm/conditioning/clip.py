"""CLIP's joint space of images and texts as a condition: one frozen vector of either.

Both encoders take a whole CLIP in transformers' format, as
`hf download openai/clip-vit-large-patch14 --local-dir DIR` fetches it.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioning.frozen import FrozenEmbedder
from ldm.conditioning.hub import from_hub
from ldm.conditioning.text import _CLIP_FILES, CaptionEmbedder, Captions, Tokenizer
from ldm.config import ConfigError
from ldm.nets.clip import normalization, normalized_pixels
from ldm.ranges import Positive
from ldm.tensor import sent_to, to_image_tensor

__all__ = ["FrozenCLIPTextEmbedder", "FrozenClipImageEmbedder"]

_LARGE = "openai/clip-vit-large-patch14"
# published: names of OpenAI's package, and where the hub has the same weights
_PUBLISHED = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": _LARGE,
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
_LARGE_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_LARGE_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}


class _FrozenTower(FrozenEmbedder):
    """One of CLIP's two towers with its projection into the joint space; never trained.

    name: a directory, a name on the hub, or one of OpenAI's.  tower: `text_model` or
    `vision_model`, the names below which transformers keeps its weights.
    """

    slots = ("crossattn",)
    _tower: str
    _projection: str

    def _build(self, name: str, n_repeat: int, normalize: bool) -> None:
        self.name = _PUBLISHED.get(name, name)
        config = _config_of(self.name)
        self.embed_dim = config.projection_dim
        self.n_repeat, self.normalize = n_repeat, normalize
        network = self._network(config)
        width = network.config.hidden_size
        # newer releases of transformers lack the level that weights are published under
        inner = getattr(network, self._tower, network)
        projection = nn.Linear(width, config.projection_dim, bias=False)
        self.transformer = nn.ModuleDict({self._tower: inner, self._projection: projection})
        self.freeze()

    @abstractmethod
    def _network(self, config: Any) -> Any:
        """The tower of a configuration, of transformers."""

    def prepare(self) -> None:
        """Load the weights, unless a checkpoint brought them."""
        if self.has_weights:
            return
        from transformers import CLIPModel

        loader = SimpleNamespace(
            from_pretrained=lambda name: CLIPModel.from_pretrained(name, output_loading_info=True)
        )
        source, report = from_hub(loader, self.name, "CLIP")
        lacking = sorted(map(str, report["missing_keys"]))
        if lacking:
            raise ConfigError(
                f"CLIP {self.name!r} is no CLIP of images and texts: its weights lack {lacking[0]} "
                f"and {len(lacking) - 1} more"
            )
        for part in (self._tower, self._projection):
            given = getattr(source, part)
            inner = getattr(given, part, given)
            self.transformer[part].load_state_dict(inner.state_dict())
        self.has_weights = True

    def _projected(self, **given: Tensor) -> Tensor:
        """What the tower makes of its input, projected, (B, D)."""
        pooled = self.transformer[self._tower](**given).pooler_output
        embedding = self.transformer[self._projection](pooled)
        # lengths in float32: their squares overflow half precision
        return F.normalize(embedding.float(), dim=1) if self.normalize else embedding

    def _tokens(self, embedding: Tensor) -> Tensor:
        """An embedding (B, D) as (B, n_repeat, D)."""
        return embedding[:, None].expand(-1, self.n_repeat, -1)

    @property
    def _device(self) -> torch.device:
        return next(self.transformer.parameters()).device


class FrozenCLIPTextEmbedder(CaptionEmbedder, _FrozenTower):
    """Captions to CLIP's embedding of each, a vector in the space that images are embedded in too.

    With a retrieval-augmented model (arXiv:2204.11824, section 3.3) it stands in for the neighbours
    of an image that nobody has seen.

    version: a directory with a whole CLIP, a name on the hub, or one of OpenAI's (ViT-L/14).
        Weights come from there, or from the checkpoint of the model that it is part of.
    max_length: tokens of a caption that count; at most those that CLIP reads.
    n_repeat: tokens that the vector is repeated as.  normalize: to length 1.
    Raises ConfigError for a directory that lacks the configuration.
    """

    _tower, _projection = "text_model", "text_projection"

    def __init__(
        self,
        version: str = "ViT-L/14",
        device: str | None = None,  # published: the device follows the model, this is ignored
        max_length: Positive = 77,
        n_repeat: Positive = 1,
        normalize: bool = True,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self._build(version, n_repeat, normalize)
        self.max_length = min(max_length, self._positions)

    def _network(self, config: Any) -> Any:
        from transformers import CLIPTextModel

        self._positions = int(config.text_config.max_position_embeddings)
        return CLIPTextModel(config.text_config)

    def load_tokenizer(self) -> Tokenizer:
        """CLIP's."""
        from transformers import CLIPTokenizer

        tokenizer = from_hub(CLIPTokenizer, self.name, "the tokenizer", *_CLIP_FILES)
        return Tokenizer(tokenizer, self.max_length)

    def prepare(self) -> None:
        """Load the tokenizer, and the weights unless a checkpoint brought them."""
        CaptionEmbedder.prepare(self)
        _FrozenTower.prepare(self)

    @torch.no_grad()
    def forward(self, text: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to their embeddings (B, D)."""
        if not isinstance(text, Tensor):
            self.prepare()
        return self._projected(input_ids=self.token_ids(text, self._device))

    def encode(self, value: Captions | Tensor) -> Tensor:
        """Captions, or token ids, to (B, n_repeat, D)."""
        return self._tokens(self(value))


class _Images(NamedTuple):
    """Images of a batch, and which of them are left out."""

    images: Tensor
    dropped: Tensor


class FrozenClipImageEmbedder(_FrozenTower):
    """Images to CLIP's embedding of each, a vector in the space that texts are embedded in too.

    What CLIP sees is the square in the centre, its side resized to CLIP's with bicubic and
    antialiasing (`ldm.nets.clip`). The null is a vector of zeros, not the embedding of a black
    picture.

    model: a directory with a whole CLIP, a name on the hub, or one of OpenAI's (ViT-L/14).
        Weights come from there, or from the checkpoint of the model that it is part of.
    n_repeat: tokens that the vector is repeated as.  normalize: to length 1.
    Raises ConfigError for a directory that lacks the configuration, ValueError for
    `antialias: false`.
    """

    _tower, _projection = "vision_model", "visual_projection"
    _normalization: Tensor

    def __init__(
        self,
        model: str = "ViT-L/14",
        jit: bool = False,  # published: of OpenAI's package, ignored
        device: str | None = None,  # published: the device follows the model, this is ignored
        antialias: bool = True,  # published: false, unlike what CLIP was trained on
        n_repeat: Positive = 1,
        normalize: bool = True,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        if not antialias:
            raise ValueError("antialias is false; expected true, as CLIP was trained")
        self._build(model, n_repeat, normalize)
        # made on the device in every call, the device would be waited for
        cpu = torch.device("cpu")
        self.register_buffer("_normalization", normalization(cpu), persistent=False)

    def _network(self, config: Any) -> Any:
        from transformers import CLIPVisionModel

        self.size = int(config.vision_config.image_size)
        return CLIPVisionModel(config.vision_config)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), or grey (B, 1, H, W), in [-1, 1] to their embeddings (B, D)."""
        self.prepare()
        images = sent_to(images, self._device)
        pixels = normalized_pixels(images, self.size, self._normalization)
        return self._projected(pixel_values=pixels)

    def encode(self, value: Tensor | _Images) -> Tensor:
        """Images of a batch, (B, H, W, C) as data sets give them, to (B, n_repeat, D)."""
        images, dropped = value if isinstance(value, _Images) else (value, None)
        embedding = self(to_image_tensor(images))
        if dropped is not None:
            embedding = embedding.masked_fill(sent_to(dropped, self._device)[:, None], 0)
        return self._tokens(embedding)

    def drop(self, value: Tensor, dropped: Tensor) -> _Images:
        """The images, and which of them become zeros once they are embedded."""
        return _Images(value, dropped)


def _config_of(name: str) -> Any:
    """The configuration of a whole CLIP: a directory's, the hub's, or that of ViT-L/14."""
    from transformers import CLIPConfig

    if name == _LARGE:
        return CLIPConfig(text_config=_LARGE_TEXT, vision_config=_LARGE_VISION, projection_dim=768)
    needs = [["config.json"]] if Path(name).is_dir() else []
    return from_hub(CLIPConfig, name, "CLIP's configuration", *needs)
