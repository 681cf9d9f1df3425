"""Images with boxes, captions or both, of files in COCO's format (`ldm.data.coco_format`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ldm.config import ConfigError
from ldm.data.captions import taken
from ldm.data.coco_format import (
    MIN_AREA,
    Coco,
    CocoImage,
    captions_of,
    coco_of,
    in_window,
    json_of,
    tell_of_problems,
)
from ldm.data.images import ImageFiles
from ldm.data.listing import existing_directory, existing_file, list_files
from ldm.data.transforms import Framing, Interpolation, Window
from ldm.log import log
from ldm.ranges import NonNegative, Weight

__all__ = ["CocoBoxes", "CocoCaptions"]

Form = TypeVar("Form")


class CocoCaptions(ImageFiles):
    """Images of a directory, with the captions of a file in COCO's format.

    root: the directory.  annotations: the file, `captions_train2017.json` or the like, which is one
        split by itself.
    size, random_crop, flip_p, interpolation, fast_decode: as in `ldm.data.folder.ImageFolder`. An
        image is not mirrored where the caption that is taken says left or right.
    random_caption: one of an image's captions, drawn anew each time; otherwise, as for validation,
        the first.

    An item holds `image` (H, W, 3) uint8, `caption` and `relpath`. Images without a caption are
    left out, which is told.

    Raises ConfigError when directory or file is missing, for a file in another form, for a caption
    whose image the file does not list, and when no image is left.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        size: int | Sequence[int] = 256,
        *,
        random_crop: bool = False,
        flip_p: float = 0.0,
        random_caption: bool = True,
        interpolation: Interpolation = "bicubic",
        fast_decode: bool = False,
    ) -> None:
        framing = Framing.of(
            size, random_crop=random_crop, flip_p=flip_p, interpolation=interpolation
        )
        directory = existing_directory(root, expected="a directory of images")
        expected = "COCO's JSON with captions"
        path = existing_file(annotations, key="annotations", expected=expected)
        images = _read(path, "annotations", captions_of)
        kept = [image for image in images if image.captions]
        if not kept:
            raise ConfigError(
                f"annotations: {path}: none of its {len(images)} images has a caption"
            )
        _tell_of_size(path, len(kept), len(images), "have captions")
        self._captions = {image.name: image.captions for image in kept}
        self._is_random = random_caption
        names = [image.name for image in kept]
        _require_files(directory, names, path)
        super().__init__(directory, names, framing, fast_decode=fast_decode)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The caption."""
        return {"caption": taken(self._captions[self.names[index]], rng, is_random=self._is_random)}


class CocoBoxes(ImageFiles):
    """Images of a directory, with the boxes of a file in COCO's format, and captions of another.

    root: the directory.  annotations: the file, `instances_train2017.json` or the like, which is
        one split by itself.
    size: side of the images in pixels, or [height, width]: the largest window of these proportions
        in the centre is cut out and resized, and the boxes with it.
    random_crop: cut the window at random along the longer side instead.  min_crop: its side as a
        fraction of the largest one's is drawn from here to 1.
    flip_p: probability of a mirrored image, with its boxes.
    min_area: boxes that cover less of the window than this share are left out.
    min_objects: images with fewer boxes in the central window are left out; where a window that is
        drawn has fewer, the central one takes its place.
    skip_bad_boxes: leave out annotations that are none, such as boxes outside of their image,
        instead of refusing the file.
    captions, random_caption: a second file, of the same images, as in `CocoCaptions`.

    An item holds `image` (H, W, 3) uint8, `relpath`, `boxes` (N, 4) float32 and `box_classes` (N,)
    int64, labels that count `class_names`, the file's categories in the order of their ids, and
    with a second file `caption`. Annotations of crowds and boxes without area are left out, images
    without a caption too; what is, is told. An image of another size, upright, than the file says
    it has is a `BadSample`.

    Raises ConfigError when directory or file is missing, for a file in another form, for an
    annotation that is none, and when no image is left.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        size: int | Sequence[int] = 256,
        *,
        random_crop: bool = False,
        min_crop: float = 1.0,
        flip_p: float = 0.0,
        min_area: Weight = MIN_AREA,
        min_objects: NonNegative = 1,
        skip_bad_boxes: bool = False,
        captions: str | Path | None = None,
        random_caption: bool = True,
    ) -> None:
        if not 0 < min_crop <= 1:
            raise ConfigError(f"min_crop: {min_crop}; expected above 0, to 1")
        framing = Framing.of(size, random_crop=random_crop, flip_p=flip_p, min_crop=min_crop)
        directory = existing_directory(root, expected="a directory of images")
        path = existing_file(annotations, key="annotations", expected="COCO's JSON")
        coco = _boxes(path, skip_bad_boxes=skip_bad_boxes)
        self._is_random, self._min_area, self._min_objects = random_caption, min_area, min_objects
        images = [image for image in coco.images if self._is_kept(image, framing)]
        if not images:
            raise ConfigError(
                f"annotations: {path}: none of its {len(coco.images)} images has {min_objects} "
                "objects or more (min_objects)"
            )
        self.class_names = coco.class_names
        _tell_of_size(path, len(images), len(coco.images), "are used")
        if captions is not None:
            expected = "COCO's JSON with captions"
            images = _captioned(images, existing_file(captions, key="captions", expected=expected))
        self._images = images
        self._sides = {image.name: (image.height, image.width) for image in images}
        names = [image.name for image in images]
        _require_files(directory, names, path)
        super().__init__(directory, names, framing)

    def facts(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The caption, where there is a file of them."""
        texts = self._images[index].captions
        return {"caption": taken(texts, rng, is_random=self._is_random)} if texts else {}

    def window(self, index: int, rows: int, columns: int, rng: np.random.Generator) -> Window:
        """The window that is drawn, or the central one where that has too few objects."""
        drawn = self.framing.window(rows, columns, rng)
        names, _ = in_window(self._images[index], drawn, self._min_area)
        return drawn if len(names) >= self._min_objects else self.framing.window(rows, columns)

    def facts_within(self, index: int, window: Window, *, flips: bool) -> dict[str, Any]:
        """The boxes in a window, and their classes."""
        names, boxes = in_window(self._images[index], window, self._min_area)
        if flips:
            left, top, width, height = boxes.T
            boxes = np.stack([1 - left - width, top, width, height], axis=1)
        labels = [self.class_names.index(name) for name in names]
        return {
            "boxes": boxes.astype(np.float32),
            "box_classes": np.array(labels, dtype=np.int64),
        }

    def _is_kept(self, image: CocoImage, framing: Framing) -> bool:
        """Whether the central window of an image has as many objects as are wanted."""
        window = framing.window(image.height, image.width)
        return len(in_window(image, window, self._min_area)[0]) >= self._min_objects

    def _pixels(self, name: str) -> NDArray[Any] | str:
        """An image's pixels, or what is wrong with it: its boxes are those of another one."""
        pixels = super()._pixels(name)
        if isinstance(pixels, str) or pixels.shape[:2] == self._sides[name]:
            return pixels
        told, found = (f"{high} x {wide}" for high, wide in (self._sides[name], pixels.shape[:2]))
        return f"its boxes are of an image of {told} pixels, it has {found}"


def _read(path: Path, key: str, form: Callable[[Path, Any], Form]) -> Form:
    """What a file of this form holds; ConfigError names the parameter and the file."""
    try:
        return form(path, json_of(path))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _boxes(path: Path, *, skip_bad_boxes: bool) -> Coco:
    """A file of boxes; ConfigError for annotations that are none, unless they may be left out."""
    coco = _read(path, "annotations", coco_of)
    if coco.faults and not skip_bad_boxes:
        more = f" (and {len(coco.faults) - 1} more)" if len(coco.faults) > 1 else ""
        raise ConfigError(
            f"annotations: {path}: {coco.faults[0]}{more}; skip_bad_boxes: true leaves such out"
        )
    tell_of_problems(path, coco)
    return coco


def _captioned(images: Sequence[CocoImage], path: Path) -> list[CocoImage]:
    """The images that a second file has captions of, with these; ConfigError when it has none."""
    others = _read(path, "captions", captions_of)
    told = {image.id: image for image in others}
    kept = []
    for image in images:
        other = told.get(image.id)
        if other is not None and other.name != image.name:
            raise ConfigError(
                f"captions: {path}: image {image.id} is {other.name}, in annotations {image.name}; "
                "expected a file of the same images"
            )
        if other is not None and other.captions:
            image.captions = other.captions
            kept.append(image)
    if not kept:
        raise ConfigError(
            f"captions: {path}: has a caption of none of the {len(images)} images with boxes"
        )
    _tell_of_size(path, len(kept), len(images), "have captions")
    return kept


def _tell_of_size(path: Path, count: int, total: int, what: str) -> None:
    log.info("%s: %d of %d images %s", path, count, total, what)


def _require_files(root: Path, names: Sequence[str], path: Path) -> None:
    """ConfigError when none of the images that a file names is there."""
    if any((root / name).is_file() for name in names):  # as a rule the first
        return
    raise ConfigError(
        f"root: none of the {len(names)} images of {path} is in {root}: it names, e.g., "
        f"{names[0]!r}, there is {list_files(root)[0][0]!r}"
    )
