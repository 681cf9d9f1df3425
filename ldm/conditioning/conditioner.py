"""The conditioner: a batch to a `Conditioning`, with dropout for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.conditioning.base import Embedder, Slot
from ldm.conditioning.encodings import Encodings
from ldm.diffusion.draws import Draws
from ldm.tensor import to_image_tensor
from ldm.types import Conditioning

__all__ = ["Conditioner", "Part"]


@dataclass(frozen=True)
class Part:
    """One encoder of a conditioner: what it reads and where its output enters."""

    embedder: Embedder
    key: str
    slot: Slot

    @property
    def has_null(self) -> bool:
        """Whether guidance takes it away; what is joined stays unless training dropped it."""
        return self.slot != "concat" or self.embedder.drop_rate > 0

    def read(self, batch: Mapping[str, Any]) -> Any:
        """The batch entry as the encoder takes it; images become (B, C, H, W).

        Raises KeyError that names the entry and what the batch holds instead.
        """
        if self.key not in batch:
            raise KeyError(
                f"the condition {self.key!r} is not in the batch, which holds {sorted(batch)}; "
                "set cond_stage_key, or the encoder's own `key`, to one of these"
            )
        value = batch[self.key]
        is_image = self.slot == "concat" and isinstance(value, Tensor)
        return to_image_tensor(value) if is_image else value


@dataclass(frozen=True)
class Conditioner:
    """tau_theta as a whole: encodes each part's entry and joins those that share a slot.

    Tokens of several encoders follow each other (their widths must agree), channels are joined to
    channels and vectors to vectors: (B, N1 + N2, D), (B, C1 + C2, h, w), (B, D1 + D2). Without
    parts the model is unconditional.
    """

    parts: tuple[Part, ...] = ()

    def __call__(
        self,
        batch: Mapping[str, Any],
        *,
        draws: Draws | None = None,
        encodings: Encodings | None = None,
    ) -> Conditioning | None:
        """The condition of a batch; None when there are no parts.

        draws: given in training, entries are dropped at each encoder's `drop_rate`. Encoders of
            one entry share its random number, so those of the same rate drop it together.
        encodings: given in sampling, equal captions are encoded once.
        """
        return self._encode([self._drop(part, batch, draws) for part in self.parts], encodings)

    def null(
        self, batch: Mapping[str, Any], *, encodings: Encodings | None = None
    ) -> Conditioning | None:
        """What "no condition" means for this model, for the unconditional half of guidance.

        Attended and vector conditions become null. A concatenated one stays as it is unless the
        model was trained without it now and then: guidance by text keeps the map it draws on.
        encodings: given in sampling, the empty caption is encoded once.
        """
        values = []
        for part in self.parts:
            value = part.read(batch)
            if part.has_null:
                value = part.embedder.drop(value, torch.ones(len(value), dtype=torch.bool))
            values.append(value)
        return self._encode(values, encodings)

    def prepare(self) -> None:
        """Have every encoder load what its constructor left out."""
        for part in self.parts:
            part.embedder.prepare()

    @staticmethod
    def _drop(part: Part, batch: Mapping[str, Any], draws: Draws | None) -> Any:
        value = part.read(batch)
        if draws is None or not part.embedder.drop_rate:
            return value
        dropped = draws.uniform(f"drop {part.key}") < part.embedder.drop_rate
        return part.embedder.drop(value, dropped)

    def _encode(self, values: Sequence[Any], encodings: Encodings | None) -> Conditioning | None:
        if not self.parts:
            return None
        slots: dict[str, list[Tensor]] = {}
        for part, value in zip(self.parts, values, strict=True):
            embedder = part.embedder
            encoded = embedder.encode(value) if encodings is None else encodings.of(embedder, value)
            slots.setdefault(part.slot, []).append(encoded)
        return Conditioning(
            **{
                slot: outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
                for slot, outputs in slots.items()
            }
        )
