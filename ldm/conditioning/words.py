"""Captions as one vector: the sum of what their words mean, in no order."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.conditioning.text import CaptionEmbedder, Captions, Tokenizer, fitting_tokenizer
from ldm.ranges import Positive

__all__ = ["BagOfWords"]


class BagOfWords(CaptionEmbedder):
    """The sum of a learned vector per word piece of a caption, for a UNet's `adm_in_channels`.

    Added to the time's embedding it reaches every residual block at full strength from the first
    step on, where attention has to find its word first. GLIDE (arXiv:2112.10741, section 3.1) gives
    its network a pooled caption in the same way, beside the tokens that it attends to.

    n_embed: width D.  vocab_size: at least the tokenizer's word pieces.  max_seq_len: word pieces
    of a caption that count.  tokenizer: see `BERTTokenizer`.
    """

    slot = "vector"
    slots = ("vector",)

    def __init__(
        self,
        n_embed: Positive,
        vocab_size: Positive = 30522,
        max_seq_len: Positive = 77,
        tokenizer: str = "bert-base-uncased",
        key: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(key=key, drop_rate=drop_rate)
        self.embed_dim = n_embed
        self.max_seq_len = max_seq_len
        self.embedding = nn.EmbeddingBag(vocab_size, n_embed, mode="sum", padding_idx=0)
        self._tokenizer_name = tokenizer

    def load_tokenizer(self) -> Tokenizer:
        """BERT's; ConfigError when it has more word pieces than the table."""
        return fitting_tokenizer(
            self._tokenizer_name, self.max_seq_len, self.embedding.num_embeddings
        )

    def encode(self, value: Captions | Tensor) -> Tensor:
        """Captions (B strings), or token ids (B, N), to (B, D)."""
        return self.embedding(self.token_ids(value, self.embedding.weight.device))  # type: ignore[no-any-return]
