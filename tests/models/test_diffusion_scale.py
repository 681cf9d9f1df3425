"""The scale of the latents that a file of statistics gives."""

import re

import pytest
import torch

from ldm.autoencoders.scaling import LatentMoments
from ldm.autoencoders.statistics import LatentStatistics
from ldm.config import ConfigError, instantiate_from_config, without_checkpoints
from ldm.io.digest import sha256_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion_models import kl, parameters


@pytest.fixture
def files(tmp_path):
    """A checkpoint of a first stage, statistics of its latents, and the model's parameters."""
    checkpoint, stats = tmp_path / "first.ckpt", tmp_path / "latent_stats.json"
    config = kl()
    torch.save({"state_dict": instantiate_from_config(config).state_dict()}, checkpoint)
    moments = LatentMoments()
    moments.update(torch.tensor([-2.0, 2.0]).repeat(2, 3, 4, 2))  # deviation 2 (48 / 47)^(1/2)
    LatentStatistics.of(
        moments,
        checkpoint=checkpoint,
        sha256=sha256_of(checkpoint),
        images=2,
        latent=(3, 4, 4),
        details={},
    ).write(stats)
    config["params"]["ckpt_path"] = str(checkpoint)
    return checkpoint, stats, parameters(first_stage_config=config, latent_stats=str(stats))


def test_the_scale_is_one_over_the_recorded_deviation_and_is_saved(files):
    model = LatentDiffusion(**files[2])
    scale = model.state_dict()["scale_factor"]
    assert scale.dtype == torch.float32
    assert float(scale) == pytest.approx(0.5 * (95 / 96) ** 0.5, rel=1e-6)
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    unscaled = model.first_stage_model.encode(images).mode()
    torch.testing.assert_close(model.encode(images), unscaled * scale)


def test_a_model_that_is_restored_needs_no_file(files, tmp_path):
    checkpoint, stats, params = files
    trained = LatentDiffusion(**params)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "model.ckpt")
    checkpoint.unlink()
    stats.unlink()
    model = LatentDiffusion(**without_checkpoints(params))
    assert model.scale_factor.isnan()
    again = without_checkpoints(params) | {"ckpt_path": str(tmp_path / "model.ckpt")}
    assert torch.equal(LatentDiffusion(**again).scale_factor, trained.scale_factor)


def test_training_without_the_checkpoint_that_was_measured_is_refused(files):
    model = LatentDiffusion(**without_checkpoints(files[2]))
    model._trainer = type("Trainer", (), {"ckpt_path": None, "global_step": 0})()
    with pytest.raises(ConfigError, match=r"latent_stats: .*ckpt_path names none"):
        model.on_train_start()


def test_statistics_of_another_checkpoint_are_refused_with_both_names(files):
    checkpoint, stats, params = files
    other = checkpoint.with_name("other.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "epoch": 1}, other)
    params["first_stage_config"]["params"]["ckpt_path"] = str(other)
    with pytest.raises(ConfigError, match=re.escape(str(stats))) as raised:
        LatentDiffusion(**params)
    for text in (checkpoint, other, sha256_of(checkpoint)[:12], sha256_of(other)[:12]):
        assert str(text) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_by_std": True}, "scale_by_std measures the scale; give one"),
        ({"scale_factor": 0.18215}, r"scale_factor is 0\.18215; give one"),
        ({"scale_factor": 1.0}, "scale_factor is 1; give one"),
        ({"latent_stats": "none.json"}, r"there is no file none\.json"),
    ],
)
def test_what_contradicts_the_file_is_refused(files, changes, message):
    with pytest.raises(ConfigError, match=message):
        LatentDiffusion(**{**files[2], **changes})


def test_a_file_without_statistics_is_refused(files):
    files[1].write_text("{}")
    with pytest.raises(ConfigError, match=r"latent_stats: .*holds no statistics"):
        LatentDiffusion(**files[2])
