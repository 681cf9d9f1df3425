"""scripts/superres.py: small images, drawn larger."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.cli.running import check_least
from ldm.cli.sampling.entries import Item, kind_of, require_script
from ldm.cli.sampling.inputs import images_of
from ldm.cli.sampling.sizes import (
    cells_of,
    decoder_of,
    image_channels_of,
    latent_size,
    pixels_per_cell,
)
from ldm.cli.sampling.task import Given, Images, Task
from ldm.cli.sampling.told import add_told, told
from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, read_image, reason
from ldm.diffusion.denoiser import Denoiser
from ldm.evaluation.first_stage import lpips_of
from ldm.evaluation.pictures import image_files
from ldm.guidance.gradient import ImageGuided, LowResolution
from ldm.io.digest import sha256_of
from ldm.log import log
from ldm.losses.perceptual import LPIPS
from ldm.models.diffusion.sampling import SampleOptions

__all__ = ["Superres", "factor_of"]

_KEY = "LR_image"  # published: of the batch entry
_FACTOR = 4  # of guidance, as in the paper
_PROBE = 96  # pixels


class Superres(Task):
    """Draws each image as many times larger as the model was trained to, or as guidance is told."""

    name = "superres"
    description = """Draw small images larger.

python scripts/superres.py logs/RUN small.png        # a model that was trained for it
python scripts/superres.py logs/RUN directory/ --n 4 --seed 7
python scripts/superres.py logs/UNCONDITIONAL small.png --guide l2 --factor 4

A model that was trained for it knows its factor. Any other one is guided: by the distance between
the small image and its own image made small (l2), or by LPIPS (lpips)."""
    pixel_flags = ("factor", "guide", "guide_scale", "lpips_weights", "lpips_sha256")
    lpips: LPIPS | None = None

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Images, and what guides a model that was not trained for them."""
        add_told(parser)
        add = parser.add_argument_group("what it enlarges").add_argument
        add("images", nargs="*", metavar="IMAGES", help="image files, and directories of them")
        add("--factor", type=int, help="times larger; default: as trained, 4 with --guide")
        add("--guide", choices=("l2", "lpips"), help="for a model that was not trained for it")
        add("--guide-scale", type=float, metavar="SCALE", help="of the guide; default: 1")
        add("--lpips-weights", metavar="FILE", help="vgg16-397923af.pth, or LPIPS, for its guide")
        add("--indir", help=argparse.SUPPRESS)  # published: of inpaint
        parser.set_defaults(lpips_sha256=None)

    def prepare(self, model: Any, args: argparse.Namespace) -> None:
        """Find the factor, and load what guides."""
        require_script("scripts/superres.py", model)
        check_least(args, factor=1, guide_scale=0)
        if args.size is not None:
            raise ConfigError("--size: the size is that of each image, times the factor")
        is_trained = any(kind_of(part) == "low resolution" for part in model.conditioner.parts)
        if is_trained:
            _check_unguided(model, args)
            return
        if args.guide is None:
            raise ConfigError(
                f"this model was not trained to enlarge, as it reads no {_KEY}: give the run of "
                "one that was, or guide this one, with --guide l2 or --guide lpips"
            )
        args.factor = args.factor or _FACTOR
        args.guide_scale = 1.0 if args.guide_scale is None else args.guide_scale
        self.lpips, args.lpips_sha256 = _loaded_lpips(model, args)
        model.requires_grad_(False)  # of x_t alone: the weights' would only take memory

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Each image as often as asked."""
        words = [*args.images, *([args.indir] if args.indir else [])]
        if not words:
            raise ConfigError("no images: name files or directories after RUN")
        found = [_item(path, model, args.factor) for path in image_files(words)]
        if self.lpips is not None:
            _require_sides(found, self.lpips.smallest_side)
        entries = told(model, args)
        return [{**entries, **item} for item in found for _ in range(args.n)]

    def written_size(self, args: argparse.Namespace, item: Item) -> Sequence[int]:
        """Height and width of the small image, times the factor."""
        return [args.factor * side for side in item["low"]]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """The small images, for the model or for its guide."""
        height, width = items[0]["size"]
        low = _small(items, model, (height // args.factor, width // args.factor))
        options: SampleOptions = {"size": latent_size("size", (height, width), model)}

        def cut(drawn: Images) -> Images:
            sizes = [self.written_size(args, item) for item in items]
            return [image[:h, :w] for image, (h, w) in zip(drawn, sizes, strict=True)]

        batch = super().given(model, args, items).batch
        if args.guide is None:
            rows = low.permute(0, 2, 3, 1)  # as a batch of the data holds images
            return Given({**(batch or {}), _KEY: rows}, options, finish=cut)
        loss = self._loss(low, (height, width))

        def gradient(denoiser: Denoiser) -> Denoiser:
            decode = decoder_of(model)
            return ImageGuided(denoiser, model.schedule, loss, args.guide_scale, decode)

        return Given(batch, options, gradient, cut)

    def _loss(self, low: Tensor, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """What guides towards images whose small versions are `low` (B, C, h, w)."""
        # float32: under autocast images are bfloat16, which no antialiased resize takes on a CPU
        if (lpips := self.lpips) is None:
            distance = LowResolution(low)
            return lambda images: distance(images.float())
        target = F.interpolate(low, size=size, mode="bicubic").clamp(-1, 1)
        return lambda images: lpips(target, images.float()).flatten()


def factor_of(model: Any) -> int:
    """How many times larger than its low-resolution image a model draws.

    That image is joined to the latent once its encoder has brought it to the latent's size, so
    the factor is f of the first stage times what the encoder makes of a side: for the published
    models, whose encoder is the identity, f. It is measured, on an image of zeros.
    Raises ConfigError for a factor that is no whole number, and for a model that does not join
    the image as channels.
    """
    (part, *_) = (part for part in model.conditioner.parts if kind_of(part) == "low resolution")
    if part.slot != "concat":
        raise ConfigError(f"this model attends to {_KEY}; expected it to be joined (concat)")
    with torch.no_grad():
        zeros = torch.zeros(1, _PROBE, _PROBE, image_channels_of(model), device=model.device)
        side = part.embedder.encode(part.read({part.key: zeros})).shape[-1]
    factor = Fraction(side, _PROBE) * pixels_per_cell(model)
    if factor.denominator != 1:
        raise ConfigError(
            f"this model draws {factor} times as large as its {_KEY}; expected a whole number"
        )
    return int(factor)


def _check_unguided(model: Any, args: argparse.Namespace) -> None:
    """Set the factor of a model that was trained for it; ConfigError for flags of the others."""
    for flag in ("guide", "guide_scale", "lpips_weights"):
        if (value := getattr(args, flag)) is not None:
            raise ConfigError(
                f"--{flag.replace('_', '-')} {value}: is for models that were not trained to "
                f"enlarge; this one reads {_KEY}"
            )
    trained = factor_of(model)
    if args.factor not in (None, trained):
        raise ConfigError(f"--factor {args.factor}: this model enlarges {trained} times")
    args.factor = trained


def _loaded_lpips(model: Any, args: argparse.Namespace) -> tuple[LPIPS | None, str | None]:
    """LPIPS and the SHA-256 of its file, where it is the guide."""
    if args.guide != "lpips":
        if args.lpips_weights is not None:
            raise ConfigError(f"--lpips-weights {args.lpips_weights}: is for --guide lpips")
        return None, None
    if args.lpips_weights is None:
        raise ConfigError("--lpips-weights is needed: a file of VGG16's weights, or of LPIPS")
    lpips = lpips_of(args.lpips_weights, model.device)
    try:
        lpips.require_channels(image_channels_of(model))
    except ValueError as error:
        raise ConfigError(f"--guide lpips: {str(error).partition(';')[0]}") from error
    return lpips, sha256_of(Path(args.lpips_weights))


def _item(path: Path, model: Any, factor: int) -> Item:
    """An image file: `init`, `init_sha256`, `low` its height and width, `size` those drawn.

    Sides that the model does not take are continued to the next that it does.
    """
    try:
        low = list(read_image(path, image_channels_of(model)).shape[:2])
    except UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read: {reason(error)}") from error
    cells = cells_of(model)
    unit = cells // math.gcd(cells, factor)  # pixels of the small image
    size = [-(-side // unit) * unit * factor for side in low]
    if size != [side * factor for side in low]:
        message = "%s: %d x %d pixels, its edge is continued: drawn as %d x %d, then cut to %d x %d"
        log.info(message, path, *low, *size, *(side * factor for side in low))
    return {"init": str(path), "init_sha256": sha256_of(path), "low": low, "size": size}


def _require_sides(items: Sequence[Item], least: int) -> None:
    """Raise ConfigError for an image that is drawn too small for LPIPS."""
    for item in items:
        height, width = item["size"]
        if min(height, width) < least:
            raise ConfigError(
                f"{item['init']}: is drawn as {height} x {width} pixels, of which LPIPS sees "
                f"nothing; expected {least} or more"
            )


def _small(items: Sequence[Item], model: Any, size: tuple[int, int]) -> Tensor:
    """The images of items, (B, C, *size) in [-1, 1], their last row and column repeated."""
    pages = []
    for item in items:
        image = images_of([{**item, "size": item["low"]}], model)
        below, right = size[0] - image.shape[2], size[1] - image.shape[3]
        pages.append(F.pad(image, (0, right, 0, below), mode="replicate"))
    return torch.cat(pages).to(model.device)
