"""scripts/inpaint.py: what a mask hides is drawn, the rest stays."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.cli.sampling.entries import Item, kind_of, require_script
from ldm.cli.sampling.inputs import image_items, images_of, masks_of
from ldm.cli.sampling.sizes import latent_size
from ldm.cli.sampling.task import Given, Images, Task
from ldm.cli.sampling.told import add_told, told
from ldm.config import ConfigError
from ldm.data.decoding import EXTENSIONS, upright_size
from ldm.data.masks import masked
from ldm.io.digest import sha256_of
from ldm.log import log
from ldm.models.diffusion.sampling import Known
from ldm.tensor import to_uint8

__all__ = ["Inpaint"]


class Inpaint(Task):
    """Draws what is white in a mask; pixels that are known stay as they are."""

    name = "inpaint"
    description = """Draw what a mask hides, with any model, or one that was trained for it.

python scripts/inpaint.py logs/RUN photograph.png --mask mask.png --n 4
python scripts/inpaint.py logs/RUN pairs/      # NAME.png beside NAME_mask.png

What is white in a mask is drawn. Known pixels are those of the image, to the last bit."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Images and their masks."""
        add_told(parser)
        add = parser.add_argument_group("what it is given").add_argument
        add("images", nargs="*", metavar="IMAGES", help="image files, and directories of them")
        add("--mask", help="of all images; default: NAME_mask.png beside NAME.png")
        add("--indir", help=argparse.SUPPRESS)  # published

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Each image with its mask, as often as asked."""
        require_script("scripts/inpaint.py", model)
        words = [*args.images, *([args.indir] if args.indir else [])]
        if not words:
            raise ConfigError("no images: name files or directories after RUN")
        found = [
            {**item, "mask": str(mask), "mask_sha256": sha256_of(mask)}
            for item in image_items(words, args.size, model)
            if not Path(item["init"]).stem.endswith("_mask")
            for mask in [_mask(Path(item["init"]), args.mask)]
        ]
        for item in found:
            _require_hole(item)
        entries = told(model, args)
        return [{**entries, **item} for item in found for _ in range(args.n)]

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """What is known, and how it is put back."""
        images, masks = images_of(items, model), masks_of(items)

        def with_known(drawn: Images) -> Images:
            known = masks.permute(0, 2, 3, 1).numpy() == 1
            pixels = to_uint8(images).numpy()
            return [np.where(*each) for each in zip(known, pixels, drawn, strict=True)]

        batch = super().given(model, args, items).batch
        if not any(kind_of(part) == "masked image" for part in model.conditioner.parts):
            return Given(batch, {"known": Known(images, masks)}, finish=with_known)
        size = latent_size("size", images.shape[2:], model)
        told_of = _told_of_holes(images, masks)
        batch = {**(batch or {}), **{key: each.to(model.device) for key, each in told_of.items()}}
        return Given(batch, {"size": size}, finish=with_known)


def _told_of_holes(images: Tensor, known: Tensor) -> dict[str, Tensor]:
    """What a model that was trained to fill holes reads, as a batch of the data holds it.

    images: (B, C, H, W) in [-1, 1].  known: (B, 1, H, W), 1 where a pixel is known.
    Returns `masked_image` (B, H, W, C), black, -1, where a pixel is hidden, and `mask`
    (B, H, W, 1), 1 where it is and -1 elsewhere.
    """
    hidden = (known[:, 0] == 0).numpy()
    shown = masked(images.permute(0, 2, 3, 1).numpy(), hidden)
    mask = 1 - 2 * known.permute(0, 2, 3, 1)
    return {"masked_image": torch.from_numpy(shown), "mask": mask}


def _mask(image: Path, given: str | None) -> Path:
    """The mask of an image; ConfigError where there is none."""
    if given is not None:
        if not Path(given).is_file():
            raise ConfigError(f"--mask {given}: no such file")
        return Path(given)
    candidates = [image.with_name(f"{image.stem}_mask{ending}") for ending in sorted(EXTENSIONS)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{image}: there is no {image.stem}_mask.png beside it; give --mask")
    return found


def _require_hole(item: Item) -> None:
    """Tell of a mask of another size; ConfigError for other proportions, and one without a hole."""
    if masks_of([item]).all():
        raise ConfigError(f"{item['mask']}: hides nothing: expected white where pixels are drawn")
    (height, width), image = (upright_size(Path(item[name])) for name in ("mask", "init"))
    if abs(height * image[1] - width * image[0]) >= max(height, width, *image):  # about a pixel
        raise ConfigError(
            f"{item['mask']}: has {height} x {width} pixels (height x width), its image "
            f"{item['init']} has {image[0]} x {image[1]}; expected the same proportions"
        )
    if (height, width) != image:
        message = "%s: resized from %d x %d to its image's %d x %d"
        log.info(message, item["mask"], height, width, *image)
