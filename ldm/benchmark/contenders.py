"""One training step of a configuration, by this project or by diffusers.

Both get the same images, losses, optimizers and averages; they differ in their networks and, for
a first stage, in how the step goes through them. Weights are random.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.benchmark.configuration import (
    Block,
    accept_random_lpips,
    denoising,
    is_first_stage,
    without_weights,
)
from ldm.benchmark.peers import PeerUNet, peer_autoencoder
from ldm.benchmark.setting import Setting
from ldm.config import ConfigError, build, instantiate_model
from ldm.diffusion.draws import KeyedDraws
from ldm.losses.autoencoder import FirstStageLoss
from ldm.models.ema import EMA
from ldm.models.first_stage_step import MicroBatch, shared_gradients
from ldm.models.optim import build_optimizer
from ldm.nets.compilation import compile_for_several_gradients
from ldm.spelling import require_known

__all__ = ["OURS", "PEERS", "Contender", "contender", "randomize"]

OURS = "ldm"
# the other library in both memory layouts: which is the faster one depends on the machine
PEER, PEER_CHANNELS_LAST = "diffusers", "diffusers, channels last"
PEERS = (PEER, PEER_CHANNELS_LAST)
_ADAMW = {"target": "torch.optim.AdamW", "params": {}}
_RATE = 1e-6  # of the optimizers: weights stay near their random start


class Contender(Protocol):
    """Something that can make one optimizer step."""

    def step(self) -> None:
        """Forward, loss, backward, optimizer, average."""
        ...


def contender(name: str, block: Block, setting: Setting) -> Contender:
    """A contender by name, `OURS` or one of `PEERS`, ready to step.

    block: see `ldm.benchmark.configuration.measured_block`.
    Raises ValueError for another name, ConfigError when diffusers has no such network.
    """
    require_known("name", name, (OURS, *PEERS))
    torch.manual_seed(0)
    layout = torch.channels_last if _is_channels_last(name, setting) else torch.contiguous_format
    if not is_first_stage(without_weights(block)):
        return _DenoisingStep(name, block, setting, layout)
    if name == OURS:
        return _FirstStageStep(block, setting, layout)
    return _PeerFirstStageStep(block, setting, layout)


def _is_channels_last(name: str, setting: Setting) -> bool:
    return name == PEER_CHANNELS_LAST or (name == OURS and setting.is_cuda)


class _DenoisingStep:
    """A diffusion model's step; the network alone is another library's, if asked for."""

    def __init__(
        self, name: str, block: Block, setting: Setting, layout: torch.memory_format
    ) -> None:
        given, shapes = denoising(block)
        if name != OURS:
            peer = PeerUNet(given["params"]["unet_config"]["params"])
            given["params"] = {**given["params"], "unet_config": peer}
        self.setting = setting
        self.model = instantiate_model(given).to(setting.device)
        randomize(self.model.model)
        self.model.model.to(memory_format=layout)
        if self.model.model_ema is not None:
            self.model.model_ema = EMA(self.model.model).to(setting.device)
        if setting.is_compiled:
            self.model.compile_networks()
        self.z, self.batch = shapes.batch(setting.batch_size, setting.device)
        self.z = self.z.contiguous(memory_format=layout)
        config = given["params"].get("optimizer_config") or _ADAMW
        self.optimizer = build_optimizer(self.model.learned_parameters(), _RATE, config)

    def step(self) -> None:
        model, z = self.model, self.z
        draws = KeyedDraws(range(len(z)), seed=0, device=self.setting.device)
        with self.setting.autocast():
            cond = model.conditioner(self.batch)
            terms = model.objective(model.denoiser, z, cond, draws=draws, logvar=model.logvar)
            loss = terms.total.mean()
        loss.backward()
        _update(self.optimizer)
        if model.model_ema is not None:
            model.model_ema.update(model.model)


class _FirstStageStep:
    """A first stage's step: one pass of the autoencoder for both optimizers."""

    def __init__(self, block: Block, setting: Setting, layout: torch.memory_format) -> None:
        self.setting = setting
        self.model = instantiate_model(block).to(setting.device)
        self.model.to(memory_format=layout).train()
        randomize(self.model)
        accept_random_lpips(self.model.loss)
        if setting.is_compiled:
            self.model.compile_networks()
        self.optimizer_step = _discriminator_step(self.model.loss, setting)
        self.images = _images(block, setting).contiguous(memory_format=layout)
        config = self.model.options["optimizer_config"]
        learned = (self.model.generator_parameters(), self.model.loss.discriminator.parameters())
        self.optimizers = [build_optimizer(each, _RATE, config) for each in learned]

    def step(self) -> None:
        draws = KeyedDraws(range(len(self.images)), seed=0, device=self.setting.device)
        with self.setting.autocast():
            shared_gradients(self.model, [MicroBatch(self.images, draws)], step=self.optimizer_step)
        for optimizer in self.optimizers[: 2 if self.setting.with_discriminator else 1]:
            _update(optimizer)
        if self.model.model_ema is not None:
            self.model.model_ema.update(self.model.networks())


class _PeerFirstStageStep:
    """The same losses on diffusers' autoencoder, in one graph, the discriminator after it.

    As fast as that goes: one forward pass for both optimizers, no gradient of the discriminator's
    weights on the generator's way, and no discriminator before it joins.
    """

    def __init__(self, block: Block, setting: Setting, layout: torch.memory_format) -> None:
        self.setting = setting
        shape = without_weights(block)
        params = block["params"]
        if not hasattr(shape, "quant_conv") or hasattr(shape, "quantize"):
            raise ConfigError("model.target: compared with diffusers for KL autoencoders only")
        self.net: Any = peer_autoencoder(params["ddconfig"], params["embed_dim"])
        self.net.to(setting.device).to(memory_format=layout).train()
        self.loss: FirstStageLoss = build(params["lossconfig"], path="lossconfig")
        self.loss.to(setting.device).to(memory_format=layout).train()
        for module in (self.net, self.loss):
            randomize(module)
        accept_random_lpips(self.loss)
        if setting.is_compiled:
            networks: list[Any] = [self.net.encoder, self.net.decoder, self.loss.discriminator]
            for network in networks:
                compile_for_several_gradients(network)
        self.optimizer_step = _discriminator_step(self.loss, setting)
        self.images = _images(block, setting).contiguous(memory_format=layout)
        config = shape.options["optimizer_config"]
        self.optimizer = build_optimizer(self.net.parameters(), _RATE, config)
        discriminator = self.loss.discriminator.parameters()
        self.discriminator_optimizer = build_optimizer(discriminator, _RATE, config)
        self.average = EMA(self.net) if params.get("use_ema") else None

    def step(self) -> None:
        loss, images = self.loss, self.images
        loss.discriminator.requires_grad_(False)
        with self.setting.autocast():
            posterior = self.net.encode(images).latent_dist
            reconstruction = self.net.decode(posterior.sample()).sample
            total = self._generator_loss(reconstruction, posterior.kl())
        torch.autograd.backward(total)
        _update(self.optimizer)
        if self.setting.with_discriminator:
            loss.discriminator.requires_grad_(True)
            with self.setting.autocast():
                logits = loss.judge(images), loss.judge(reconstruction.detach())
                terms = loss.discrimination(*logits, step=self.optimizer_step)
            torch.autograd.backward(terms.total.mean())
            _update(self.discriminator_optimizer)
        if self.average is not None:
            self.average.update(self.net)

    def _generator_loss(self, reconstruction: Tensor, kl: Tensor) -> Tensor:
        loss = self.loss
        if not self.setting.with_discriminator:
            terms = loss.reconstruction(self.images, reconstruction.float())
            return (terms.total + loss.regularization(kl).total).mean()
        last_layer = self.net.get_parameter("decoder.conv_out.weight")
        return loss.objective(
            self.images, reconstruction.float(), kl, step=self.optimizer_step, last_layer=last_layer
        ).total.mean()


def _update(optimizer: Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _discriminator_step(loss: FirstStageLoss, setting: Setting) -> int:
    """An optimizer step at which the discriminator has joined, or has not.

    Raises ConfigError when training by the configuration has no such step.
    """
    step = max(0, loss.disc_start - (not setting.with_discriminator))
    if bool(loss.factor(step)) != setting.with_discriminator:
        when = "after" if setting.with_discriminator else "before"
        raise ConfigError(f"lossconfig: no step {when} disc_start={loss.disc_start}")
    return step


def _images(block: Block, setting: Setting) -> Tensor:
    shape = block["params"]["ddconfig"]
    size = (shape["in_channels"], shape["resolution"], shape["resolution"])
    return torch.rand(setting.batch_size, *size, device=setting.device) * 2 - 1


def randomize(module: nn.Module) -> None:
    """Weights that no layer starts at zero with, so that no arithmetic is on zeros."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
