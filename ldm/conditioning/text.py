"""Captions to tokens to vectors: the transformer trained jointly with the UNet, and frozen CLIP."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.conditioning.base import Embedder, Reads
from ldm.conditioning.frozen import FrozenEmbedder
from ldm.conditioning.hub import from_hub
from ldm.config import ConfigError
from ldm.nets.text import Encoder, TransformerWrapper
from ldm.ranges import Positive
from ldm.tensor import sent_to

__all__ = [
    "BERTEmbedder",
    "BERTTokenizer",
    "CaptionEmbedder",
    "Captions",
    "FrozenCLIPEmbedder",
    "Tokenizer",
    "TransformerEmbedder",
    "fitting_tokenizer",
]

Captions = Sequence[str]

# what a directory with a tokenizer holds
_BERT_FILES = (["tokenizer.json"], ["vocab.txt"])
_CLIP_FILES = (["tokenizer.json"], ["vocab.json", "merges.txt"])


class Tokenizer:
    """Captions to a fixed number of token ids.

    tokenizer: of transformers.
    max_length: number of tokens N; shorter captions are padded, longer ones cut.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length

    def __len__(self) -> int:
        """Number of word pieces; an embedder's `vocab_size` must be at least this."""
        return len(self._tokenizer)

    def __call__(self, captions: Captions) -> Tensor:
        """Captions of a batch to token ids (B, N), int64."""
        encoded = self._tokenizer(
            list(captions),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        return encoded["input_ids"]  # type: ignore[no-any-return]

    def count(self, caption: str) -> int:
        """Number of tokens of a caption that is not cut, with those that begin and end it."""
        return len(self._tokenizer(caption, verbose=False)["input_ids"])

    @property
    def unknown(self) -> str | None:
        """The token that words outside of the vocabulary are read as; None where there is none."""
        return self._tokenizer.unk_token  # type: ignore[no-any-return]

    def unknown_words(self, caption: str) -> list[str]:
        """Words of a caption that are read as `unknown`, as they are spelled, each once.

        Of what is left of a caption that is cut.
        """
        if self.unknown is None:
            return []
        around = self._tokenizer.num_special_tokens_to_add()
        read = self._tokenizer(
            caption,
            add_special_tokens=False,  # CLIP ends a caption with its unknown token
            return_offsets_mapping=True,
            truncation=True,
            max_length=self.max_length - around,
        )
        ids, spans = read["input_ids"], read["offset_mapping"]
        unknown = self._tokenizer.unk_token_id
        words = [caption[slice(*span)] for i, span in zip(ids, spans, strict=True) if i == unknown]
        # the token itself, written out, is in the vocabulary
        return [word for word in dict.fromkeys(words) if word != self.unknown]


class BERTTokenizer(Tokenizer):
    """Captions to a fixed number of token ids with BERT's word pieces, lower-cased.

    name: a vocabulary file (`vocab.txt`, one word piece per line), a directory that holds a
        tokenizer, or a name on the hub.
    max_length: number of tokens N; shorter captions are padded, longer ones cut.
    """

    def __init__(self, name: str = "bert-base-uncased", max_length: int = 77) -> None:
        from transformers import BertTokenizer  # slow to import, and only needed for text

        path = Path(name)
        if path.suffix == ".txt":
            if not path.is_file():
                raise ConfigError(f"tokenizer: there is no vocabulary file {name!r}")
            with path.open(encoding="utf-8") as lines:
                ids = {line.rstrip("\n"): index for index, line in enumerate(lines)}
            tokenizer = BertTokenizer(vocab=ids, do_lower_case=True)
        else:
            tokenizer = from_hub(BertTokenizer, name, "the tokenizer", *_BERT_FILES)
        super().__init__(tokenizer, max_length)


def fitting_tokenizer(name: str, max_length: int, vocab_size: int) -> BERTTokenizer:
    """The tokenizer of this name; ConfigError when it has more than `vocab_size` word pieces."""
    tokenizer = BERTTokenizer(name, max_length)
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"the tokenizer {name!r} has {len(tokenizer)} word pieces, vocab_size is "
            f"{vocab_size}; expected at least as many"
        )
    return tokenizer


class CaptionEmbedder(Embedder):
    """An encoder of captions: its tokenizer, loaded at first use, and its null, the empty caption.

    Of captions that are token ids already, the null is a row of zeros.
    """

    reads: Reads = "text"
    _tokenizer: Tokenizer | None = None

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer; ConfigError when it cannot be had or does not fit the encoder."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = self.load_tokenizer()
        return self._tokenizer

    def prepare(self) -> None:
        """Load the tokenizer."""
        _ = self.tokenizer

    def token_ids(self, text: Captions | Tensor, device: torch.device) -> Tensor:
        """Captions (B strings), or token ids (B, N), as token ids (B, N) on a device."""
        return sent_to(text if isinstance(text, Tensor) else self.tokenizer(text), device)

    def drop(self, value: Captions | Tensor, dropped: Tensor) -> Captions | Tensor:
        """Captions with the dropped ones empty; token ids with the dropped rows zero."""
        if isinstance(value, Tensor):
            return cast(Tensor, super().drop(value, dropped))
        return ["" if gone else text for text, gone in zip(value, dropped.tolist(), strict=True)]


class TransformerEmbedder(Embedder):
    """Token ids to vectors with a small transformer (Table 17 of the paper), trained or frozen.

    n_embed: width D.  n_layer: depth.  vocab_size, max_seq_len: token ids and positions.
    """

    slots = ("crossattn",)

    def __init__(
        self,
        n_embed: Positive,
        n_layer: Positive,
        vocab_size: Positive,
        max_seq_len: Positive = 77,
        device: str | None = None,  # published: the device follows the model, this is ignored
        embedding_dropout: float = 0.0,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self.embed_dim = n_embed
        self.transformer = TransformerWrapper(
            num_tokens=vocab_size,
            max_seq_len=max_seq_len,
            attn_layers=Encoder(dim=n_embed, depth=n_layer),
            emb_dropout=embedding_dropout,
        )
        # published with the rest, and without use: it would be trained without ever a gradient,
        # for which processes that train together would wait
        logits = self.transformer.to_logits
        assert logits is not None
        logits.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, N) to (B, N, D)."""
        return self.transformer(tokens, return_embeddings=True)  # type: ignore[no-any-return]

    def encode(self, value: Tensor) -> Tensor:
        """The same as a call."""
        return self(value)  # type: ignore[no-any-return]


class BERTEmbedder(CaptionEmbedder, TransformerEmbedder):
    """Captions to vectors: BERT's word pieces, then a transformer trained with the UNet.

    This is tau_theta of the paper's text-to-image model (section 4.3.1, Table 17): no BERT
    weights are involved. With `use_tokenizer: false` the batch holds token ids already (layouts).

    tokenizer: see `BERTTokenizer`.  max_seq_len: tokens per caption N.
    """

    def __init__(
        self,
        n_embed: Positive,
        n_layer: Positive,
        vocab_size: Positive = 30522,
        max_seq_len: Positive = 77,
        device: str | None = None,  # published: the device follows the model, this is ignored
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        tokenizer: str = "bert-base-uncased",
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            n_embed, n_layer, vocab_size, max_seq_len, device, embedding_dropout, key, drop_rate
        )
        self.use_tokenizer = use_tokenizer
        self.reads = "text" if use_tokenizer else "other"
        self._tokenizer_name = tokenizer

    def load_tokenizer(self) -> Tokenizer:
        """BERT's; ConfigError when it has more word pieces than the transformer."""
        transformer = self.transformer
        return fitting_tokenizer(
            self._tokenizer_name, transformer.max_seq_len, transformer.token_emb.num_embeddings
        )

    def prepare(self) -> None:
        """Load the tokenizer, if there is one."""
        if self.use_tokenizer:
            super().prepare()

    def forward(self, text: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to (B, N, D)."""
        return super().forward(self.token_ids(text, self.transformer.token_emb.weight.device))


class FrozenCLIPEmbedder(CaptionEmbedder, FrozenEmbedder):
    """Captions to vectors with CLIP's text transformer, frozen (Stable Diffusion's tau_theta).

    version: a directory or a name on the hub. The architecture is that of ViT-L/14 unless the
        directory says otherwise; weights come from there, or from the checkpoint of the model
        this encoder is part of.
    max_length: tokens per caption N.
    Raises ConfigError for a directory that lacks the configuration.
    """

    slots = ("crossattn",)

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | None = None,  # published: the device follows the model, this is ignored
        max_length: Positive = 77,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        from transformers import CLIPTextConfig, CLIPTextModel

        config = (
            from_hub(CLIPTextConfig, version, "the text encoder's configuration", ["config.json"])
            if Path(version).is_dir()
            else CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
            )
        )
        self.version, self.max_length, self.embed_dim = version, max_length, config.hidden_size
        # published names have a level `text_model.`, which newer releases of transformers lack
        self.transformer = nn.ModuleDict({"text_model": _text_model(CLIPTextModel(config))})
        self.freeze()

    def load_tokenizer(self) -> Tokenizer:
        """CLIP's."""
        from transformers import CLIPTokenizer

        tokenizer = from_hub(CLIPTokenizer, self.version, "the tokenizer", *_CLIP_FILES)
        return Tokenizer(tokenizer, self.max_length)

    def prepare(self) -> None:
        """Load the tokenizer, and the weights unless a checkpoint brought them."""
        from transformers import CLIPTextModel

        super().prepare()
        if not self.has_weights:
            source = from_hub(CLIPTextModel, self.version, "the text encoder")
            self.transformer["text_model"].load_state_dict(_text_model(source).state_dict())
            self.has_weights = True

    @torch.no_grad()
    def forward(self, text: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to the last hidden state (B, N, D)."""
        if not isinstance(text, Tensor):
            self.prepare()
        tokens = self.token_ids(text, next(self.transformer.parameters()).device)
        states: Tensor = self.transformer["text_model"](input_ids=tokens).last_hidden_state
        return states

    def encode(self, value: Captions | Tensor) -> Tensor:
        """The same as a call."""
        return self(value)  # type: ignore[no-any-return]


def _text_model(model: nn.Module) -> nn.Module:
    """The module whose parameters are named as below the published `text_model.`."""
    return cast(nn.Module, getattr(model, "text_model", model))
