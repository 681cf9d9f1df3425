"""From flat parameters to a model: both forms, and what is refused."""

from typing import get_args

import pytest
import torch

from ldm.conditioning.spatial import SpatialRescaler
from ldm.config import ConfigError, check, instantiate_from_config
from ldm.diffusion.denoiser import CONDITIONING_KEYS
from ldm.diffusion.objective import NORMS, Objective
from ldm.diffusion.parameterization import PARAMETERIZATIONS
from ldm.diffusion.schedule import BETA_SCHEDULES, PublishedSchedule, RectifiedFlow
from ldm.diffusion.weighting import Elbo
from ldm.models.diffusion import assemble as assemble_module
from ldm.models.diffusion.assemble import DDPMConfig, LatentDiffusionConfig, assemble
from ldm.models.diffusion.ddpm import DDPM, LatentDiffusion
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver
from tests.models.diffusion_models import (
    ATTENDING,
    ON_META,
    batch,
    by_class,
    filled,
    identity,
    labels,
    latent,
    parameters,
    parts,
    refused,
    rescaler,
    unet,
)
from tests.reference_configs import NAMES, published_config

DIFFUSION = [
    name for name in NAMES if published_config(name)["model"]["target"].endswith("LatentDiffusion")
]


def without(params, *keys):
    return {key: value for key, value in params.items() if key not in keys}


# published configurations


def test_there_are_twenty_published_diffusion_models():
    assert len(DIFFUSION) == 20


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_published_configuration_assembles(name):
    config = published_config(name)["model"]
    params = config["params"]
    for holder in (params, params["first_stage_config"]["params"]):
        holder.pop("ckpt_path", None)
    with ON_META:
        model = instantiate_from_config(config, path="model")
        z = torch.empty(1, model.channels, *model.latent_size)
        assert model.decode(z).shape[1] == 3
    taken = {"concat", "crossattn", "vector"} & set(model.model.slots)
    assert {part.slot for part in model.conditioner.parts} == taken
    assert model.monitor == params.get("monitor", "val/loss_simple_ema")
    assert model.schedule.num_timesteps == params["timesteps"]
    assert (model.model_ema is None) == (params.get("use_ema") is False)
    assert model.cond_stage_trainable is params.get("cond_stage_trainable", False)


# two forms of one model


def test_both_forms_give_the_same_model():
    flat = by_class(
        loss_type="l1", parameterization="v", original_elbo_weight=0.01, v_posterior=0.3
    )
    keys = (
        "timesteps", "linear_start", "linear_end",
        "loss_type", "parameterization", "original_elbo_weight", "v_posterior",
    )  # fmt: skip
    target = "ldm.diffusion.objective.Objective"
    elbo = {"target": "ldm.diffusion.weighting.Elbo", "params": {"v_posterior": 0.3}}
    objective = {"parameterization": "v", "norm": "l1", "elbo_weight": 0.01, "elbo": elbo}
    configured = without(flat, *keys) | {
        "schedule_config": {
            "target": "ldm.diffusion.schedule.PublishedSchedule",
            "params": {"timesteps": 20, "linear_start": 0.01, "linear_end": 0.3},
        },
        "objective_config": {"target": target, "params": objective},
        "sampler_config": {"target": "ldm.samplers.ddim.DDIM"},
    }
    given = without(flat, *keys) | {
        "schedule_config": PublishedSchedule(20, linear_start=0.01, linear_end=0.3),
        "objective_config": Objective("v", "l1", elbo_weight=0.01, elbo=Elbo(0.3)),
        "sampler_config": DDIM(),
    }
    losses, samples = [], []
    for params in (flat, configured, given):
        model = filled(LatentDiffusion(**params)).eval()
        examples = batch()
        draws = model.draws(examples)
        terms = model.objective(
            model.denoiser, model.encode(model.get_input(examples)), model.conditioner(examples),
            draws=draws,
        )  # fmt: skip
        losses.append(terms.total)
        samples.append(model.sample([1, 2], {"class": torch.tensor([0, 3])}, steps=2))
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("schedule_config", "timesteps", 20),
        ("schedule_config", "beta_schedule", "cosine"),
        ("objective_config", "loss_type", "l1"),
        ("objective_config", "parameterization", "v"),
        ("objective_config", "v_posterior", 0.1),
    ],
)
def test_both_forms_of_one_thing_are_refused_by_name(component, key, value):
    given = {"schedule_config": RectifiedFlow(), "objective_config": Objective()}[component]
    params = without(parameters(), "timesteps", "linear_start", "linear_end")
    refused(
        f"{component} and {key} describe the same thing; give one",
        params | {component: given, key: value},
    )


def test_components_of_another_family_take_their_place():
    params = without(parameters(), "timesteps", "linear_start", "linear_end") | {
        "schedule_config": {"target": "ldm.diffusion.schedule.RectifiedFlow"},
        "objective_config": {
            "target": "ldm.diffusion.objective.Objective",
            "params": {"parameterization": "flow"},
        },
        "sampler_config": {
            "target": "ldm.samplers.dpm.DPMSolver",
            "params": {"grid": {"target": "ldm.samplers.grid.Uniform"}},
        },
    }
    model = filled(LatentDiffusion(**params)).eval()
    assert isinstance(model.schedule, RectifiedFlow)
    assert isinstance(model.sampler, DPMSolver)
    images = model.sample([0, 1], steps=2)
    assert images.shape == (2, 3, 4, 4)
    assert images.isfinite().all()


# keys


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("timestep", "timesteps"),
        ("use_emma", "use_ema"),
        ("first_stage_conf", "first_stage_config"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(wrong, right):
    refused(f"^{wrong}: no such parameter; did you mean '{right}'", parameters(**{wrong: 1}))


def test_a_model_of_pixels_knows_no_keys_of_latents():
    with ON_META, pytest.raises(ConfigError, match="scale_factor: no such parameter"):
        DDPM(unet_config=unet(), scale_factor=0.2)


@pytest.mark.parametrize("key", ["loss_type", "parameterization", "beta_schedule"])
def test_an_unknown_name_is_found_under_the_key_that_was_written(key):
    model = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": parameters(**{key: "l3"}),
    }
    with pytest.raises(ConfigError, match=rf"^model\.params\.{key}: expected '.*, got 'l3'"):
        check({"model": model})
    with ON_META, pytest.raises(ConfigError, match=rf"^model\.params\.{key}: 'l3'; expected one"):
        instantiate_from_config(model, path="model")


def test_the_names_that_a_configuration_may_give_are_those_that_are_known():
    assert set(get_args(assemble_module.LossType)) == set(NORMS)
    assert set(get_args(assemble_module.Parameterization)) == set(PARAMETERIZATIONS)
    assert set(get_args(assemble_module.BetaSchedule)) == {*BETA_SCHEDULES, "cosine"}
    assert set(get_args(assemble_module.ConditioningKey)) == set(CONDITIONING_KEYS) - {None}


@pytest.mark.parametrize("key", ["use_positional_encodings", "cond_stage_forward"])
def test_what_was_never_released_is_refused_unless_it_is_off(key):
    off = {"use_positional_encodings": False, "cond_stage_forward": None}[key]
    assert parts(**{key: off}).net is not None
    refused(f"{key}: 'on' was never released; leave the key out", parameters(**{key: "on"}))


def test_a_misspelt_parameter_of_a_part_names_its_path():
    wrong = {"target": "ldm.nets.unet.UNetModel", "params": {"chanel_mult": [1]}}
    refused(r"unet_config\.params\.chanel_mult.*channel_mult", parameters(unet_config=wrong))


# where a condition enters


@pytest.mark.parametrize("marker", [{"cond_stage_config": "__is_unconditional__"}, {}])
def test_a_conditioning_key_without_an_encoder_is_refused(marker):
    params = without(parameters(conditioning_key="crossattn"), "cond_stage_config") | marker
    refused("conditioning_key: 'crossattn', but there is no encoder in cond_stage_config", params)
    assert parts(conditioning_key=None).conditioning_key is None


def test_an_encoder_fills_its_own_slot_unless_the_configuration_says_otherwise():
    cond = {"cond_stage_config": labels(), "unet_config": unet(**ATTENDING)}
    assert parts(**cond).conditioning_key == "crossattn"
    assert parts(**cond, concat_mode=False).conditioning_key == "crossattn"
    plain = {"cond_stage_config": {"target": "torch.nn.Identity"}, "cond_stage_key": "other"}
    (part,) = parts(**plain, unet_config=unet(in_channels=5)).conditioner.parts
    assert (part.slot, part.key) == ("concat", "other")


def test_several_encoders_are_a_list():
    both = parts(
        cond_stage_config=[labels(), rescaler(2)],
        unet_config=unet(in_channels=5, **ATTENDING),
    )
    assert both.conditioning_key == "hybrid"
    assert [part.key for part in both.conditioner.parts] == ["class", "map"]
    assert isinstance(both.cond_stage[1], SpatialRescaler)


def test_the_published_pair_fills_both_slots():
    pair = {
        "target": "ldm.conditioning.hybrid.HybridConditioner",
        "params": {"c_concat_config": rescaler(2), "c_crossattn_config": labels()},
    }
    both = parts(
        cond_stage_config=pair,
        conditioning_key="hybrid",
        unet_config=unet(in_channels=5, **ATTENDING),
    )
    assert both.conditioning_key == "hybrid"
    assert {part.slot for part in both.conditioner.parts} == {"concat", "crossattn"}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("hybrid", "'hybrid', which needs several encoders"),
        ("cross_attn", "'cross_attn', expected one of .*; did you mean 'crossattn'"),
    ],
)
def test_a_conditioning_key_that_one_encoder_cannot_fill_is_refused(key, message):
    refused(f"conditioning_key: {message}", by_class(conditioning_key=key))


def test_a_conditioning_key_that_contradicts_its_encoders_is_refused():
    params = by_class(
        cond_stage_config=[labels(), rescaler(2)], unet_config=unet(in_channels=5, **ATTENDING)
    )
    refused("conditioning_key: 'crossattn', but cond_stage_config fills: concat, crossattn", params)


def test_an_encoder_in_a_list_must_say_what_it_reads():
    nameless = {"target": "ldm.conditioning.spatial.SpatialRescaler"}
    refused("SpatialRescaler needs a `key`", parameters(cond_stage_config=[nameless, labels()]))
    plain = {"target": "torch.nn.Identity"}
    refused("Identity is one of several encoders", parameters(cond_stage_config=[plain, labels()]))


def test_the_first_stage_can_be_the_conditioner():
    shared = parts(cond_stage_config="__is_first_stage__", unet_config=unet(in_channels=6))
    assert shared.cond_stage is None
    assert shared.conditioning_key == "concat"
    with ON_META, pytest.raises(ConfigError, match="__is_first_stage__ needs a first stage"):
        assemble(
            without(parameters(cond_stage_config="__is_first_stage__"), "first_stage_config"),
            LatentDiffusionConfig,
        )


def test_a_model_of_pixels_has_no_first_stage():
    with ON_META:
        made = assemble({"unet_config": unet(), "timesteps": 20}, DDPMConfig)
    assert made.first_stage is None
    assert made.conditioner.parts == ()


# the noised condition


def test_a_shortened_schedule_noises_the_condition_from_its_own_seed():
    params = parameters(
        cond_stage_config={"target": "torch.nn.Identity"},
        unet_config=unet(in_channels=6),
        num_timesteps_cond=5,
    )
    model, clean = latent(params), latent(without(params, "num_timesteps_cond"))
    assert model.state_dict().keys() == clean.state_dict().keys()
    examples = batch()
    draws, cond = model.draws(examples), model.conditioner(examples)
    told = model.told(model.denoiser, draws)
    x, t = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 4, 19])
    with torch.no_grad():
        got = told.output(x, t, cond)
        eps = draws.normal((3, 4, 4), "condition concat")
        # 5 levels over 0..19, then the last one
        at = model.schedule.noised(cond.concat, eps, torch.tensor([0, 5, 19, 19]))
        want = clean.denoiser.output(x, t, type(cond)(concat=at))
    torch.testing.assert_close(got, want)
    whole = model.sample([3, 4], {"image": examples["image"][:2]}, steps=2, scale=2.0)
    alone = model.sample([4], {"image": examples["image"][1:2]}, steps=2, scale=2.0)
    torch.testing.assert_close(whole[1:], alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(whole, clean.sample([3, 4], {"image": examples["image"][:2]}, steps=2))


@pytest.mark.parametrize("levels", [0, 21])
def test_a_shortened_schedule_of_no_or_too_many_levels_is_refused(levels):
    refused(
        f"num_timesteps_cond: {levels}; expected 1 to timesteps, 20",
        parameters(num_timesteps_cond=levels),
    )


def test_a_shortened_schedule_needs_integer_times():
    params = without(parameters(), "timesteps", "linear_start", "linear_end")
    params |= {"schedule_config": RectifiedFlow(), "num_timesteps_cond": 5}
    refused("num_timesteps_cond: needs a schedule of integer times", params)


def test_a_learned_log_variance_needs_integer_times():
    params = without(parameters(), "timesteps", "linear_start", "linear_end")
    params |= {"schedule_config": RectifiedFlow(), "learn_logvar": True}
    params["objective_config"] = Objective("flow")
    with pytest.raises(
        ConfigError, match="learn_logvar, logvar_init: need a schedule of integer times"
    ):
        LatentDiffusion(**params)


def test_a_scale_is_given_or_measured_but_not_both():
    with pytest.raises(ConfigError, match=r"scale_factor: 0\.0; expected more than 0"):
        LatentDiffusion(**parameters(scale_factor=0))
    with pytest.raises(ConfigError, match=r"scale_factor: 0\.5, but scale_by_std measures it"):
        LatentDiffusion(**parameters(scale_factor=0.5, scale_by_std=True))


def test_the_identity_has_as_many_channels_as_it_is_told():
    first_stage = identity() | {"params": {"latent_channels": 4}}
    refused("out_channels: 3, but IdentityFirstStage", parameters(first_stage_config=first_stage))
