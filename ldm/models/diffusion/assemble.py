"""From the flat parameters of a configuration to the components of a diffusion model.

Two forms describe the same model. The component form gives objects (`schedule_config`,
`objective_config`, ...); the published form gives the flat keys of the 2022 release (`timesteps`,
`beta_schedule`, ...). This file, and `condition.py` for it, are the only places that know the
published keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Required, TypedDict, get_type_hints

import torch
from torch import Tensor, nn

from ldm.conditioning.conditioner import Conditioner
from ldm.config import ConfigError, build, did_you_mean
from ldm.diffusion.objective import NORMS, Objective
from ldm.diffusion.schedule import PublishedSchedule, Schedule
from ldm.diffusion.times import conditioning_times
from ldm.diffusion.weighting import Elbo
from ldm.models.diffusion.condition import (
    condition_of,
    encoders_of,
    freeze,
    with_published_labels,
)
from ldm.models.diffusion.first_stage_condition import with_published_mask
from ldm.models.diffusion.fit import Encoders, require_fit
from ldm.ranges import Positive, Weight
from ldm.samplers.base import Sampler
from ldm.samplers.ddim import DDIM
from ldm.spelling import require_known

__all__ = [
    "Components",
    "DDPMConfig",
    "LatentDiffusionConfig",
    "ProcessConfig",
    "assemble",
    "check_keys",
    "schedule_of",
]

Config = Mapping[str, Any]
# published: "linear" is linear in the square root of beta, "sqrt_linear" in beta
BetaSchedule = Literal["linear", "sqrt_linear", "sqrt", "cosine"]
Parameterization = Literal["eps", "x0", "v", "flow"]
LossType = Literal["l1", "l2", "huber"]
ConditioningKey = Literal[
    "concat", "crossattn", "hybrid", "adm", "hybrid-adm", "crossattn-adm", "concat-adm"
]


class ProcessConfig(TypedDict, total=False):
    """Parameters of the noising process: an object, or the keys below it."""

    schedule_config: NotRequired[Any]  # noise schedule; excludes the others
    timesteps: NotRequired[Positive]  # number of noise levels T; 1000
    beta_schedule: NotRequired[BetaSchedule]  # linear
    linear_start: NotRequired[float]  # beta of the first level; 1e-4
    linear_end: NotRequired[float]  # beta of the last level; 2e-2
    cosine_s: NotRequired[float]  # offset of the cosine schedule; 8e-3
    given_betas: NotRequired[list[float] | None]  # the betas themselves


class DDPMConfig(ProcessConfig, total=False):
    """Parameters of a diffusion model in the space of its images."""

    # components: a `target:` with `params:`, or an object
    unet_config: Required[Any]  # the denoising network
    objective_config: NotRequired[Any]  # training objective; excludes those marked (objective)
    sampler_config: NotRequired[Any]  # sampler of the previews and the scripts; DDIM
    optimizer_config: NotRequired[Any]  # AdamW, betas 0.9 and 0.999, weight decay 0.01
    scheduler_config: NotRequired[Any]  # learning-rate multiplier per optimizer step; constant

    # what the network learns, marked (objective) above
    parameterization: NotRequired[Parameterization]  # what the network predicts; eps
    loss_type: NotRequired[LossType]  # norm of its error; l2
    original_elbo_weight: NotRequired[Weight]  # weight of the variational bound; 0
    l_simple_weight: NotRequired[Weight]  # weight of the simple loss; 1
    v_posterior: NotRequired[Weight]  # posterior variance between small (0) and large (1); 0

    learn_logvar: NotRequired[bool]  # learn a log-variance per noise level; false
    logvar_init: NotRequired[float]  # its start value; 0

    # what is diffused
    first_stage_key: NotRequired[str]  # batch entry that holds the image; image
    image_size: NotRequired[Positive | list[Positive]]  # of what is diffused, in latent cells
    channels: NotRequired[Positive]  # channels of what is diffused; 3

    # training
    use_ema: NotRequired[bool]  # keep a moving average of the network; true
    ema_decay: NotRequired[float]  # its decay per optimizer step; 0.9999
    ckpt_path: NotRequired[str | None]  # start from this checkpoint's weights
    ignore_keys: NotRequired[list[str]]  # prefixes of its keys to leave out
    load_only_unet: NotRequired[bool]  # take the denoising network alone; false
    monitor: NotRequired[str | None]  # metric that decides which checkpoint is best; val/loss
    clip_denoised: NotRequired[bool]  # clip estimates of x0 to [-1, 1] when sampling; pixels only
    log_every_t: NotRequired[Positive]  # distance of the steps that previews of sampling show; 100
    conditioning_key: NotRequired[
        ConditioningKey | None
    ]  # where the condition enters; its encoder's slot
    use_positional_encodings: NotRequired[bool]  # published, never released: must stay false


class LatentDiffusionConfig(DDPMConfig, total=False):
    """Parameters of a diffusion model in the latent space of a first stage."""

    first_stage_config: Required[Any]  # the autoencoder, frozen
    cond_stage_config: NotRequired[Any]  # tau_theta: one encoder, a list, or a published marker
    cond_stage_key: NotRequired[str]  # batch entry that tau_theta reads; image
    cond_stage_trainable: NotRequired[bool | list[bool]]  # train tau_theta, or each encoder; false
    cond_stage_forward: NotRequired[str | None]  # published, never used: must stay empty
    concat_mode: NotRequired[bool]  # concatenate when conditioning_key is not given; true
    num_timesteps_cond: NotRequired[Positive]  # > 1 noises the condition over that many levels; 1
    scale_factor: NotRequired[float]  # multiplies the latents; 1
    scale_by_std: NotRequired[bool]  # measure 1 / std on the first batch instead; false
    latent_stats: NotRequired[str | None]  # or take it from this file of scripts/latent_stats.py


_SCHEDULE_KEYS = (
    "timesteps",
    "beta_schedule",
    "linear_start",
    "linear_end",
    "cosine_s",
    "given_betas",
)
_OBJECTIVE_KEYS = (
    "parameterization",
    "loss_type",
    "original_elbo_weight",
    "l_simple_weight",
    "v_posterior",
)
_UNUSED = {"use_positional_encodings": False, "cond_stage_forward": None}


@dataclass(frozen=True)
class Components:
    """The parts of a diffusion model, built."""

    net: nn.Module
    schedule: Schedule
    objective: Objective
    sampler: Sampler
    conditioner: Conditioner
    conditioning_key: str | None
    first_stage: Any  # a module that is a `FirstStage`, or None
    cond_stage: nn.Module | None  # what is registered as `cond_stage_model`, frozen unless trained
    trained_encoders: tuple[nn.Module, ...]  # of it
    logvar: Tensor | None  # (T,) log-variance per time, a parameter if learned; None for 0
    condition_times: Tensor | None  # see `NoisedCondition`; None for a clean condition


def assemble(flat: Config, schema: type) -> Components:
    """Build every component of a model from its flat parameters.

    schema: `DDPMConfig` or `LatentDiffusionConfig`.
    Raises ConfigError that names the key: unknown, given in both forms, or inconsistent.
    """
    check_keys(flat, schema)
    first_stage = build(flat.get("first_stage_config"), path="first_stage_config")
    cond_stage, conditioner, key = condition_of(flat, first_stage)
    trained = freeze(flat, cond_stage)
    net = build(flat["unet_config"], path="unet_config")
    width = getattr(net, "in_channels", None)
    conditioner = with_published_mask(conditioner, flat, width, first_stage)
    conditioner = with_published_labels(conditioner, getattr(net, "num_classes", None))
    require_fit(flat, net, first_stage, Encoders(conditioner, encoders_of(cond_stage)))
    schedule = schedule_of(flat)
    return Components(
        net=net,
        schedule=schedule,
        objective=_objective(flat),
        sampler=build(flat.get("sampler_config"), path="sampler_config") or DDIM(),
        conditioner=conditioner,
        conditioning_key=key,
        first_stage=first_stage,
        cond_stage=cond_stage,
        trained_encoders=trained,
        logvar=_logvar(flat, schedule),
        condition_times=_condition_times(flat, schedule),
    )


def check_keys(flat: Config, schema: type) -> None:
    """Raise ConfigError for a key that the schema lacks, and for what is given in both forms."""
    known = get_type_hints(schema)
    for key in flat:
        if key not in known:
            raise ConfigError(f"{key}: no such parameter{did_you_mean(key, known)}")
    for key, only in _UNUSED.items():
        if flat.get(key, only) != only:
            raise ConfigError(f"{key}: {flat[key]!r} was never released; leave the key out")
    for ours, published in (
        ("schedule_config", _SCHEDULE_KEYS),
        ("objective_config", _OBJECTIVE_KEYS),
    ):
        both = [key for key in published if key in flat]
        if flat.get(ours) is not None and both:
            raise ConfigError(f"{ours} and {', '.join(both)} describe the same thing; give one")


def schedule_of(flat: Config) -> Schedule:
    """The noise schedule that flat parameters describe, in either form."""
    if flat.get("schedule_config") is not None:
        return build(flat["schedule_config"], path="schedule_config")  # type: ignore[no-any-return]
    return PublishedSchedule(**{key: flat[key] for key in _SCHEDULE_KEYS if key in flat})


def _logvar(flat: Config, schedule: Schedule) -> Tensor | None:
    start, is_learned = flat.get("logvar_init", 0.0), flat.get("learn_logvar", False)
    if not (is_learned or start):
        return None
    if schedule.num_timesteps is None:
        raise ConfigError("learn_logvar, logvar_init: need a schedule of integer times")
    table = torch.full((schedule.num_timesteps,), float(start))
    return nn.Parameter(table) if is_learned else table


def _condition_times(flat: Config, schedule: Schedule) -> Tensor | None:
    levels = flat.get("num_timesteps_cond", 1)
    if levels == 1:
        return None
    num_timesteps = schedule.num_timesteps
    if num_timesteps is None:
        raise ConfigError("num_timesteps_cond: needs a schedule of integer times")
    if not 1 <= levels <= num_timesteps:
        raise ConfigError(f"num_timesteps_cond: {levels}; expected 1 to timesteps, {num_timesteps}")
    return conditioning_times(num_timesteps, levels)


def _objective(flat: Config) -> Objective:
    if flat.get("objective_config") is not None:
        return build(flat["objective_config"], path="objective_config")  # type: ignore[no-any-return]
    require_known("loss_type", flat.get("loss_type", "l2"), NORMS)
    return Objective(
        parameterization=flat.get("parameterization", "eps"),
        norm=flat.get("loss_type", "l2"),
        simple_weight=flat.get("l_simple_weight", 1.0),
        elbo_weight=flat.get("original_elbo_weight", 0.0),
        elbo=Elbo(v_posterior=flat.get("v_posterior", 0.0)),
    )
