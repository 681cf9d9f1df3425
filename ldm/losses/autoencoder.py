"""Objectives of the first stage: what an autoencoder and its discriminator minimise.

A loss is given in pieces, so that a training step can take each gradient where it is cheapest:
`reconstruction` (differentiated at the image), `regularization` (of the latent), `judge` with
`deception` and `discrimination` (the adversarial game), and `balance` between them. `objective`
puts the generator's pieces together as published.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ldm.losses.game import AdversarialGame, GameOptions
from ldm.losses.perceptual import LPIPS, LpipsChannels
from ldm.losses.reconstruction import (
    ReconstructionError,
    check_pixel_loss,
    codebook_use,
    laplace_nll,
    reconstruction_error,
)
from ldm.nets.discriminator import NLayerDiscriminator
from ldm.ranges import NonNegative, Positive, Weight
from ldm.types import LossTerms

__all__ = ["DummyLoss", "FirstStageLoss", "LPIPSWithDiscriminator", "VQLPIPSWithDiscriminator"]


class DummyLoss(nn.Module):
    """No loss: for a first stage that is used, not trained."""


class FirstStageLoss(AdversarialGame, ABC):
    """Pixels, LPIPS and a patch discriminator; subclasses say likelihood and regulariser.

    disc_start, disc_factor, disc_weight, disc_loss and other rules: see `AdversarialGame`.
    disc_num_layers, disc_ndf: depth and width of the discriminator.  disc_conditional: it also sees
    a condition, joined on channels and counted in disc_in_channels.  perceptual_weight: 0 leaves
    LPIPS out, and its network is then not built.  lpips_weights, lpips_channels: see `LPIPS`; the
    latter is held against disc_in_channels, which are the image's unless there is a condition.
    pixel_loss: `l1` or `l2`.  pixelloss_weight: accepted, unused.
    """

    def __init__(
        self,
        *,
        disc_start: NonNegative,
        disc_num_layers: Positive = 3,
        disc_in_channels: Positive = 3,
        disc_ndf: Positive = 64,
        disc_factor: Weight = 1.0,
        disc_weight: Weight = 1.0,
        disc_loss: str = "hinge",
        disc_conditional: bool = False,
        use_actnorm: bool = False,
        perceptual_weight: Weight = 1.0,
        lpips_weights: str | Path | None = None,
        lpips_channels: LpipsChannels = None,
        pixel_loss: str = "l1",
        pixelloss_weight: Weight = 1.0,
        **rules: Unpack[GameOptions],
    ) -> None:
        super().__init__(
            disc_start=disc_start,
            disc_factor=disc_factor,
            disc_weight=disc_weight,
            disc_loss=disc_loss,
            disc_conditional=disc_conditional,
            **rules,
        )
        self.pixel_loss = check_pixel_loss(pixel_loss)
        self.perceptual_weight = perceptual_weight
        self.perceptual_loss: LPIPS | None = None
        if perceptual_weight:
            self.perceptual_loss = LPIPS(lpips_weights, lpips_channels)
            if not disc_conditional:
                _check_compared(self.perceptual_loss, disc_in_channels)
        self._disc_in_channels = disc_in_channels
        self.discriminator = NLayerDiscriminator(
            input_nc=disc_in_channels,
            n_layers=disc_num_layers,
            use_actnorm=use_actnorm,
            ndf=disc_ndf,
            use_spectral_norm=self.rules["disc_spectral_norm"],
        )

    @abstractmethod
    def reconstruction(self, inputs: Tensor, reconstructions: Tensor) -> LossTerms:
        """How unlikely the images (B, C, H, W) are under their reconstructions."""

    @abstractmethod
    def regularization(self, cost: Tensor, codes: Tensor | None = None) -> LossTerms:
        """What the latent costs, weighted, in the units of `reconstruction`.

        cost: (B,), KL(q(z|x) || N(0, I)) in nats; or 0-d, a quantizer's loss.
        codes: integers, which entries of a codebook the batch uses.
        """

    def generator_parameters(self) -> list[nn.Parameter]:
        """Parameters of the loss that the generator's optimizer moves: none by default."""
        return []

    def objective(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        cost: Tensor,
        *,
        step: int,
        codes: Tensor | None = None,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        weights: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> LossTerms:
        """The generator's whole loss, in one graph, as published.

        cost, codes: see `regularization`.  numbers: see `augmentation_numbers`.
        last_layer: the decoder's last weight; without it, as in validation, there is no gradient
        to balance and the game counts with weight 0.
        weights: importance of each example, B numbers; it enters the loss, not the balance.
        """
        terms = self.reconstruction(inputs, reconstructions)
        regularization = self.regularization(cost, codes)
        deception = self.deception(self.judge(reconstructions, cond, numbers))
        balance = self._measured_balance(terms.total, deception, last_layer)
        nll = terms.total if weights is None else terms.total * weights.flatten()
        factor = self.generator_factor(step)
        total = nll + regularization.total + balance * factor * deception
        game = {
            "d_weight": balance.expand(len(total)),
            "d_weight_nonfinite": self.num_unbalanced.expand(len(total)),
            "disc_factor": torch.full_like(total, factor),
            "g_loss": deception,
        }
        return LossTerms(total, terms.parts | regularization.parts | _detached(game))

    def require_weights(self) -> None:
        """Raise ValueError when the perceptual network has no weights to train with."""
        if self.perceptual_loss is not None:
            self.perceptual_loss.require_weights()

    def require_channels(self, count: int) -> None:
        """Raise ValueError when images of so many channels cannot be judged or compared."""
        seen = self._disc_in_channels
        if count > seen or (count < seen and not self.disc_conditional):
            raise ValueError(f"lossconfig.params.disc_in_channels: {seen}, expected {count}")
        if self.perceptual_loss is not None:
            self.perceptual_loss.require_channels(count)

    @property
    def smallest_side(self) -> int:
        """Pixels that the perceptual network and the discriminator need of an image's sides."""
        needs = [1]
        if self.perceptual_loss is not None:
            needs.append(LPIPS.smallest_side)
        if self.disc_factor:
            needs.append(self.discriminator.smallest_side)
        return max(needs)

    def _error(self, inputs: Tensor, reconstructions: Tensor) -> ReconstructionError:
        return reconstruction_error(
            inputs,
            reconstructions,
            pixel_loss=self.pixel_loss,
            perceptual_loss=self.perceptual_loss,
            perceptual_weight=self.perceptual_weight,
        )

    def _measured_balance(
        self, nll: Tensor, deception: Tensor, last_layer: Tensor | None
    ) -> Tensor:
        if last_layer is None or not self.disc_factor:
            return nll.new_zeros(())
        if not self.is_adaptive:
            return self.fixed_balance(deception)
        gradients = [
            torch.autograd.grad(loss.mean(), last_layer, retain_graph=True)[0]
            for loss in (nll, deception)
        ]
        return self.balance(*gradients)


class LPIPSWithDiscriminator(FirstStageLoss):
    """Objective of the KL autoencoder.

    The likelihood is a sum over all numbers of an image (nats, up to a constant), so `kl_weight`
    (published: 1e-6) is the weight of one nat of KL(q(z|x) || N(0, I)) against it.
    logvar_init: log-scale of the likelihood, one number for all.  learn_logvar: the release
    declared it a parameter and put it in no optimizer, so it never moved; true trains it.
    Other arguments: see `FirstStageLoss`.
    """

    def __init__(
        self,
        disc_start: NonNegative,
        logvar_init: float = 0.0,
        kl_weight: Weight = 1.0,
        *,
        learn_logvar: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(disc_start=disc_start, **common)
        self.kl_weight = kl_weight
        self.learn_logvar = learn_logvar
        self.logvar = nn.Parameter(torch.full((), float(logvar_init)))

    def reconstruction(self, inputs: Tensor, reconstructions: Tensor) -> LossTerms:
        """Negative log-likelihood in nats, summed over an image."""
        error = self._error(inputs, reconstructions)
        nll = laplace_nll(error.mean, self.logvar, inputs[0].numel())
        parts = {"rec_loss": error.mean, "nll_loss": nll, "logvar": self.logvar.expand(len(nll))}
        if self.perceptual_loss is not None:
            parts["p_loss"] = error.perceptual
        return LossTerms(nll, _detached(parts))

    def generator_parameters(self) -> list[nn.Parameter]:
        """The log-variance, if it is learned."""
        return [self.logvar] if self.learn_logvar else []

    def regularization(self, cost: Tensor, codes: Tensor | None = None) -> LossTerms:
        """Weighted KL(q(z|x) || N(0, I)); the part `kl_loss` is in nats, unweighted."""
        return LossTerms(self.kl_weight * cost, {"kl_loss": cost.detach()})


class VQLPIPSWithDiscriminator(FirstStageLoss):
    """Objective of the VQ autoencoder: means over an image, and the quantizer's own loss.

    codebook_weight: multiplies the quantizer's loss.  n_classes: number of codes, to log how many
    are used.  perceptual_loss: `lpips` is the only one.  Other arguments: see `FirstStageLoss`.
    """

    def __init__(
        self,
        disc_start: NonNegative,
        codebook_weight: Weight = 1.0,
        *,
        n_classes: Positive | None = None,
        perceptual_loss: str = "lpips",
        **common: Any,
    ) -> None:
        if perceptual_loss != "lpips":
            raise ValueError(f"perceptual_loss={perceptual_loss!r}: only 'lpips' is available")
        super().__init__(disc_start=disc_start, **common)
        self.codebook_weight = codebook_weight
        self.n_classes = n_classes

    def reconstruction(self, inputs: Tensor, reconstructions: Tensor) -> LossTerms:
        """Mean error per number of an image."""
        error = self._error(inputs, reconstructions)
        parts = {"rec_loss": error.mean, "nll_loss": error.mean, "p_loss": error.perceptual}
        return LossTerms(error.mean, _detached(parts))

    def regularization(self, cost: Tensor, codes: Tensor | None = None) -> LossTerms:
        """Weighted loss of the quantizer, a mean over the batch: the terms are (1,)."""
        loss = cost.reshape(1)
        terms = LossTerms(self.codebook_weight * loss, {"quant_loss": loss.detach()})
        if codes is None or self.n_classes is None:
            return terms
        perplexity, used = codebook_use(codes, self.n_classes)
        use = {"perplexity": perplexity.reshape(1), "cluster_usage": used.reshape(1).float()}
        return replace(terms, parts=terms.parts | use)


def _check_compared(perceptual_loss: LPIPS, disc_in_channels: int) -> None:
    try:
        perceptual_loss.require_channels(disc_in_channels)
    except ValueError as error:
        raise ValueError(f"disc_in_channels={disc_in_channels}: {error}") from error


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items()}
