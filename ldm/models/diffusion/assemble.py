"""From the flat parameters of a configuration to the components of a diffusion model.

Two forms describe the same model. The component form gives objects (`schedule_config`,
`objective_config`, ...); the published form gives the flat keys of the 2022 release (`timesteps`,
`beta_schedule`, ...). This file is the only place that knows the published keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Required, TypedDict, get_type_hints

import torch
from torch import Tensor, nn

from ldm.autoencoders.base import FirstStage
from ldm.conditioning.base import Embedder, FunctionEmbedder, Slot
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.conditioning.hybrid import HybridConditioner
from ldm.config import ConfigError, build, did_you_mean
from ldm.diffusion.denoiser import CONDITIONING_KEYS
from ldm.diffusion.objective import NORMS, Objective
from ldm.diffusion.schedule import PublishedSchedule, Schedule
from ldm.diffusion.times import conditioning_times
from ldm.diffusion.weighting import Elbo
from ldm.models.diffusion.first_stage_condition import first_stage_part, with_published_mask
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
ConditioningKey = Literal["concat", "crossattn", "hybrid", "adm", "hybrid-adm", "crossattn-adm"]


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
    cond_stage_trainable: NotRequired[bool]  # train tau_theta with the network; false
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
_SLOTS: dict[str, Slot] = {"concat": "concat", "crossattn": "crossattn", "adm": "vector"}


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
    logvar: Tensor | None  # (T,) log-variance per time, a parameter if learned; None for 0
    condition_times: Tensor | None  # see `NoisedCondition`; None for a clean condition


def assemble(flat: Config, schema: type) -> Components:
    """Build every component of a model from its flat parameters.

    schema: `DDPMConfig` or `LatentDiffusionConfig`.
    Raises ConfigError that names the key: unknown, given in both forms, or inconsistent.
    """
    check_keys(flat, schema)
    first_stage = build(flat.get("first_stage_config"), path="first_stage_config")
    cond_stage, conditioner, key = _condition(flat, first_stage)
    _freeze(flat, cond_stage)
    net = build(flat["unet_config"], path="unet_config")
    width = getattr(net, "in_channels", None)
    conditioner = with_published_mask(conditioner, flat, width, first_stage)
    _check_widths(flat, net, first_stage, conditioner)
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


def _condition(flat: Config, first_stage: Any) -> tuple[nn.Module | None, Conditioner, str | None]:
    """What is registered as `cond_stage_model`, the conditioner made of it, and its slots' key."""
    config = flat.get("cond_stage_config")
    if config is None or config == "__is_unconditional__":
        if (given := flat.get("conditioning_key")) is not None:
            raise ConfigError(
                f"conditioning_key: {given!r}, but there is no encoder in cond_stage_config whose "
                "output could enter there"
            )
        return None, Conditioner(), None
    default = "concat" if flat.get("concat_mode", True) else "crossattn"
    key = flat.get("conditioning_key") or default
    if config == "__is_first_stage__":
        if first_stage is None:
            raise ConfigError("cond_stage_config: __is_first_stage__ needs a first stage")
        part = first_stage_part(flat, first_stage, _slot(key))
        return None, Conditioner((part,)), key
    built = build(config, path="cond_stage_config")
    if isinstance(built, list | HybridConditioner):
        registered = nn.ModuleList(built) if isinstance(built, list) else built
        parts = tuple(_own_part(each) for each in registered.children())
        return registered, Conditioner(parts), _key_of(parts, flat)
    is_told = not flat.keys().isdisjoint({"conditioning_key", "concat_mode"})
    uses_own_slot = isinstance(built, Embedder) and not is_told
    part = _part(
        built,
        getattr(built, "key", None) or flat.get("cond_stage_key", "image"),
        built.slot if uses_own_slot else _slot(key),
    )
    return built, Conditioner((part,)), _key_of((part,), flat)


def _freeze(flat: Config, cond_stage: nn.Module | None) -> None:
    """Freeze encoders that are not to be trained; of those that are, each has frozen its own part.

    Raises ConfigError when nothing is left that could be trained.
    """
    if cond_stage is None:
        return
    if not flat.get("cond_stage_trainable", False):
        cond_stage.requires_grad_(False)
        return
    parameters = list(cond_stage.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        encoders = cond_stage if isinstance(cond_stage, nn.ModuleList) else (cond_stage,)
        names = " and ".join(type(encoder).__name__ for encoder in encoders)
        raise ConfigError(f"cond_stage_trainable: {names} cannot be trained; expected false")


def _slot(key: str) -> Slot:
    """The slot that one encoder fills under a conditioning key."""
    if key not in _SLOTS:
        known = f"expected one of {', '.join(_SLOTS)}{did_you_mean(key, _SLOTS)}"
        if key in CONDITIONING_KEYS:
            known = "which needs several encoders: make cond_stage_config a list of them"
        raise ConfigError(f"conditioning_key: {key!r}, {known}")
    return _SLOTS[key]


def _part(module: nn.Module, key: str | None, slot: Slot) -> Part:
    if key is None:
        raise ConfigError(
            f"cond_stage_config: {type(module).__name__} needs a `key`, what it reads"
        )
    embedder = module if isinstance(module, Embedder) else FunctionEmbedder(module)
    return Part(embedder, key, slot)


def _own_part(module: nn.Module) -> Part:
    """One of several encoders, each of which says itself what it reads and fills."""
    if not isinstance(module, Embedder):
        raise ConfigError(
            f"cond_stage_config: {type(module).__name__} is one of several encoders and says "
            "neither what it reads nor which slot it fills; expected an `Embedder`"
        )
    return _part(module, module.key, module.slot)


def _key_of(parts: tuple[Part, ...], flat: Config) -> str | None:
    """The conditioning key whose slots these parts fill."""
    filled = {part.slot for part in parts}
    names = ", ".join(sorted(filled))
    keys = [key for key, slots in CONDITIONING_KEYS.items() if set(slots) == filled]
    if not keys:
        raise ConfigError(f"cond_stage_config: no denoiser takes these slots together: {names}")
    given = flat.get("conditioning_key")
    if given is not None and given != keys[0]:
        raise ConfigError(f"conditioning_key: {given!r}, but cond_stage_config fills: {names}")
    return keys[0]


def _check_widths(
    flat: Config, net: nn.Module, first_stage: FirstStage | None, conditioner: Conditioner
) -> None:
    """Refuse parts that do not fit each other, before anything runs."""
    channels = getattr(first_stage, "latent_channels", None) or flat.get("channels", 3)
    if first_stage:
        origin = f"{type(first_stage).__name__} has latents of {channels} channels"
    else:
        origin = f"channels is {channels}" + ("" if "channels" in flat else " unless it is given")
    if flat.get("channels", channels) != channels:
        raise ConfigError(f"channels: {flat['channels']}, but {origin}")
    found = getattr(net, "out_channels", channels)
    if found != channels:
        unet = flat["unet_config"]
        params = unet.get("params") or {} if isinstance(unet, Mapping) else {}
        name = "out_ch" if "out_ch" in params else "out_channels"  # DDPM's network has the former
        raise ConfigError(f"unet_config.params.{name}: {found}, but {origin}")
    extra = [part.embedder.embed_dim for part in conditioner.parts if part.slot == "concat"]
    found = getattr(net, "in_channels", None)
    if found is not None and None not in extra and found != channels + sum(filter(None, extra)):
        joined = "".join(f" + {width} (condition)" for width in extra)
        raise ConfigError(f"unet_config.params.in_channels: {found}, but {origin}{joined}")
    _check_context(net, conditioner)
    _check_vector(net, conditioner)


def _check_context(net: nn.Module, conditioner: Conditioner) -> None:
    """Tokens, and a network that attends to tokens of their width, go together."""
    expected = getattr(net, "context_dim", None)
    parts = [part for part in conditioner.parts if part.slot == "crossattn"]
    if expected is not None and not parts:
        raise ConfigError(
            f"unet_config.params.context_dim: {expected}, but no encoder gives tokens to attend to"
        )
    for part in parts:
        width, name = part.embedder.embed_dim, type(part.embedder).__name__
        if expected is None and width is not None:
            raise ConfigError(
                "unet_config.params.context_dim: not given, so the network attends to nothing, but "
                f"{name} gives tokens of width {width}"
            )
        if width is not None and width != expected:
            raise ConfigError(
                f"unet_config.params.context_dim: {expected}, but {name} gives tokens of width "
                f"{width}"
            )


def _check_vector(net: nn.Module, conditioner: Conditioner) -> None:
    """Vectors y are projected from their summed width; labels, which have none, are looked up."""
    widths = [part.embedder.embed_dim for part in conditioner.parts if part.slot == "vector"]
    for name in ("num_classes", "adm_in_channels"):
        value = getattr(net, name, None)
        if value is not None and not widths:
            raise ConfigError(
                f"unet_config.params.{name}: {value}, but no encoder gives labels or vectors y"
            )
    expected = getattr(net, "adm_in_channels", None)
    if not widths or None in widths or expected == sum(filter(None, widths)):
        return
    raise ConfigError(
        f"unet_config.params.adm_in_channels: {expected}, but the condition gives vectors of width "
        f"{' + '.join(map(str, widths))}"
    )
