"""Captions to vectors with the encoder of T5, frozen: what Imagen and its kin are told."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.conditioning.frozen import FrozenEmbedder
from ldm.conditioning.hub import from_hub
from ldm.conditioning.text import CaptionEmbedder, Captions, Tokenizer
from ldm.config import ConfigError
from ldm.ranges import Positive
from ldm.tensor import sent_to

__all__ = ["FrozenT5Embedder"]

# what a directory with a tokenizer holds
_FILES = (["tokenizer.json"], ["spiece.model"])
# width, hidden width, layers and heads of google/t5-v1_1-*
_SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
_FAMILY = "google/t5-v1_1-"
_PADDING, _END = 0, 1  # token ids of every T5


class FrozenT5Embedder(CaptionEmbedder, FrozenEmbedder):
    """Captions to vectors with T5's encoder (arXiv:1910.10683), frozen (arXiv:2205.11487, sec. 2).

    Tokens attend to those of the caption alone, not to its padding; the vectors of padding are
    there nevertheless, as a condition has N of them. The null is the empty caption: its end.

    version: a directory or a name on the hub. The architecture of google/t5-v1_1-small, -base,
        -large, -xl and -xxl is known, that of another name is asked for; weights come from there,
        or from the checkpoint of the model that this encoder is part of.
    max_length: tokens per caption N.
    tokenizer: a directory or a name on the hub; by default that of `version`. All of T5 share one:
        google-t5/t5-small has it in a form that needs no `sentencepiece`.
    Raises ConfigError for a directory that lacks the configuration.
    """

    slots = ("crossattn",)

    def __init__(
        self,
        version: str = "google/t5-v1_1-large",
        device: str | None = None,  # published: the device follows the model, this is ignored
        max_length: Positive = 77,
        key: str | None = None,
        drop_rate: float = 0.0,
        *,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        from transformers import T5EncoderModel  # slow to import, and only needed for text

        config = _configuration(version)
        self.version, self.max_length, self.embed_dim = version, max_length, config.d_model
        self._tokenizer_name = tokenizer or version
        self.transformer = T5EncoderModel(config)
        self.freeze()

    def load_tokenizer(self) -> Tokenizer:
        """T5's; ConfigError when it has more tokens than the encoder."""
        from transformers import T5Tokenizer

        name = self._tokenizer_name
        try:
            tokenizer = Tokenizer(
                from_hub(T5Tokenizer, name, "the tokenizer", *_FILES), self.max_length
            )
        except ConfigError as error:
            if find_spec("sentencepiece") is not None:
                raise
            raise ConfigError(
                f"{error}\n  spiece.model alone needs `pip install sentencepiece`; "
                "google-t5/t5-small has the same tokens as tokenizer.json, for the parameter "
                "`tokenizer`"
            ) from error
        known = self.transformer.config.vocab_size
        if len(tokenizer) > known:
            raise ConfigError(
                f"the tokenizer {name!r} has {len(tokenizer)} tokens, the text encoder "
                f"{self.version!r} knows {known}; expected at least as many"
            )
        return tokenizer

    def prepare(self) -> None:
        """Load the tokenizer, and the weights unless a checkpoint brought them."""
        super().prepare()
        self._load_weights()

    def _load_weights(self) -> None:
        from transformers import T5EncoderModel

        if not self.has_weights:
            source = from_hub(T5EncoderModel, self.version, "the text encoder")
            self.transformer.load_state_dict(cast(nn.Module, source).state_dict())
            self.has_weights = True

    @torch.no_grad()
    def forward(self, text: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to the last hidden state (B, N, D)."""
        self._load_weights()
        tokens = self.token_ids(text, self.transformer.device)
        mask = _attended(tokens, self.transformer.dtype)
        states: Tensor = self.transformer(input_ids=tokens, attention_mask=mask)[0]
        return states

    def encode(self, value: Captions | Tensor) -> Tensor:
        """The same as a call."""
        return self(value)  # type: ignore[no-any-return]

    def drop(self, value: Captions | Tensor, dropped: Tensor) -> Captions | Tensor:
        """Captions with the dropped ones empty; token ids with the dropped rows those of none."""
        if not isinstance(value, Tensor):
            return super().drop(value, dropped)
        empty = torch.full_like(value[:1], _PADDING)
        empty[:, 0] = _END
        return torch.where(sent_to(dropped, value.device)[:, None], empty, value)


def _attended(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention of tokens (B, N) to each other, (B, 1, N, N).

    Given a mask (B, N), transformers asks whether there is any padding, which waits for the device.
    """
    hidden = torch.finfo(dtype).min * (tokens == _PADDING).to(dtype)
    return hidden[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)


def _configuration(version: str) -> Any:
    """The architecture of a version: known, or that of a directory or of the hub."""
    from transformers import T5Config

    size = _SIZES.get(version.removeprefix(_FAMILY))
    if not version.startswith(_FAMILY) or size is None or Path(version).is_dir():
        what = "the text encoder's configuration"
        return from_hub(T5Config, version, what, ["config.json"])
    width, hidden, layers, heads = size
    return T5Config(
        vocab_size=32128,
        d_model=width,
        d_kv=64,
        d_ff=hidden,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
