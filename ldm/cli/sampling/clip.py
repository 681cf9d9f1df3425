"""CLIP from a local directory, to guide any model towards what a text says."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.cli.running import check_least
from ldm.cli.sampling.sizes import decoder_of, image_channels_of
from ldm.config import ConfigError
from ldm.diffusion.denoiser import Denoiser
from ldm.guidance.clip import CLIPDissimilarity
from ldm.guidance.gradient import ImageGuided, Through
from ldm.io.digest import sha256_of
from ldm.log import log

__all__ = ["CLIP", "CLIP_FLAGS", "add_clip", "clip_of", "digest_of_clip"]

CLIP_FLAGS = ("clip", "clip_prompt", "clip_scale", "clip_through", "clip_sha256")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TEXTS = 4096  # that are remembered, a few MB
_SCALE = 100.0  # of CLIP's own logits
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# what the tokens of a text depend on, as far as it is there
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def add_clip(parser: argparse.ArgumentParser) -> None:
    """Add the flags of guidance by CLIP."""
    add = parser.add_argument_group("what CLIP sees").add_argument
    add("--clip", metavar="DIR", help="guide by this CLIP: transformers' format, from this disk")
    add("--clip-prompt", metavar="TEXT", help="what it is to see; default: the caption, if any")
    # None without a CLIP: what records and jobs of before there were these flags say too
    add("--clip-scale", type=float, metavar="SCALE", help="default: 100, CLIP's own")
    told = "gradient through the network as well, or the decoder alone (x0), in less memory"
    add("--clip-through", choices=("denoiser", "x0"), help=f"{told}; default: denoiser")
    parser.set_defaults(clip_sha256=None)


@dataclass(frozen=True)
class CLIP:
    """A CLIP model and its tokenizer, both of transformers."""

    model: Any
    tokenizer: Any
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Side of the images that it takes, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) to embeddings (B, D), with gradients."""
        seen: Tensor = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(seen)  # type: ignore[no-any-return]

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts (B) to embeddings (B, D); warns of one that is longer than CLIP reads.

        Each text is encoded once and by itself, so that its embedding never depends on others.
        """
        for text in texts:
            if text not in self._known:
                self._known[text] = self._embedded(text)
        found = torch.cat([self._known[text] for text in texts])
        while len(self._known) > _TEXTS:
            del self._known[next(iter(self._known))]
        return found

    def _embedded(self, text: str) -> Tensor:
        """The embedding of one text, (1, D)."""
        limit = self.model.config.text_config.max_position_embeddings
        if (count := len(self.tokenizer(text)["input_ids"])) > limit:
            log.warning("%r has %d tokens, of which CLIP reads %d", text, count, limit)
        tokens = self.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
        read: Tensor = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return self.model.text_projection(read)  # type: ignore[no-any-return]

    def gradient(
        self, model: Any, texts: Sequence[str], *, scale: float, through: Through
    ) -> Callable[[Denoiser], Denoiser]:
        """A wrapper that guides a model's denoiser towards texts, one of each image.

        scale, through: see `ldm.guidance.gradient.ImageGuided`.
        """
        loss = CLIPDissimilarity(self.embed_image, self.embed_text(texts), self.size)

        def wrapper(denoiser: Denoiser) -> Denoiser:
            return ImageGuided(denoiser, model.schedule, loss, scale, decoder_of(model), through)

        return wrapper


def clip_of(args: argparse.Namespace, model: Any) -> CLIP | None:
    """The CLIP of `--clip` on the model's device, noted in the flags with their defaults, or None.

    Raises ConfigError: no such directory, files that are missing, damaged or of something else.
    """
    if args.clip is None:
        if args.clip_prompt is not None:
            raise ConfigError("--clip-prompt: there is no CLIP to see it; give --clip DIR")
        return None
    args.clip_scale = _SCALE if args.clip_scale is None else args.clip_scale
    args.clip_through = args.clip_through or "denoiser"
    check_least(args, clip_scale=0)
    _require_colours(model)
    weights = _weights(Path(args.clip))
    network, tokenizer, report = _read(args.clip, weights)
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ConfigError(
            f"--clip {args.clip}: {weights.name} is no CLIP of images and texts: it lacks "
            f"{lacking[0]} and {len(lacking) - 1} more"
        )
    args.clip_sha256 = _digest_of(weights)
    frozen: nn.Module = network.float().to(model.device).eval().requires_grad_(False)
    return CLIP(frozen, tokenizer)


def digest_of_clip(directory: str) -> str:
    """Which CLIP a directory holds; ConfigError for one that lacks a file."""
    return _digest_of(_weights(Path(directory)))


def _digest_of(weights: Path) -> str:
    """SHA-256 over name and SHA-256 of each file that CLIP is made of, 64 hexadecimal digits."""
    directory = weights.parent
    files = [directory / name for name in ("config.json", *_TOKENIZER_FILES)]
    lines = [f"{path.name} {sha256_of(path)}" for path in [weights, *files] if path.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read(directory: str, weights: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The network, the tokenizer, and the names that the file of weights lacks or has beyond."""
    from transformers import CLIPModel, CLIPTokenizer  # slow to import

    loader: Any = CLIPModel  # what it returns depends on an argument
    try:
        network, report = loader.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=weights.suffix == ".safetensors",
            weights_only=True,
            output_loading_info=True,
        )
        tokenizer = CLIPTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # four libraries read a part each, and raise what they like
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(f"--clip {directory}: cannot be read: {reason}") from error
    return network, tokenizer, report


def _require_colours(model: Any) -> None:
    """Raise ConfigError for images that CLIP does not take."""
    if (channels := image_channels_of(model)) not in (1, 3):
        raise ConfigError(f"--clip: this model's images have {channels} channels, CLIP sees 1 or 3")


def _weights(directory: Path) -> Path:
    """The file of weights in a directory; ConfigError unless all that is needed is there."""
    weights = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    has_words = any(all((directory / n).is_file() for n in names) for names in _TOKENIZERS)
    if weights is None or not has_words or not (directory / "config.json").is_file():
        there = "lacks a file" if directory.is_dir() else "there is no such directory"
        raise ConfigError(
            f"--clip {directory}: {there}: expected CLIP in transformers' format, config.json, "
            f"{' or '.join(WEIGHTS)}, and tokenizer.json or vocab.json with merges.txt, such as "
            f"`hf download openai/clip-vit-base-patch32 --local-dir {directory}` fetches"
        )
    return weights
