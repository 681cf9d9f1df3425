"""Captions as one vector: the sum of what their words mean, in no order."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.conditioning.base import Embedder
from ldm.conditioning.text import BERTTokenizer, Captions, drop_captions, fitting_tokenizer
from ldm.tensor import sent_to

__all__ = ["BagOfWords"]


class BagOfWords(Embedder):
    """The sum of a learned vector per word piece of a caption, for a UNet's `adm_in_channels`.

    Added to the time's embedding it reaches every residual block at full strength from the first
    step on, where attention has to find its word first. GLIDE (arXiv:2112.10741, section 3.1) gives
    its network a pooled caption in the same way, beside the tokens that it attends to.

    n_embed: width D.  vocab_size: at least the tokenizer's word pieces.  max_seq_len: word pieces
    of a caption that count.  tokenizer: see `BERTTokenizer`.
    """

    slot = "vector"

    def __init__(
        self,
        n_embed: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        tokenizer: str = "bert-base-uncased",
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self.embed_dim = n_embed
        self.max_seq_len = max_seq_len
        self.embedding = nn.EmbeddingBag(vocab_size, n_embed, mode="sum", padding_idx=0)
        self._tokenizer_name = tokenizer
        self._tokenizer: BERTTokenizer | None = None

    def prepare(self) -> None:
        """Load the tokenizer."""
        _ = self.tokenizer

    @property
    def tokenizer(self) -> BERTTokenizer:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = fitting_tokenizer(
                self._tokenizer_name, self.max_seq_len, self.embedding.num_embeddings
            )
        return self._tokenizer

    def encode(self, value: Captions) -> Tensor:
        """Captions (B strings) to (B, D)."""
        tokens = self.tokenizer(value)
        return self.embedding(sent_to(tokens, self.embedding.weight.device))  # type: ignore[no-any-return]

    def drop(self, value: Captions, dropped: Tensor) -> Captions:
        """Captions with the dropped ones empty."""
        return drop_captions(value, dropped)
