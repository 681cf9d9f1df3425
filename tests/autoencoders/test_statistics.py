"""Statistics of latents as a file keeps them."""

import json

import pytest
import torch

from ldm.autoencoders.scaling import LatentMoments
from ldm.autoencoders.statistics import LatentStatistics


def statistics(z):
    moments = LatentMoments()
    moments.update(z)
    return LatentStatistics.of(
        moments,
        checkpoint="first.ckpt",
        sha256="ab" * 32,
        images=len(z),
        latent=tuple(z.shape[1:]),
        details={"seed": 0},
    )


def test_statistics_of_latents_in_closed_form():
    z = torch.tensor([[-1.0, 1.0], [3.0, 7.0]]).reshape(1, 2, 1, 2)
    found = statistics(z)
    for channel, expected in zip(found.channels, [(0, 2**0.5, 0), (5, 8**0.5, 0)], strict=True):
        assert (channel.mean, channel.std, channel.skew) == pytest.approx(expected, abs=1e-14)
    assert found.overall.mean == 2.5
    assert found.overall.std == pytest.approx((35 / 3) ** 0.5, rel=1e-14)
    assert found.scale_factor == pytest.approx((3 / 35) ** 0.5, rel=1e-14)
    assert (found.images, found.latent) == (1, (2, 1, 2))


def test_a_file_gives_back_what_was_written(tmp_path):
    written = statistics(torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    written.write(tmp_path / "stats.json")
    assert LatentStatistics.read(tmp_path / "stats.json") == written


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"std": 1}', "\x00"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "stats.json").write_text(text)
    with pytest.raises(ValueError, match="no statistics of latents"):
        LatentStatistics.read(tmp_path / "stats.json")


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deviation_without_a_scale_is_refused(tmp_path, std):
    statistics(torch.eye(4)[None, None]).write(tmp_path / "stats.json")
    plain = json.loads((tmp_path / "stats.json").read_text())
    plain["overall"]["std"] = std
    (tmp_path / "stats.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="more than 0"):
        LatentStatistics.read(tmp_path / "stats.json")
