"""The game between a first stage and its discriminator, with its published and later rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ldm.diffusion.draws import Draws
from ldm.losses.adversarial import (
    adopt_weight,
    bounded_weight,
    deception_loss,
    discriminator_loss,
    gradient_ratio,
)
from ldm.losses.augmentation import DifferentiableAugmentation
from ldm.losses.discipline import LeCam, r1_penalty
from ldm.nets.discriminator import NLayerDiscriminator
from ldm.ranges import NonNegative, Positive, Weight
from ldm.tensor import mean_flat, sent_to
from ldm.types import LossTerms

__all__ = ["AdversarialGame", "GameOptions"]


class GameOptions(TypedDict, total=False):
    """Rules of the game that are not the published ones, each with its default."""

    disc_warmup: NonNegative  # steps from disc_start on in which only the discriminator learns; 0
    disc_spectral_norm: bool  # spectral norm in place of the discriminator's batch norm; false
    disc_augment: Sequence[Literal["color", "translation", "cutout"]]  # of what it sees; none
    r1_weight: Weight  # gamma of the gradient penalty gamma/2 |grad D(x)|^2; 0 leaves it out
    r1_every: Positive  # optimizer steps between two penalties, each so many times as heavy; 16
    lecam_weight: Weight  # of the pull towards the other side's average logit; 0 leaves it out
    adaptive: bool  # balance by gradients; false weighs the game by disc_weight alone; true
    adaptive_weight_max: Weight  # largest adaptive weight, before disc_weight; 1e4


DEFAULTS: GameOptions = {
    "disc_warmup": 0,
    "disc_spectral_norm": False,
    "disc_augment": (),
    "r1_weight": 0.0,
    "r1_every": 16,
    "lecam_weight": 0.0,
    "adaptive": True,
    "adaptive_weight_max": 1e4,
}


class AdversarialGame(nn.Module):
    """Both players' losses, what disciplines the discriminator, and the balance of the game.

    disc_start: optimizer step at which the discriminator joins.  disc_factor: of its whole loss and
    of the generator's; 0 leaves the game out.  disc_weight: multiplies the adaptive weight.
    disc_loss: `hinge`, `vanilla` or `non-saturating`.  disc_conditional: the discriminator also
    sees a condition.  Other rules: `GameOptions`. A subclass builds the discriminator.
    """

    discriminator: NLayerDiscriminator
    num_unbalanced: Tensor  # (), steps whose game had no finite gradient

    def __init__(
        self,
        *,
        disc_start: NonNegative,
        disc_factor: Weight,
        disc_weight: Weight,
        disc_loss: str,
        disc_conditional: bool,
        **rules: Unpack[GameOptions],
    ) -> None:
        super().__init__()
        if unknown := rules.keys() - DEFAULTS.keys():
            raise TypeError(f"{type(self).__name__}() got an unexpected {min(unknown)!r}")
        self.rules: dict[str, Any] = {**DEFAULTS, **rules}
        self.disc_start = disc_start
        self.disc_factor = disc_factor
        self.disc_weight = disc_weight
        self.disc_conditional = disc_conditional
        self.disc_loss = discriminator_loss(disc_loss)
        self.disc_deception = deception_loss(disc_loss)
        names = self.rules["disc_augment"]
        if names and disc_conditional:
            raise ValueError(f"disc_augment: {list(names)}; a condition cannot be augmented")
        self.augmentation = DifferentiableAugmentation(names) if names else None
        self.lecam = LeCam() if self.rules["lecam_weight"] else None
        # not in checkpoints, whose names are published
        self.register_buffer("num_unbalanced", torch.zeros(()), persistent=False)

    @property
    def is_adaptive(self) -> bool:
        """Whether `balance` looks at gradients."""
        return bool(self.rules["adaptive"])

    def factor(self, step: int) -> float:
        """Weight of the game at an optimizer step: 0 before `disc_start`, then `disc_factor`."""
        return adopt_weight(self.disc_factor, step, threshold=self.disc_start)

    def generator_factor(self, step: int) -> float:
        """Weight of the game for the generator, which hears of it after `disc_warmup` steps."""
        start = self.disc_start + self.rules["disc_warmup"]
        return adopt_weight(self.disc_factor, step, threshold=start)

    def augmentation_numbers(self, draws: Draws, like: Tensor) -> Tensor | None:
        """What `judge` augments images by, on the device of `like`; None without augmentation."""
        if self.augmentation is None:
            return None
        return sent_to(self.augmentation.draw(draws), like.device)

    def judge(
        self, images: Tensor, cond: Tensor | None = None, numbers: Tensor | None = None
    ) -> Tensor:
        """The discriminator's logits (B, 1, h, w) of images, high where they look real.

        cond: (B, C, H, W), given exactly when the discriminator is conditional.
        numbers: see `augmentation_numbers`; images are judged as they are without them.
        """
        logits: Tensor = self.discriminator(self._seen(images, cond, numbers))
        return logits.float()

    def deception(self, logits_fake: Tensor) -> Tensor:
        """The generator's side of the game, from the logits of reconstructions: (B,)."""
        return self.disc_deception(logits_fake)

    def discrimination(self, logits_real: Tensor, logits_fake: Tensor, *, step: int) -> LossTerms:
        """The discriminator's side of the game at an optimizer step."""
        loss = self.factor(step) * self.disc_loss(logits_real, logits_fake)
        parts = {
            "disc_loss": loss.detach(),
            "logits_real": mean_flat(logits_real).detach(),
            "logits_fake": mean_flat(logits_fake).detach(),
        }
        return LossTerms(loss, parts)

    def discipline(
        self,
        images: Tensor,
        logits_real: Tensor,
        logits_fake: Tensor,
        *,
        step: int,
        cond: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> LossTerms:
        """What training adds to `discrimination`: the pull of LeCam and, now and then, R1.

        Moves LeCam's averages. The parts are without their weights; `r1` is there only in steps
        that have it, every `r1_every`-th, in which it counts `r1_every` times (appendix B of
        StyleGAN2, arXiv:1912.04958).
        """
        total, parts = torch.zeros_like(mean_flat(logits_real)), {}
        if self.lecam is not None:
            parts["lecam"] = self.lecam(logits_real, logits_fake)
            total = total + self.rules["lecam_weight"] * parts["lecam"]
        every = self.rules["r1_every"]
        if self.rules["r1_weight"] and step % every == 0:
            # past `compile`: compiled networks have no second derivative
            parts["r1"] = r1_penalty(
                lambda x: self.discriminator.forward(self._seen(x, cond, numbers)), images
            )
            total = total + 0.5 * self.rules["r1_weight"] * every * parts["r1"]
        parts = {name: value.detach() for name, value in parts.items()}
        return LossTerms(self.factor(step) * total, parts)

    def balance(self, nll_gradient: Tensor, generator_gradient: Tensor) -> Tensor:
        """Weight of `deception` next to `reconstruction`, 0-d, from last-layer gradients.

        0, and counted in `num_unbalanced`, where these are not finite.
        """
        ratio = gradient_ratio(nll_gradient, generator_gradient)
        self.num_unbalanced += (~torch.isfinite(ratio)).to(self.num_unbalanced)
        # published: clamped first, weighted after, so that disc_weight can exceed the clamp
        return self.disc_weight * bounded_weight(ratio, self.rules["adaptive_weight_max"])

    def fixed_balance(self, game: Tensor) -> Tensor:
        """The weight without `adaptive`, `disc_weight`, 0-d.

        game: `deception` or its gradient; where that is not finite the weight is 0, and the step is
        counted in `num_unbalanced`.
        """
        is_finite = torch.isfinite(game).all()
        self.num_unbalanced += (~is_finite).to(self.num_unbalanced)
        return torch.where(is_finite, float(self.disc_weight), 0.0)

    def _seen(self, images: Tensor, cond: Tensor | None, numbers: Tensor | None) -> Tensor:
        if (cond is not None) != self.disc_conditional:
            raise ValueError(
                f"disc_conditional is {self.disc_conditional}, but a condition was "
                f"{'missing' if cond is None else 'given'}"
            )
        if self.augmentation is not None and numbers is not None:
            images = self.augmentation(images, numbers)
        return images if cond is None else torch.cat([images, cond], dim=1)
