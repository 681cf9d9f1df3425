"""How an image came about: estimates of it during sampling, in a row or as a moving picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm.samplers.base import Step
from ldm.tensor import to_uint8
from ldm.types import Prediction

__all__ = ["Preview"]

Kind = Literal["row", "gif"]

COUNT: dict[Kind, int] = {"row": 8, "gif": 32}  # estimates at most
FRAME_MS = 100
LAST_MS = 1000


class Preview:
    """A callback of a sampler that keeps estimates of x0 at even distances, the last among them."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.estimates: list[Tensor] = []

    def __call__(self, step: Step, x: Tensor, prediction: Prediction) -> None:
        """Keep the estimate of this step if it is due."""
        count = min(step.count, COUNT[self.kind])
        due = {(number + 1) * step.count // count - 1 for number in range(count)}
        if step.index in due:
            self.estimates.append(prediction.x0)

    def write(self, model: Any, paths: Sequence[Path]) -> None:
        """Decode what was kept of the first images, and write a file beside the path of each."""
        estimates = [each[: len(paths)] for each in self.estimates]
        frames = np.stack([to_uint8(model.decode(each)).cpu().numpy() for each in estimates])
        for path, own in zip(paths, frames.swapaxes(0, 1), strict=True):
            _write(own, path, self.kind)


def _write(frames: NDArray[np.uint8], path: Path, kind: Kind) -> None:
    """Frames (N, H, W, C) as one file."""
    if frames.shape[-1] not in (1, 3, 4):
        frames = frames[..., : 1 if frames.shape[-1] == 2 else 3]
    if frames.shape[-1] == 1:
        frames = frames[..., 0]
    if kind == "row":
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(
            path.with_name(f"{path.stem}_row.png")
        )
        return
    first, *others = (Image.fromarray(frame) for frame in frames)
    durations = [FRAME_MS] * len(others) + [LAST_MS]
    first.save(
        path.with_suffix(".gif"), save_all=True, append_images=others, duration=durations, loop=0
    )
