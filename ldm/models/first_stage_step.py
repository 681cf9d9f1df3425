"""Gradients of one optimizer step of a first stage and its discriminator.

`shared_gradients` runs the autoencoder once. Both losses of the generator are differentiated at
the reconstruction x_hat: LPIPS and the discriminator see an image, not the network behind it.
Their gradients are joined,

    d nll / d x_hat + lambda d g / d x_hat,

and go back through the autoencoder once, together with the cost of the latent. The discriminator
learns from the same x_hat, so both players move from the same point, and nothing is computed for
it before it joins.

`generator_gradients` and `discriminator_gradients` are the two halves of the published step, in
which the discriminator meets new reconstructions of the generator that has just moved.

Gradients are added to `.grad`, those of a mean over the examples of all micro-batches of this
rank; the mean over ranks is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ldm.diffusion.draws import Draws
from ldm.losses.autoencoder import FirstStageLoss
from ldm.losses.equivariance import Transform
from ldm.ranks import mean_over_ranks

__all__ = [
    "Autoencoded",
    "Autoencoder",
    "MicroBatch",
    "discriminator_gradients",
    "generator_gradients",
    "shared_gradients",
]


class Autoencoded(NamedTuple):
    """What an autoencoder made of images.

    reconstruction: (B, C, H, W).  z: (B, c, h, w), what was decoded.
    cost: of the latent, before its weight: (B,) KL in nats, or the loss (0-d) of a quantizer.
    codes: indices of the codebook, if there is one.
    """

    reconstruction: Tensor
    z: Tensor
    cost: Tensor
    codes: Tensor | None = None


class Autoencoder(Protocol):
    """What a step needs of the model."""

    loss: FirstStageLoss

    def autoencode(
        self,
        images: Tensor,
        draws: Draws | None,
        transform: Transform | None = None,
        stream: str = "posterior",
    ) -> Autoencoded:
        """Encode and decode; a latent by the numbers of a stream, or the most likely one.

        transform: of the latent before it is decoded.
        """
        ...

    def get_last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        ...

    def generator_parameters(self) -> list[nn.Parameter]:
        """Everything the generator's optimizer moves."""
        ...


class MicroBatch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1] and the random numbers of their latents.

    transform: of the latents and of the images that their decoding is compared with.
    """

    images: Tensor
    draws: Draws
    transform: Transform | None = None

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def targets(self) -> Tensor:
        """What the reconstructions should be."""
        return self.images if self.transform is None else self.transform.of_images(self.images)


Metrics = dict[str, Tensor]


@dataclass
class _Attempt:
    """Reconstructions of one micro-batch.

    targets: what they should be.
    made: x_hat, with the graph of the autoencoder.
    leaf: x_hat as the losses see it, float32; its `.grad` is share * d nll / d x_hat.
    share: of this micro-batch in the examples of the step.
    """

    batch: MicroBatch
    targets: Tensor
    share: float
    made: Autoencoded
    leaf: Tensor

    @property
    def pull(self) -> Tensor:
        assert self.leaf.grad is not None
        return self.leaf.grad


def shared_gradients(model: Autoencoder, batches: Sequence[MicroBatch], *, step: int) -> Metrics:
    """Add both players' gradients for one step; what to log, 0-d each, by published name.

    step: optimizer step; before the loss's `disc_start` there is no game, and until its
    `disc_warmup` has passed only the discriminator learns from it.
    Several micro-batches count as the one batch they make up: the discriminator sees their
    reconstructions together and lambda is that of all of them. That takes a first pass without
    the autoencoder's graph, so the autoencoder runs twice; dropout, which draws from torch's global
    generator, drops the same in both.
    """
    factor = model.loss.generator_factor(step)
    metrics = _Sums(disc_factor=torch.full((), factor, device=batches[0].images.device))
    if not model.loss.factor(step):
        for batch, share in _shares(batches):
            made = model.autoencode(*batch)
            attempt = _attempt(model.loss, batch, share, made, metrics)
            _backward(model.loss, made, attempt.pull, share, metrics)
        return metrics
    at_once = len(batches) == 1
    seeds = [None] if at_once else torch.randint(2**62, (len(batches),)).tolist()
    with nullcontext() if at_once else _only_last_layer_learns(model):
        reconstructed = [
            _autoencoded(model, batch, seed) for batch, seed in zip(batches, seeds, strict=True)
        ]
    attempts = [
        _attempt(model.loss, batch, share, made, metrics)
        for (batch, share), made in zip(_shares(batches), reconstructed, strict=True)
    ]
    pulls = _play(model, attempts, step, metrics)
    for attempt, pull, seed in zip(attempts, pulls, seeds, strict=True):
        made = attempt.made if at_once else _autoencoded(model, attempt.batch, seed)
        _backward(model.loss, made, pull, attempt.share, metrics)
    return metrics


def generator_gradients(model: Autoencoder, batches: Sequence[MicroBatch], *, step: int) -> Metrics:
    """Add the generator's gradients as published: one graph, each micro-batch its own lambda."""
    metrics = _Sums()
    for batch, share in _shares(batches):
        made, targets = model.autoencode(*batch), batch.targets
        terms = model.loss.objective(
            targets,
            made.reconstruction,
            made.cost,
            codes=made.codes,
            step=step,
            last_layer=model.get_last_layer(),
            numbers=model.loss.augmentation_numbers(batch.draws, targets),
        )
        torch.autograd.backward(share * terms.total.mean(), inputs=_learned(model))
        metrics.add_mean(terms.parts | {"total_loss": terms.total}, share)
    return metrics


def discriminator_gradients(
    model: Autoencoder, batches: Sequence[MicroBatch], *, step: int
) -> Metrics:
    """Add the discriminator's gradients as published: on reconstructions made anew."""
    metrics = _Sums()
    for batch, share in _shares(batches):
        with torch.no_grad():
            made = model.autoencode(*batch, "posterior for the discriminator")
        targets, loss = batch.targets, model.loss
        numbers = loss.augmentation_numbers(batch.draws, targets)
        logits = [loss.judge(x, numbers=numbers) for x in (targets, made.reconstruction)]
        _discriminate(loss, targets, logits, numbers, step, metrics, share)
    return metrics


def _autoencoded(model: Autoencoder, batch: MicroBatch, seed: int | None) -> Autoencoded:
    """One pass, with dropout by this seed; None goes on with the numbers that come next."""
    if seed is not None:
        torch.manual_seed(seed)  # of all devices, none of which is waited for
    return model.autoencode(*batch)


def _attempt(
    loss: FirstStageLoss, batch: MicroBatch, share: float, made: Autoencoded, metrics: _Sums
) -> _Attempt:
    """Differentiate the likelihood at the reconstruction."""
    leaf, targets = made.reconstruction.detach().float().requires_grad_(), batch.targets
    terms = loss.reconstruction(targets, leaf)
    inputs = [leaf, *loss.generator_parameters()]
    torch.autograd.backward(share * terms.total.mean(), inputs=inputs)
    metrics.add_mean(terms.parts | {"total_loss": terms.total}, share)
    return _Attempt(batch, targets, share, made, leaf)


def _play(
    model: Autoencoder, attempts: Sequence[_Attempt], step: int, metrics: _Sums
) -> list[Tensor]:
    """One round of the game on all reconstructions of the step.

    Adds the discriminator's gradients; returns d (nll + lambda g) / d x_hat of each micro-batch.
    The logits of the reconstructions are computed once, for both players.
    """
    loss, leaves = model.loss, [attempt.leaf for attempt in attempts]
    pulls = [attempt.pull for attempt in attempts]
    drawn = [loss.augmentation_numbers(a.batch.draws, a.leaf) for a in attempts]
    numbers = _joined([each for each in drawn if each is not None])
    logits_fake = loss.judge(torch.cat(leaves), numbers=numbers)
    deception = loss.deception(logits_fake).mean()
    metrics.add("g_loss", deception.detach())
    gradients: Sequence[Tensor] = ()
    if factor := loss.generator_factor(step):
        gradients = torch.autograd.grad(deception, leaves, retain_graph=True)
    targets = torch.cat([attempt.targets for attempt in attempts])
    logits = [loss.judge(targets, numbers=numbers), logits_fake]
    _discriminate(loss, targets, logits, numbers, step, metrics)
    if not factor:  # the discriminator warms up
        return pulls
    weight = factor * _balance(model, attempts, gradients, metrics)
    metrics.add("total_loss", _weighted(metrics["g_loss"], weight))
    return [
        pull + _weighted(gradient, weight) for pull, gradient in zip(pulls, gradients, strict=True)
    ]


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    """A product that is 0 where the weight (0-d) is, even if x is not finite."""
    return torch.where(weight > 0, weight * x, 0.0)


def _discriminate(
    loss: FirstStageLoss,
    images: Tensor,
    logits: Sequence[Tensor],
    numbers: Tensor | None,
    step: int,
    metrics: _Sums,
    share: float = 1.0,
) -> None:
    """Add the discriminator's gradients, those of its loss and of what disciplines it.

    images: real ones.  logits: of these and of their reconstructions.
    """
    terms = loss.discrimination(*logits, step=step)
    bounds = loss.discipline(images, *logits, step=step, numbers=numbers)
    total = share * (terms.total + bounds.total).mean()
    torch.autograd.backward(total, inputs=_discriminator_parameters(loss))
    metrics.add_mean(terms.parts | bounds.parts, share)


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    return torch.cat(list(parts)) if parts else None


def _balance(
    model: Autoencoder,
    attempts: Sequence[_Attempt],
    deceptions: Sequence[Tensor],
    metrics: _Sums,
) -> Tensor:
    """Lambda (0-d) of the whole step, on all ranks; adaptive from the last layer's gradients."""
    if model.loss.is_adaptive:
        images = [attempt.made.reconstruction for attempt in attempts]
        gradients: list[Tensor] = []
        for pulls in ([attempt.pull for attempt in attempts], deceptions):
            upstream = [pull.to(image.dtype) for pull, image in zip(pulls, images, strict=True)]
            gradients += torch.autograd.grad(
                images, model.get_last_layer(), upstream, retain_graph=True
            )
        weight = model.loss.balance(*mean_over_ranks(torch.stack(gradients)))
    else:
        largest = torch.stack([deception.abs().amax() for deception in deceptions]).amax()
        weight = model.loss.fixed_balance(mean_over_ranks(largest))
    metrics.add("d_weight", weight)
    metrics.add("d_weight_nonfinite", model.loss.num_unbalanced.clone())
    return weight


def _backward(
    loss: FirstStageLoss, made: Autoencoded, pull: Tensor, share: float, metrics: _Sums
) -> None:
    """From the reconstruction, and from the cost of the latent, into the autoencoder."""
    roots, upstream = [made.reconstruction], [pull.to(made.reconstruction.dtype)]
    cost = loss.regularization(made.cost, made.codes)
    metrics.add_mean(cost.parts | {"total_loss": cost.total}, share)
    if cost.total.requires_grad:  # a frozen encoder's cost is a constant, and so is that of FSQ
        roots.append(share * cost.total.mean())
        upstream.append(torch.ones_like(roots[1]))
    torch.autograd.backward(roots, upstream)


def _shares(batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, float]]:
    examples = sum(batch.size for batch in batches)
    return ((batch, batch.size / examples) for batch in batches)


def _learned(model: Autoencoder) -> list[Tensor]:
    return [p for p in model.generator_parameters() if p.requires_grad]


def _discriminator_parameters(loss: FirstStageLoss) -> list[Tensor]:
    return list(loss.discriminator.parameters())


@contextmanager
def _only_last_layer_learns(model: Autoencoder) -> Iterator[None]:
    """Inside, a forward pass keeps a graph of the last convolution and of nothing before it."""
    last = model.get_last_layer()
    others = [p for p in model.generator_parameters() if p.requires_grad and p is not last]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


class _Sums(dict[str, Tensor]):
    """Values to log, summed over micro-batches."""

    def add(self, name: str, value: Tensor) -> None:
        self[name] = self[name] + value if name in self else value

    def add_mean(self, terms: dict[str, Tensor], share: float = 1.0) -> None:
        for name, value in terms.items():
            self.add(name, share * value.detach().mean())
