"""Losses, gradients and reverse steps of the reference models."""

import pytest
import torch

from ldm.diffusion.objective import Objective
from ldm.diffusion.parameterization import to_prediction
from ldm.diffusion.posterior import prior_bits_per_dim, published_buffers, q_posterior
from ldm.diffusion.weighting import Elbo, PublishedX0Elbo
from ldm.guidance.correction import Clipped
from ldm.tensor import expand_to
from ldm.types import Conditioning
from tests.reference import Case, cases
from tests.reference_models import ReferenceModel


class Reverse:
    """What a case calls its forward and reverse process, in our terms."""

    def __init__(self, case):
        self.case, self.model = case, ReferenceModel(case)
        self.schedule = self.model.schedule
        self.x0, self.xt, self.noise = (case.input(name) for name in ("x0", "xt", "noise"))
        self.t = case.input("t")
        has_context = "context" in case.spec["inputs"]
        self.cond = Conditioning(crossattn=case.input("context")) if has_context else None

    def step(self, clip):
        """Predicted x0, and mean and variance of one ancestral step from xt."""
        denoiser = self.model.denoiser
        if clip:
            denoiser = Clipped(denoiser, self.schedule)
        x0 = denoiser(self.xt, self.t, self.cond).x0
        return x0, *q_posterior(self.schedule, self.xt, x0, t=self.t, s=self.t - 1)

    def sampled(self, clip, temperature=1.0):
        """State after one step with the case's noise."""
        _, mean, variance = self.step(clip)
        noise = self.case.input("sample_noise")
        return mean + temperature * expand_to(variance.sqrt(), mean) * noise

    def check_loss(self):
        """Loss, its log entries and the gradient of every parameter."""
        case, params = self.case, self.case.params
        objective = Objective(
            self.model.parameterization,
            params.get("loss_type", "l2"),
            simple_weight=params.get("l_simple_weight", 1.0),
            elbo_weight=params.get("original_elbo_weight", 0.0),
            elbo=PublishedX0Elbo() if self.model.parameterization == "x0" else Elbo(),
        )
        logvar = self.model.logvar
        terms = objective.at(
            self.model.denoiser, self.x0, self.cond, t=self.t, eps=self.noise, logvar=logvar
        )
        loss = terms.total.mean()
        case.check("loss", loss)
        case.check("log:val/loss", loss)
        for name, part in terms.parts.items():
            case.check(f"log:val/{name}", part.mean())
        loss.backward()
        parameters = dict(self.model.named_parameters())
        norms = [parameters[name].grad.double().norm() for name in case.spec["parameter_order"]]
        case.check("grad_norms", torch.stack(norms), "gradients")
        return {"loss", "log:val/loss", "grad_norms"} | {f"log:val/{n}" for n in terms.parts}


@pytest.mark.parametrize("name", cases("d_ddpm_math"))
def test_pixel_space_process_matches_the_reference(name):
    case = Case("d_ddpm_math", name)
    reverse = Reverse(case)
    schedule, t, xt = reverse.schedule, reverse.t, reverse.xt
    checked = reverse.check_loss()

    def check(output, got):
        case.check(output, got.reshape(-1, 1, 1, 1) if got.ndim == 1 else got)
        checked.add(output)

    with torch.no_grad():
        alpha, sigma = schedule.coefficients(t)
        check("q_sample", schedule.noised(reverse.x0, reverse.noise, t))
        check("q_mean", schedule.noised(reverse.x0, torch.zeros_like(xt), t))
        check("q_variance", sigma**2)
        check("q_log_variance", 2 * sigma.log())
        from_noise = to_prediction("eps", reverse.noise, xt, alpha, sigma)
        check("predict_start_from_noise", from_noise.x0)
        mean, variance = q_posterior(schedule, xt, reverse.x0, t=t, s=t - 1)
        check("q_posterior_mean", mean)
        check("q_posterior_variance", variance)
        log_variance = published_buffers(schedule)["posterior_log_variance_clipped"][t]
        check("q_posterior_log_variance_clipped", log_variance)
        check("model_out", reverse.model.denoiser.output(xt, t, None))
        for clip in (0, 1):
            _, mean, variance = reverse.step(clip)
            check(f"p_mean_clip{clip}", mean)
            check(f"p_variance_clip{clip}", variance)
            check(f"p_log_variance_clip{clip}", log_variance)
        check("p_sample", reverse.sampled(clip=True))
    assert checked == set(case.want)


@pytest.mark.parametrize("name", cases("d_ldm_math"))
def test_latent_process_matches_the_reference(name):
    case = Case("d_ldm_math", name)
    reverse = Reverse(case)
    schedule, t = reverse.schedule, reverse.t
    checked = reverse.check_loss()
    if "grad_logvar" in case.want:
        case.check("grad_logvar", reverse.model.logvar.grad, "gradients")
        case.check("log:logvar", reverse.model.logvar.mean())
        checked |= {"grad_logvar", "log:logvar"}

    def check(output, got):
        case.check(output, got)
        checked.add(output)

    with torch.no_grad():
        for clip in (0, 1):
            x0, mean, _ = reverse.step(clip)
            check(f"p_mean_clip{clip}", mean)
            check(f"x_recon_clip{clip}", x0)
        check("p_sample_temp07", reverse.sampled(clip=False, temperature=0.7))
        check("p_sample_x0", reverse.step(clip=False)[0])
        check("prior_bpd", prior_bits_per_dim(schedule, reverse.x0))
        levels = schedule.coefficients(t)
        check("eps_from_xstart", to_prediction("x0", reverse.x0, reverse.xt, *levels).eps)
    assert checked == set(case.want)
