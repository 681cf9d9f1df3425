"""State dicts of the 2022 release and ours: the same networks, other names around them.

Networks carry the published names, so most of a file passes through. What differs:

    schedule tables   the file holds 12 derived buffers, ours computes them: checked and dropped
    average           `model_ema.` + the name without its dots; ours keeps a module there
    conditioner       stored a second time when it is the first stage itself
    CLIP              a constant buffer of positions; files of newer libraries lack `text_model.`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ldm.config import ConfigError

__all__ = ["SCHEDULE_TABLES", "from_published", "to_published"]

State = dict[str, Tensor]

SCHEDULE_TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)

_LIVE, _AVERAGE, _OUR_AVERAGE = "model.", "model_ema.", "model_ema.module."
_COUNTERS = (_AVERAGE + "decay", _AVERAGE + "num_updates")
_FIRST_STAGE, _CONDITIONER = "first_stage_model.", "cond_stage_model."
_CLIP, _CLIP_LEVEL = "cond_stage_model.transformer.", "text_model."
_POSITION_IDS = "embeddings.position_ids"
# what a file need not hold: a model has these from its configuration
_OPTIONAL = ("scale_factor", "logvar")


def from_published(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    tables: Mapping[str, Tensor] | None = None,
) -> State:
    """A published state dict under our names, for the model whose own state dict is `wanted`.

    Where the file holds no average and the model keeps one, it starts from the live weights; where
    the model keeps none, the file's is dropped. Names that nothing explains stay in, so that
    loading reports them. A state dict of ours passes through unchanged.

    tables: the schedule's twelve buffers by name; those in the file must agree with them.

    Raises ConfigError when the file's noise schedule is another.
    """
    _check_tables(state, tables or {})
    averages = {_without_dots(key): key for key in wanted if key.startswith(_OUR_AVERAGE)}
    renamed = {}
    for key, value in state.items():
        name = averages.get(key, key)
        name = name if name in wanted else _with_clip_level(name)
        if name in wanted:
            renamed[name] = value
        elif not _is_surplus(key, state, wanted):
            renamed[key] = value
    for key, value in _defaults(state, wanted):
        renamed.setdefault(key, value)
    return renamed


def to_published(
    state: Mapping[str, Tensor],
    *,
    tables: Mapping[str, Tensor],
    first_stage_conditions: bool = False,
) -> State:
    """A state dict of ours under the published names, with the schedule's twelve buffers.

    tables: the buffers by name, each (T,) float32.
    first_stage_conditions: the conditioner is the first stage, so it is stored a second time.
    """
    published = {key: tables[key] for key in SCHEDULE_TABLES}
    for key, value in state.items():
        published[_without_dots(key) if key.startswith(_OUR_AVERAGE) else key] = value
        if first_stage_conditions and key.startswith(_FIRST_STAGE):
            published[_CONDITIONER + key.removeprefix(_FIRST_STAGE)] = value
    positions = state.get(_CLIP + _CLIP_LEVEL + "embeddings.position_embedding.weight")
    if positions is not None:
        ids = torch.arange(len(positions), device=positions.device)[None]
        published[_CLIP + _CLIP_LEVEL + _POSITION_IDS] = ids
    return published


def _without_dots(key: str) -> str:
    """Published name of an average: `model_ema.module.a.b` to `model_ema.ab`."""
    return _AVERAGE + key.removeprefix(_OUR_AVERAGE).replace(".", "")


def _with_clip_level(key: str) -> str:
    """A text model's name with the level `text_model.`, which files of newer libraries lack."""
    is_bare = key.startswith(_CLIP) and not key.startswith(_CLIP + _CLIP_LEVEL)
    return _CLIP + _CLIP_LEVEL + key.removeprefix(_CLIP) if is_bare else key


def _is_surplus(key: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether a model without this name loses nothing."""
    if key in SCHEDULE_TABLES or (key.startswith(_CLIP) and key.endswith(_POSITION_IDS)):
        return True
    if key.startswith(_AVERAGE):
        return not any(name.startswith(_AVERAGE) for name in wanted)
    twin = state.get(_FIRST_STAGE + key.removeprefix(_CONDITIONER))
    return key.startswith(_CONDITIONER) and twin is not None and _is_equal(twin, state[key])


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))


def _defaults(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What a file may leave out, and the value that stands for it."""
    for key in _OPTIONAL:
        if key in wanted:
            yield key, wanted[key]
    if any(key.startswith(_AVERAGE) for key in state):
        return
    for key, value in wanted.items():
        live = _LIVE + key.removeprefix(_OUR_AVERAGE)
        if key in _COUNTERS:
            yield key, value
        elif key.startswith(_OUR_AVERAGE) and live in state:
            yield key, state[live]


def _check_tables(state: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> None:
    for name in SCHEDULE_TABLES:
        if name not in state or name not in tables:
            continue
        found, expected = state[name], tables[name]
        if found.is_meta or expected.is_meta:
            continue
        advice = "set timesteps, beta_schedule, linear_start and linear_end as it was trained"
        if found.shape != expected.shape:
            raise ConfigError(
                f"the checkpoint's noise schedule has {len(found)} steps, the configuration's "
                f"{len(expected)}; {advice}"
            )
        # both are float64 tables rounded to float32; 1e-4 tells schedules apart, not roundings
        is_close = torch.isclose(found.double(), expected.double(), rtol=1e-4, atol=1e-7)
        if not is_close.all():
            step = int((~is_close).nonzero()[0, 0])
            raise ConfigError(
                f"the checkpoint was trained with another noise schedule: {name} at step {step} "
                f"is {float(found[step]):.6g}, the configuration's {float(expected[step]):.6g}; "
                f"{advice}"
            )
