"""Classes that the tests of the configuration name as targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, Required, TypedDict, Unpack

from torch import Tensor, nn

from ldm.config import build
from ldm.ranges import NonNegative, Positive, Weight

if TYPE_CHECKING:
    from somewhere import Unseen


class Recorder:
    """Remembers what it was made with."""

    def __init__(self, **params):
        self.params = params


@dataclass
class Values:
    whole: int = 0
    real: float = 0.0
    flag: bool = False
    text: str = ""
    maybe: float | None = None
    path: str | Path = ""
    norm: Literal["l1", "l2"] = "l2"
    level: Literal[1, 2] = 1
    many: Sequence[int] = ()
    pair: tuple[int, int] = (0, 0)
    names: list[str] | None = None
    table: Mapping[str, float] | None = None
    module: nn.Module | None = None
    tensor: float | Tensor = 0.0
    anything: Any = None
    call: Callable[[int], int] | None = None
    unseen: Unseen | None = None
    implicit: int = None
    sizes: int | tuple[int, ...] = 1
    count: Positive = 1
    counts: Sequence[Positive] | None = None
    weight: Weight = 1.0
    start: NonNegative = 0


class Denoiser(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...


class Guided:
    """Needs an object that only a program has, and a number that only a user has."""

    def __init__(self, denoiser: Denoiser, scale: float, parameters: Iterable[Tensor]):
        self.scale = scale


class Flat(TypedDict, total=False):
    unet_config: Required[Any]
    timesteps: NotRequired[int]
    loss_type: NotRequired[Literal["l1", "l2"]]


class FromTypedDict:
    def __init__(self, first_stage_config: Mapping[str, Any], **params: Unpack[Flat]):
        self.params = params


class Base:
    def __init__(self, width: int, depth: int = 1):
        self.width, self.depth = width, depth


class PassesOn(Base):
    def __init__(self, height: int, **kwargs):
        super().__init__(**kwargs)
        self.height = height


class Strict(nn.Module):
    """Refuses negative widths in its constructor."""

    def __init__(self, width: int):
        super().__init__()
        if width < 0:
            raise ValueError(f"width {width}: expected 0 or more")


class Empty:
    pass


class Outer:
    def __init__(self, inner_config: Mapping[str, Any]):
        self.inner = build(inner_config)


def make(size: int = 1) -> dict[str, int]:
    return {"size": size}
