"""Weights of a checkpoint into a diffusion model, ours or published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.diffusion.posterior import published_buffers
from ldm.diffusion.schedule import DiscreteSchedule
from ldm.io.checkpoint import MatchReport, load_into, load_state
from ldm.io.compvis import from_published
from ldm.log import log

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import DDPM

__all__ = ["restore_weights"]


def restore_weights(
    model: DDPM, path: str | Path, *, ignore: Sequence[str] = (), only: str | None = None
) -> MatchReport:
    """Give a model the weights of a checkpoint, which may be of the 2022 release.

    ignore: prefixes of names to leave out.  only: prefix of the only names to take.
    A model on the meta device learns whether they would fit.

    Raises ConfigError: no such file, no checkpoint, another noise schedule, or (with a report of
    missing, unexpected and mismatched names) another model.
    """
    state = load_state(path)
    if only is not None:
        state = {key: value for key, value in state.items() if key.startswith(only)}
    schedule = model.schedule
    tables = None
    if isinstance(schedule, DiscreteSchedule):
        tables = published_buffers(schedule, getattr(model.objective.elbo, "v_posterior", 0.0))
    wanted = model.state_dict()
    renamed = from_published(state, wanted, tables=tables)
    report = load_into(model, renamed, strict=only is None, ignore=ignore, source=str(path))
    log.info("%s: %d tensors loaded", path, report.matched)
    return report
