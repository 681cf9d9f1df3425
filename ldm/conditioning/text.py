"""Captions to tokens to vectors: the transformer trained jointly with the UNet, and frozen CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.conditioning.base import Embedder
from ldm.config import ConfigError
from ldm.nets.text import Encoder, TransformerWrapper
from ldm.tensor import sent_to

__all__ = [
    "BERTEmbedder",
    "BERTTokenizer",
    "Captions",
    "FrozenCLIPEmbedder",
    "TransformerEmbedder",
    "drop_captions",
    "fitting_tokenizer",
]

Captions = Sequence[str]


def _from_hub(loader: Any, name: str, what: str) -> Any:
    """Load something of transformers from a local directory or the hub's cache, or fetch it.

    Raises ConfigError that names the file and the command that gets it.
    """
    try:
        return loader.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{what} {name!r} is neither a local directory nor in the hub's cache, and cannot be "
            f"fetched. Where there is a network run `hf download {name} --local-dir DIR`, "
            f"then give DIR here. ({str(error).splitlines()[0]})"
        ) from error


class BERTTokenizer:
    """Captions to fixed-length token ids with BERT's word pieces, lower-cased.

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
            self._tokenizer = BertTokenizer(vocab=ids, do_lower_case=True)
        else:
            self._tokenizer = _from_hub(BertTokenizer, name, "the tokenizer")
        self.max_length = max_length

    def __len__(self) -> int:
        """Number of word pieces; the embedder's `vocab_size` must be at least this."""
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


def fitting_tokenizer(name: str, max_length: int, vocab_size: int) -> BERTTokenizer:
    """The tokenizer of this name; ConfigError when it has more than `vocab_size` word pieces."""
    tokenizer = BERTTokenizer(name, max_length)
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"the tokenizer {name!r} has {len(tokenizer)} word pieces, vocab_size is "
            f"{vocab_size}; expected at least as many"
        )
    return tokenizer


class TransformerEmbedder(Embedder):
    """Token ids to vectors with a small transformer (Table 17 of the paper), trained or frozen.

    n_embed: width D.  n_layer: depth.  vocab_size, max_seq_len: token ids and positions.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int,
        max_seq_len: int = 77,
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


class BERTEmbedder(TransformerEmbedder):
    """Captions to vectors: BERT's word pieces, then a transformer trained with the UNet.

    This is tau_theta of the paper's text-to-image model (section 4.3.1, Table 17): no BERT
    weights are involved. With `use_tokenizer: false` the batch holds token ids already (layouts).

    tokenizer: see `BERTTokenizer`.  max_seq_len: tokens per caption N.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
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
        self._tokenizer_name = tokenizer
        self._tokenizer: BERTTokenizer | None = None

    @property
    def tokenizer(self) -> BERTTokenizer:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = fitting_tokenizer(
                self._tokenizer_name,
                self.transformer.max_seq_len,
                self.transformer.token_emb.num_embeddings,
            )
        return self._tokenizer

    def prepare(self) -> None:
        """Load the tokenizer."""
        if self.use_tokenizer:
            _ = self.tokenizer

    def forward(self, text: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to (B, N, D)."""
        tokens = text if isinstance(text, Tensor) else self.tokenizer(text)
        return super().forward(sent_to(tokens, self.transformer.token_emb.weight.device))

    def drop(self, value: Captions | Tensor, dropped: Tensor) -> Captions | Tensor:
        """Captions with the dropped ones empty; token ids with the dropped rows zero."""
        if isinstance(value, Tensor):
            return cast(Tensor, super().drop(value, dropped))
        return drop_captions(value, dropped)


class FrozenCLIPEmbedder(Embedder):
    """Captions to vectors with CLIP's text transformer, frozen (Stable Diffusion's tau_theta).

    version: a directory or a name on the hub. The architecture is that of ViT-L/14 unless the
        directory says otherwise; weights come from there, or from the checkpoint of the model
        this encoder is part of.
    max_length: tokens per caption N.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: str | None = None,  # published: the device follows the model, this is ignored
        max_length: int = 77,
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        from transformers import CLIPTextConfig, CLIPTextModel

        config = (
            CLIPTextConfig.from_pretrained(version)
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
        self._tokenizer: Any = None
        self._has_weights = False
        self.requires_grad_(False)
        self.eval()
        self.register_load_state_dict_pre_hook(_note_weights)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> FrozenCLIPEmbedder:
        """Stay in evaluation mode: the encoder is frozen."""
        return super().train(mode=False)

    def prepare(self) -> None:
        """Load the tokenizer, and the weights unless a checkpoint brought them."""
        from transformers import CLIPTextModel, CLIPTokenizer

        if self._tokenizer is None:
            self._tokenizer = _from_hub(CLIPTokenizer, self.version, "the tokenizer")
        if not self._has_weights:
            source = _from_hub(CLIPTextModel, self.version, "the text encoder")
            self.transformer["text_model"].load_state_dict(_text_model(source).state_dict())
            self._has_weights = True

    @torch.no_grad()
    def forward(self, text: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to the last hidden state (B, N, D)."""
        tokens = text if isinstance(text, Tensor) else self._tokenized(text)
        tokens = sent_to(tokens, next(self.transformer.parameters()).device)
        states: Tensor = self.transformer["text_model"](input_ids=tokens).last_hidden_state
        return states

    def _tokenized(self, captions: Captions) -> Tensor:
        self.prepare()
        encoded = self._tokenizer(
            list(captions),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        return encoded["input_ids"]  # type: ignore[no-any-return]

    def encode(self, value: Captions | Tensor) -> Tensor:
        """The same as a call."""
        return self(value)  # type: ignore[no-any-return]

    def drop(self, value: Captions | Tensor, dropped: Tensor) -> Captions | Tensor:
        """Captions with the dropped ones empty; token ids with the dropped rows zero."""
        if isinstance(value, Tensor):
            return cast(Tensor, super().drop(value, dropped))
        return drop_captions(value, dropped)


def drop_captions(value: Captions, dropped: Tensor) -> list[str]:
    """Captions (B strings) with those marked in `dropped` (B,) empty, which is their null."""
    return ["" if gone else text for text, gone in zip(value, dropped.tolist(), strict=True)]


def _text_model(model: nn.Module) -> nn.Module:
    """The module whose parameters are named as below the published `text_model.`."""
    return cast(nn.Module, getattr(model, "text_model", model))


def _note_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remember that a checkpoint brings the weights, so that none need be fetched."""
    assert isinstance(module, FrozenCLIPEmbedder)
    if any(key.startswith(f"{prefix}transformer.") for key in state):
        module._has_weights = True
