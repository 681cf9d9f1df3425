"""Trajectories of the reference samplers: every state, prediction and time that was recorded."""

import numpy as np
import pytest
import torch

from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.correction import Clipped, Corrected, Quantized
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.samplers.dpm import DPMSolver
from ldm.samplers.grid import Explicit, PublishedQuadratic, PublishedUniform
from ldm.samplers.known_region import KnownRegion, KnownRegionAfterStep
from ldm.samplers.plms import PLMS
from ldm.types import Conditioning
from tests.reference import Case, cases, rule_weight
from tests.reference_models import RecordedDraws, ReferenceModel, centre_mask

GRIDS = {"uniform": PublishedUniform(), "quad": PublishedQuadratic()}
SUB_SEQUENCE = [n for n in cases("e_samplers") if n.startswith(("ddim_", "plms_"))]
ANCESTRAL = [n for n in cases("e_samplers") if n.startswith(("ddpm_", "ldm_"))]
OTHERS = ["dpmsolver_S10_cfg5", "sd_img2img_S20_t12"]


class Recorder:
    """A callback that keeps what the release logs: every n-th step, counted from the end."""

    def __init__(self, every, then=None):
        self.every, self.then = every, then
        self.states, self.predictions = [], []

    def __call__(self, step, x, prediction):
        if self.then is not None:
            x = self.then(step, x, prediction)
        left = step.count - 1 - step.index
        if left % self.every == 0 or not self.states:
            self.states.append(x)
            self.predictions.append(prediction.x0)
        return x


def condition(case, name="context"):
    """The condition of a case, None without one."""
    return Conditioning(crossattn=case.input(name)) if name in case.spec["inputs"] else None


def guided(case, model):
    """The denoiser under the guidance that a case asks for."""
    scale = case.spec["sampler"]["unconditional_guidance_scale"]
    null = condition(case, "uncond_context")
    return ClassifierFree(model.denoiser, scale, null) if null else model.denoiser


def nearest_code(codebook):
    """Each latent vector replaced by its nearest row of the codebook (K, C)."""

    def quantize(x):
        vectors = x.permute(0, 2, 3, 1)
        index = torch.cdist(vectors.flatten(0, 2), codebook).argmin(dim=1)
        return codebook[index].reshape(vectors.shape).permute(0, 3, 1, 2)

    return quantize


def sub_sequence_denoiser(case, model):
    """Guidance, then the corrections and the known region of a case."""
    settings, denoiser = case.spec["sampler"], guided(case, model)
    if settings["score_corrector"]:
        assert settings["score_corrector"] == "eps -> 0.9*eps + 0.01*x"
        denoiser = Corrected(denoiser, model.schedule, lambda eps, x, t, cond: 0.9 * eps + 0.01 * x)
    if settings["quantize_x0"]:
        first_stage = case.params["first_stage_config"]["params"]
        shape = (first_stage["n_embed"], first_stage["embed_dim"])
        codebook = rule_weight("first_stage_model.quantize.embedding.weight", shape)
        denoiser = Quantized(denoiser, nearest_code(torch.from_numpy(codebook)))
    if settings["mask"]:
        mask = centre_mask(case.spec["inputs"]["mask"]["shape"])
        draws = RecordedDraws(case, known="mask_noise")
        denoiser = KnownRegion(denoiser, model.schedule, case.input("x0"), mask, draws)
    return denoiser


@pytest.mark.parametrize("name", SUB_SEQUENCE)
def test_sub_sequence_sampler_matches_the_reference(name):
    case = Case("e_samplers", name)
    settings, model = case.spec["sampler"], ReferenceModel(case)
    grid = GRIDS[settings["discretization"]]
    if settings["kind"] == "plms":
        sampler = PLMS(grid=grid)
    else:
        sampler = DDIM(grid=grid, eta=settings["eta"], temperature=settings["temperature"])
    times = grid(model.schedule, settings["S"])[-2::-1]
    kept = len(times)
    if settings["timesteps_argument"]:
        # the release runs one step less than it was asked for
        kept = settings["timesteps_argument"] - 1
    recorder, x_T = Recorder(settings["log_every_t"]), case.input("x_T")
    samples = sampler.sample(
        sub_sequence_denoiser(case, model), x_T, schedule=model.schedule, steps=settings["S"],
        cond=condition(case), draws=RecordedDraws(case, step="step_noise"), callback=recorder,
        start=len(times) - kept,
    )  # fmt: skip
    case.check("samples", samples)
    case.check("x_inter", torch.stack([x_T, *recorder.states]))
    case.check("pred_x0", torch.stack([x_T, *recorder.predictions]))
    case.check("timesteps", times)
    assert set(case.want) == {"samples", "x_inter", "pred_x0", "timesteps"}


@pytest.mark.parametrize("name", ANCESTRAL)
def test_ancestral_sampler_matches_the_reference(name):
    case = Case("e_samplers", name)
    model, settings = ReferenceModel(case), case.spec.get("sampler", {})
    pixel_space = case.spec["constructor"]["target"].endswith(".DDPM")
    denoiser = Clipped(model.denoiser, model.schedule) if pixel_space else model.denoiser
    every = case.params["log_every_t"] if pixel_space else settings["log_every_t"]
    held = None
    if settings.get("mask"):
        mask = centre_mask(case.spec["inputs"]["mask"]["shape"])
        draws = RecordedDraws(case, known="mask_noise")
        held = KnownRegionAfterStep(model.schedule, case.input("x0"), mask, draws)
    recorder = Recorder(every, held)
    x_T = case.input("draw_0" if pixel_space else "x_T")
    draws = RecordedDraws(case, step="draw", first=1) if pixel_space else RecordedDraws(
        case, step="step_noise"
    )  # fmt: skip
    samples = Ancestral().sample(
        denoiser, x_T, schedule=model.schedule, steps=case.params["timesteps"],
        cond=condition(case), draws=draws, callback=recorder,
    )  # fmt: skip
    case.check("samples", samples)
    progressive = settings.get("kind") == "ancestral prog"
    kept = recorder.predictions if progressive else [x_T, *recorder.states]
    case.check("intermediates", torch.stack(kept))
    assert set(case.want) == {"samples", "intermediates"}


def test_dpm_solver_matches_the_reference():
    case = Case("e_samplers", "dpmsolver_S10_cfg5")
    model, steps = ReferenceModel(case), case.spec["sampler"]["S"]
    grid = Explicit(np.linspace(case.params["timesteps"] - 1, 0, steps + 1))
    samples = DPMSolver(grid=grid).sample(
        guided(case, model), case.input("x_T"),
        schedule=model.schedule, steps=steps, cond=condition(case),
    )  # fmt: skip
    case.check("samples", samples)
    assert set(case.want) == {"samples"}


def test_image_to_image_matches_the_reference():
    case = Case("e_samplers", "sd_img2img_S20_t12")
    model, settings = ReferenceModel(case), case.spec["sampler"]
    times = PublishedUniform()(model.schedule, settings["S"])
    start = settings["S"] - settings["t_enc"]
    # the release noises to one node more than it starts from
    noised_to = torch.full((2,), int(times[start - 1]))
    encoded = model.schedule.noised(case.input("x0"), case.input("noise"), noised_to)
    case.check("encoded", encoded)
    decoded = DDIM(grid=PublishedUniform()).sample(
        guided(case, model), encoded,
        schedule=model.schedule, steps=settings["S"], cond=condition(case), start=start,
    )  # fmt: skip
    case.check("decoded", decoded)
    assert set(case.want) == {"encoded", "decoded"}


def test_every_case_is_tested_here():
    assert sorted([*SUB_SEQUENCE, *ANCESTRAL, *OTHERS]) == cases("e_samplers")
