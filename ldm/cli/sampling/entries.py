"""Which script draws a model, and the captions and labels that it is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ldm.conditioning.conditioner import Part
from ldm.conditioning.text import Tokenizer
from ldm.config import ConfigError
from ldm.data.listing import utf8_text
from ldm.log import log

__all__ = [
    "Item",
    "Kind",
    "batch_of",
    "captioned",
    "kind_of",
    "labelled",
    "read_captions",
    "require_script",
]

# what one image is drawn from: its seed, and entries by the names that the model reads them by
Item = dict[str, Any]

# what a part of a conditioner is fed with
Kind = Literal[
    "caption", "label", "layout", "low resolution", "map", "masked image", "neighbours", "other"
]

_BY_READS: dict[str, Kind] = {
    "text": "caption",
    "label": "label",
    "layout": "layout",
    "neighbours": "neighbours",
}
_BY_KEY: dict[str, Kind] = {  # published names of batch entries
    "coordinates_bbox": "layout",
    "LR_image": "low resolution",
    "segmentation": "map",
    "masked_image": "masked image",
    "mask": "masked image",
    "neighbours": "neighbours",
    "nix": "neighbours",
}
_SCRIPTS: dict[Kind, str] = {
    "layout": "scripts/layout2img.py",
    "low resolution": "scripts/superres.py",
    "map": "scripts/semantic.py",
    "masked image": "scripts/inpaint.py",
    "neighbours": "scripts/retrieve.py",
}
_FROM_PYTHON = "`model.sample` from Python (docs/sampling.md)"
# scripts that are given images, and draw with any model that is told captions, labels or nothing
_OF_IMAGES = ("scripts/img2img.py", "scripts/inpaint.py", "scripts/superres.py")


def kind_of(part: Part) -> Kind:
    """What a part is fed with: what its encoder says that it reads, or else by its key."""
    return _BY_READS.get(part.embedder.reads) or _BY_KEY.get(part.key, "other")


def require_script(script: str, model: Any) -> None:
    """Raise ConfigError, with the right one, unless this script gives a model all it draws from."""
    right = _script_of(model)
    is_told = right in ("scripts/sample.py", "scripts/txt2img.py")
    if right == script or (is_told and script in _OF_IMAGES):
        return
    parts = model.conditioner.parts
    entries = [f"{part.key} ({type(part.embedder).__name__})" for part in parts]
    given = " and ".join(entries) or "nothing"
    raise ConfigError(f"this model draws from {given}; draw it with {right}")


def _script_of(model: Any) -> str:
    """The script that draws a model."""
    parts = model.conditioner.parts
    kinds = {kind_of(part) for part in parts}
    shown = kinds - {"caption", "label"}
    if shown:
        return _SCRIPTS.get(shown.pop(), _FROM_PYTHON) if len(shown) == 1 else _FROM_PYTHON
    if kinds == {"caption"}:
        return "scripts/txt2img.py"
    labels = {part.key for part in parts}
    return "scripts/sample.py" if "caption" not in kinds and len(labels) < 2 else _FROM_PYTHON


def captioned(model: Any, captions: Sequence[str]) -> list[Item]:
    """An item of each caption, with the entries of all parts that read captions."""
    model.conditioner.prepare()
    parts = [part for part in model.conditioner.parts if kind_of(part) == "caption"]
    _tell_of_losses(parts, captions)
    return [{part.key: caption for part in parts} for caption in captions]


def _tell_of_losses(parts: Sequence[Part], captions: Sequence[str]) -> None:
    """Warn, once for each caption, of what an encoder does not read of it."""
    for part in parts:
        tokenizer = getattr(part.embedder, "tokenizer", None)
        if isinstance(tokenizer, Tokenizer):
            for caption in dict.fromkeys(captions):
                _tell_of_loss(tokenizer, caption, type(part.embedder).__name__)


def _tell_of_loss(tokenizer: Tokenizer, caption: str, encoder: str) -> None:
    """Warn of a caption that is longer than an encoder takes, and of words that it does not know.

    It reads the beginning of the first, and its unknown token in place of the others.
    """
    limit = tokenizer.max_length
    if (count := tokenizer.count(caption)) > limit:
        message = "%r has %d tokens, of which %s reads the first %d"
        log.warning(message, caption, count, encoder, limit)
    if words := tokenizer.unknown_words(caption):
        named = ", ".join(map(repr, words))
        are = "is" if len(words) == 1 else "are"
        message = "%r: %s %s not in the vocabulary of %s, which reads %s"
        log.warning(message, caption, named, are, encoder, tokenizer.unknown)


def labelled(
    model: Any, classes: Sequence[int] | None, each: int, flag: str = "--classes"
) -> list[Item]:
    """`each` items of every class; of no class for a model that reads none.

    Raises ConfigError when the model needs what is not given, or the other way round.
    """
    parts = [part for part in model.conditioner.parts if kind_of(part) == "label"]
    if not parts:
        if classes is None:
            return [{} for _ in range(each)]
        raise ConfigError(f"{flag} {_spaced(classes)}: this model was trained without classes")
    last = min(part.embedder.null_label for part in parts)
    keys = dict.fromkeys(part.key for part in parts)
    if classes is None:
        raise ConfigError(f"{flag} is needed: labels 0 to {last}, of {' and '.join(keys)}")
    if not all(0 <= label <= last for label in classes):
        raise ConfigError(f"{flag} {_spaced(classes)}: expected labels 0 to {last}")
    return [dict.fromkeys(keys, label) for label in classes for _ in range(each)]


def batch_of(model: Any, items: Sequence[Item]) -> dict[str, Any] | None:
    """What the model reads of some items, as a batch of the data holds it; None for nothing.

    Entries that items lack are left out: a script makes them of other things.
    """
    batch: dict[str, Any] = {}
    for key in {part.key for part in model.conditioner.parts if part.key in items[0]}:
        values = [item[key] for item in items]
        is_label = isinstance(values[0], int)
        batch[key] = torch.tensor(values, device=model.device) if is_label else values
    return batch or None


def _spaced(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def read_captions(prompts: Sequence[str], path: str | None) -> list[str]:
    """Captions of the command line, then those of a file, one per line; ConfigError for none."""
    captions = list(prompts)
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"--from-file {path}: no such file")
        lines = utf8_text(Path(path)).splitlines()
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"--from-file {path}: holds no captions, one of which fills a line")
        captions += found
    if not captions:
        raise ConfigError("no captions: give --prompt TEXT or --from-file TXT")
    return captions
