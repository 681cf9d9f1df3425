"""The published sampler interface, `DDIMSampler(model).sample(...)`, for notebooks that call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.draws import GeneratorDraws
from ldm.guidance.classifier_free import ClassifierFree
from ldm.models.diffusion.published import Published, to_condition
from ldm.samplers.base import Sampler, Step
from ldm.samplers.ddim import DDIM
from ldm.samplers.grid import PublishedUniform
from ldm.samplers.known_region import KnownRegion
from ldm.types import Prediction

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import DDPM

__all__ = ["DDIMSampler"]


# published: say what is printed, or belong to what is switched off
UNUSED = ("verbose", "normals_sequence", "corrector_kwargs")
NOT_OFFERED = ("img_callback", "quantize_x0", "score_corrector", "noise_dropout")


class DDIMSampler:
    """DDIM on the published grid of times, with the published arguments and results.

    New code calls `model.sample`, whose grids make exactly as many steps as asked.
    """

    def __init__(self, model: DDPM, **_published: Any) -> None:
        self.model = model

    def sampler(self, eta: float, temperature: float) -> Sampler:
        """The step rule and its grid."""
        return DDIM(grid=PublishedUniform(), eta=eta, temperature=temperature)

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: tuple[int, int, int],
        conditioning: Published = None,
        callback: Callable[[int], Any] | None = None,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Published = None,
        **published: Any,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Latents (B, C, h, w), and the states and estimates of x0 on the way to them.

        mask: 1 keeps `x0`.  published: arguments that change nothing (`UNUSED`), and those that
        are not offered, at the values that switch them off.
        Randomness comes from torch's global generator, as published.

        Raises ValueError for S that the published grid cannot make (S = 3 of T = 1000), and for
        what is not offered; TypeError for an argument that never was.
        """
        _refuse(published)
        model, key = self.model, self.model.model.conditioning_key
        device = model.device
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        draws = GeneratorDraws(generator, batch_size)
        x = draws.normal(shape, "x_T").to(device) if x_T is None else x_T.to(device)
        denoiser: Denoiser = model.denoiser
        null = to_condition(unconditional_conditioning, key)
        if null is not None and unconditional_guidance_scale != 1:
            denoiser = ClassifierFree(denoiser, unconditional_guidance_scale, null)
        if mask is not None and x0 is not None:
            denoiser = KnownRegion(denoiser, model.schedule, x0, mask, draws)
        record: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}

        def keep(step: Step, state: Tensor, prediction: Prediction) -> None:
            if callback is not None:
                callback(step.index)
            if (step.count - step.index - 1) % log_every_t == 0 or step.index == 0:
                record["x_inter"].append(state)
                record["pred_x0"].append(prediction.x0)

        samples = self.sampler(eta, temperature).sample(
            denoiser,
            x,
            schedule=model.schedule,
            steps=S,
            cond=to_condition(conditioning, key),
            draws=draws,
            callback=keep,
        )
        return samples, record


def _refuse(published: Mapping[str, Any]) -> None:
    """Raise for an argument that would be passed over in silence."""
    for name, value in published.items():
        if name not in (*UNUSED, *NOT_OFFERED):
            raise TypeError(f"sample() got an unexpected keyword argument {name!r}")
        if name in NOT_OFFERED and value:
            raise ValueError(f"{name}={value!r} is not offered; a denoiser around the model's can")
