"""Weights out of and into a diffusion model: its own files, and those of the 2022 release."""

import pytest
import torch

from ldm.config import ConfigError
from ldm.diffusion.posterior import published_buffers
from ldm.diffusion.times import LossAware
from ldm.io.compvis import to_published
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.restore import restore_weights
from tests.models.diffusion_models import (
    by_class,
    kl,
    labels,
    latent,
    loader,
    parameters,
    trainer,
    unet,
)


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def scrambled(model):
    """Other weights than those by rule, the average different from the trained ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def written(state, directory, name="model.ckpt"):
    path = directory / name
    torch.save({"state_dict": state, "global_step": 7}, path)
    return str(path)


# a run's own checkpoint


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    params = {"first_stage_config": kl(), "scale_by_std": True, "learn_logvar": True}
    whole, half, resumed = (latent(**params) for _ in range(3))
    trainer(6).fit(whole, loader(4, side=8))  # one batch per epoch
    first = trainer(3)
    first.fit(half, loader(4, side=8))
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(6).fit(resumed, loader(4, side=8), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed, whole)
    assert resumed.model_ema.num_updates == 6
    assert resumed.scale_factor == whole.scale_factor != 1


def test_what_a_sampler_of_times_has_learned_is_resumed():
    model = latent()
    learned = LossAware(20)
    learned.update(torch.tensor([3, 4]), torch.tensor([1.0, 2.0]))
    model.times = learned
    assert "times.counts" in model.state_dict()


# starting from a checkpoint


def test_a_model_takes_every_weight_of_its_own_file(tmp_path):
    source = scrambled(latent(by_class(first_stage_config=kl(), learn_logvar=True)))
    path = written(source.state_dict(), tmp_path)
    params = by_class(first_stage_config=kl(), learn_logvar=True, ckpt_path=path)
    assert same(LatentDiffusion(**params), source)


def test_a_published_file_fits_with_its_average_and_tables(tmp_path):
    source = scrambled(latent(by_class(first_stage_config=kl())))
    state = to_published(source.state_dict(), tables=published_buffers(source.schedule))
    assert "model_ema.diffusion_modeltime_embed0weight" in state
    path = written(state, tmp_path)
    model = LatentDiffusion(**by_class(first_stage_config=kl(), ckpt_path=path))
    assert same(model, source)


def test_a_published_file_of_a_model_that_conditions_on_its_first_stage_fits(tmp_path):
    params = parameters(
        first_stage_config=kl(),
        cond_stage_config="__is_first_stage__",
        unet_config=unet(in_channels=6),
    )
    source = scrambled(latent(params))
    tables = published_buffers(source.schedule)
    state = to_published(source.state_dict(), tables=tables, first_stage_conditions=True)
    assert "cond_stage_model.encoder.conv_in.weight" in state
    assert same(LatentDiffusion(**params, ckpt_path=written(state, tmp_path)), source)


def test_a_file_of_another_noise_schedule_is_refused(tmp_path):
    state = to_published(latent().state_dict(), tables=published_buffers(latent().schedule))
    path = written(state, tmp_path)
    with pytest.raises(ConfigError, match="trained with another noise schedule"):
        LatentDiffusion(**parameters(linear_end=0.2, ckpt_path=path))


def test_tables_of_a_larger_posterior_variance_are_the_models_own(tmp_path):
    source = latent(v_posterior=0.5)
    tables = published_buffers(source.schedule, v_posterior=0.5)
    path = written(to_published(source.state_dict(), tables=tables), tmp_path)
    assert same(LatentDiffusion(**parameters(v_posterior=0.5, ckpt_path=path)), source)
    with pytest.raises(ConfigError, match="posterior_variance"):
        LatentDiffusion(**parameters(ckpt_path=path))


def test_only_the_network_can_be_taken(tmp_path):
    source = scrambled(latent(by_class()))
    target = latent(by_class())
    path = written(source.state_dict(), tmp_path)
    report = restore_weights(target, path, only="model.diffusion_model.")
    assert report.missing == ("cond_stage_model.embedding.weight",)
    assert same(target.model, source.model)
    assert same(target.model_ema.module, source.model)
    assert not torch.equal(
        target.cond_stage_model.embedding.weight, source.cond_stage_model.embedding.weight
    )
    configured = LatentDiffusion(**by_class(ckpt_path=path, load_only_unet=True))
    assert same(configured.model, source.model)


def test_names_can_be_left_out(tmp_path):
    source = scrambled(latent(by_class()))
    path = written(source.state_dict(), tmp_path)
    wider = by_class(
        cond_stage_config=labels(n_classes=9), ckpt_path=path, ignore_keys=["cond_stage_model"]
    )
    assert same(LatentDiffusion(**wider).model, source.model)
    with pytest.raises(ConfigError, match=r"cond_stage_model\.embedding\.weight"):
        LatentDiffusion(**{**wider, "ignore_keys": []})


def test_a_file_without_an_average_starts_one(tmp_path):
    source = scrambled(latent(use_ema=False))
    model = LatentDiffusion(**parameters(ckpt_path=written(source.state_dict(), tmp_path)))
    assert same(model.model, source.model)
    assert same(model.model_ema.module, source.model)


def test_a_file_of_another_model_is_refused_with_a_report(tmp_path):
    other = latent(unet_config=unet(model_channels=64))
    path = written(other.state_dict(), tmp_path)
    with pytest.raises(ConfigError, match=r"time_embed\.0\.weight"):
        LatentDiffusion(**parameters(ckpt_path=path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.ckpt"):
        LatentDiffusion(**parameters(ckpt_path=str(tmp_path / "model.ckpt")))


# the scale


@pytest.mark.parametrize(("only_unet", "is_measured"), [(False, False), (True, True)])
def test_a_restored_model_keeps_the_scale_it_was_trained_at(tmp_path, only_unet, is_measured):
    params = {"first_stage_config": kl(), "scale_by_std": True}
    source = latent(**params)
    source.scale_factor.fill_(0.25)
    path = written(source.state_dict(), tmp_path)
    model = LatentDiffusion(**parameters(**params, ckpt_path=path, load_only_unet=only_unet))
    model.first_stage_model.load_state_dict(source.first_stage_model.state_dict())
    trainer(1).fit(model, loader(4, side=8))
    assert bool(model.scale_factor != 0.25) is is_measured


def test_a_fixed_scale_is_configuration_and_not_a_weight():
    assert "scale_factor" not in latent(scale_factor=0.5).state_dict()
    assert "scale_factor" in latent(scale_by_std=True).state_dict()
