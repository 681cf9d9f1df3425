"""The published interface of the samplers, `DDIMSampler(model).sample(S=..., ...)`."""

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from tests.models.diffusion_models import by_class, latent, published
from tests.reference import Case, cases
from tests.reference_models import centre_mask

SAMPLERS = {"ddim": DDIMSampler, "plms": PLMSSampler}


def is_deterministic(name):
    settings = Case("e_samplers", name).spec.get("sampler", {})
    return (
        name.startswith(tuple(SAMPLERS))
        and settings["discretization"] == "uniform"
        and not settings["eta"]
        and not any(settings[key] for key in ("mask", "quantize_x0", "score_corrector"))
        and not settings["timesteps_argument"]
    )


DETERMINISTIC = [name for name in cases("e_samplers") if is_deterministic(name)]


def test_there_are_enough_deterministic_cases():
    assert len(DETERMINISTIC) >= 5
    assert {name[:4] for name in DETERMINISTIC} == set(SAMPLERS)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_published_calls_give_the_reference_trajectories(name):
    case = Case("e_samplers", name)
    settings, x_T = case.spec["sampler"], case.input("x_T")
    conditions = {
        keyword: case.input(key)
        for keyword, key in (
            ("conditioning", "context"), ("unconditional_conditioning", "uncond_context"),
        )
        if key in case.spec["inputs"]
    }  # fmt: skip
    samples, record = SAMPLERS[name[:4]](published(case)).sample(
        S=settings["S"],
        batch_size=len(x_T),
        shape=tuple(x_T.shape[1:]),
        x_T=x_T,
        eta=0.0,
        verbose=False,
        log_every_t=settings["log_every_t"],
        unconditional_guidance_scale=settings["unconditional_guidance_scale"],
        **conditions,
    )
    case.check("samples", samples)
    case.check("x_inter", torch.stack(record["x_inter"]))
    case.check("pred_x0", torch.stack(record["pred_x0"]))


def test_a_published_call_draws_from_torchs_own_generator():
    sampler, arguments = DDIMSampler(latent()), {"S": 5, "batch_size": 2, "shape": (3, 4, 4)}
    torch.manual_seed(1)
    first, _ = sampler.sample(**arguments, eta=1.0)
    second, _ = sampler.sample(**arguments, eta=1.0)
    torch.manual_seed(1)
    again, _ = sampler.sample(**arguments, eta=1.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_a_mask_of_ones_holds_what_is_known():
    sampler, known = DDIMSampler(latent()), torch.randn(2, 3, 4, 4)
    mask = centre_mask((2, 1, 4, 4))
    steps = []
    samples, _ = sampler.sample(5, 2, (3, 4, 4), mask=mask, x0=known, callback=steps.append)
    # the state at the last time is blended, and only then the last step is made
    outside = (samples - known)[mask.expand_as(known) == 1].abs().mean()
    inside = (samples - known)[mask.expand_as(known) == 0].abs().mean()
    assert outside < 0.5 * inside
    assert steps == [0, 1, 2, 3, 4]


def test_the_condition_may_be_the_learned_one():
    model = latent(by_class())
    x_T, arguments = torch.randn(2, 3, 4, 4), {"S": 5, "batch_size": 2, "shape": (3, 4, 4)}
    c = model.get_learned_conditioning({"class": torch.tensor([0, 2])})
    got, _ = DDIMSampler(model).sample(**arguments, conditioning=c, x_T=x_T)
    again, _ = DDIMSampler(model).sample(**arguments, conditioning={"c_crossattn": [c]}, x_T=x_T)
    assert torch.equal(got, again)
    assert torch.equal(model.get_learned_conditioning(torch.tensor([0, 2])), c)


def test_plms_has_no_eta():
    with pytest.raises(ValueError, match="PLMS is deterministic"):
        PLMSSampler(latent()).sample(5, 1, (3, 4, 4), eta=0.5)


def test_no_argument_is_passed_over_in_silence():
    sampler, arguments = DDIMSampler(latent()), (5, 1, (3, 4, 4))
    sampler.sample(*arguments, verbose=False, quantize_x0=False, noise_dropout=0.0)
    with pytest.raises(ValueError, match="quantize_x0=True is not offered"):
        sampler.sample(*arguments, quantize_x0=True)
    with pytest.raises(TypeError, match="'unconditional_guidance_scal'"):
        sampler.sample(*arguments, unconditional_guidance_scal=3.0)
