"""Reconstructions in 8 bits and what is measured of them, on first stages known exactly."""

import numpy as np
import pytest
import torch
from torch import nn

from ldm.autoencoders.posterior import DiagonalGaussian
from ldm.config import ConfigError
from ldm.data.shapes import ShapesDataset
from ldm.evaluation.extractor import Extractor, configured_extractor, inception
from ldm.evaluation.first_stage import (
    Judge,
    diffused_latents,
    judged,
    lpips_of,
    reconstruct,
)
from ldm.fidelity import detail, psnr, ssim
from ldm.losses.perceptual import LPIPS
from ldm.models.autoencoder import IdentityFirstStage
from ldm.tensor import to_image_tensor
from tests.models.first_stages import tiny_kl, tiny_vq

CPU = torch.device("cpu")


class Darker:
    """A first stage of factor 4 that subtracts grey levels and averages blocks."""

    downsample_factor, latent_channels = 4, 3

    def encode(self, x):
        return nn.functional.avg_pool2d(x, 4) - 10 / 127.5

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=4)


class Noisy:
    """A first stage whose posterior is N(x, 0.1^2)."""

    downsample_factor, latent_channels = 1, 3

    def encode(self, x):
        return DiagonalGaussian(torch.cat([x, torch.full_like(x, 2 * np.log(0.1))], dim=1))

    def decode(self, z):
        return z


def scenes(count, side=16):
    data = ShapesDataset(size=side, length=count)
    return torch.stack([torch.from_numpy(data[i]["image"]) for i in range(count)])


def batches(images, size=2):
    names = [f"{index}" for index in range(len(images))]
    for start in range(0, len(images), size):
        yield names[start : start + size], images[start : start + size]


def test_reconstructions_of_any_size_have_the_size_of_the_image():
    flat = torch.full((2, 7, 13, 3), 100, dtype=torch.uint8)
    made, latent = reconstruct(Darker(), flat)
    assert made.dtype == torch.uint8
    assert latent == (3, 2, 4)
    assert torch.equal(made, torch.full_like(flat, 90))


def test_an_image_survives_a_first_stage_that_changes_nothing():
    images = scenes(3)
    made, _ = reconstruct(IdentityFirstStage(), images)
    assert torch.equal(made, images)


@pytest.mark.parametrize("make", [tiny_kl, tiny_vq])
def test_a_reconstruction_is_that_of_the_model(make):
    model, images = make().eval(), scenes(2)
    with torch.no_grad():
        expected = model.autoencode(to_image_tensor(images), None).reconstruction
    made, latent = reconstruct(model, images)
    torch.testing.assert_close(to_image_tensor(made), expected.clamp(-1, 1), rtol=0, atol=1 / 127)
    assert latent == (3, 8, 8)


def test_posterior_samples_depend_on_seed_and_name_alone():
    images = torch.full((3, 8, 8, 3), 128, dtype=torch.uint8)
    together, _ = reconstruct(Noisy(), images, ["a", "b", "c"], seed=1)
    alone, _ = reconstruct(Noisy(), images[:1], ["b"], seed=1)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(alone, reconstruct(Noisy(), images[:1], ["b"], seed=2)[0])
    assert torch.equal(reconstruct(Noisy(), images)[0], images)


def test_samples_are_refused_where_there_is_no_posterior():
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="--sample: IdentityFirstStage gives one latent"):
        reconstruct(IdentityFirstStage(), images, ["a"])


def test_latents_of_a_quantized_first_stage_are_those_before_quantization():
    model = tiny_vq().eval()
    images = to_image_tensor(scenes(2))
    with torch.no_grad():
        expected = model.encode_to_prequant(images)
        assert torch.equal(diffused_latents(model, images, [0, 1]), expected)


def test_measures_are_of_the_image_in_8_bits():
    images, judge = scenes(3), Judge()
    found = list(judged(Darker(), batches(images), judge, device=CPU))
    assert [each.name for each in found] == ["0", "1", "2"]
    for each in found:
        pair = [to_image_tensor(x[None]) for x in (each.image, each.reconstruction)]
        assert each.measures["psnr"] == pytest.approx(float(psnr(*pair)), rel=1e-6)
        assert each.measures["ssim"] == pytest.approx(float(ssim(*pair)), rel=1e-5)
    values = [each.measures["psnr"] for each in found]
    summary = judge.summary()
    assert summary["psnr"]["mean"] == pytest.approx(np.mean(values))
    assert summary["psnr"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert summary["images"] == summary["psnr"]["images"] == 3


def test_what_is_not_measured_is_said():
    judge = Judge()
    judge.compare(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 8, 8, 3).byte())
    summary = judge.summary()
    assert summary["psnr"] == {"mean": 100, "std": None, "images": 1}
    assert summary["left_out"].keys() == {"ssim", "lpips", "rfid", "r_is", "sharpness"}
    assert "too small" in summary["left_out"]["ssim"]
    assert "--lpips-weights" in summary["left_out"]["lpips"]
    assert "--inception-weights" in summary["left_out"]["rfid"]
    assert "blank" in summary["left_out"]["sharpness"]


def test_floats_are_measured_as_they_are():
    images = torch.rand(2, 16, 16, 13, generator=torch.Generator().manual_seed(0)) * 2 - 1
    judge = Judge()
    found = list(judged(Darker(), batches(images), judge, device=CPU))
    pair = images.permute(0, 3, 1, 2), Darker().decode(Darker().encode(images.permute(0, 3, 1, 2)))
    made = torch.stack([each.reconstruction for each in found])
    assert torch.equal(made, pair[1].permute(0, 2, 3, 1))
    assert [each.measures["psnr"] for each in found] == pytest.approx(psnr(*pair).tolist())
    assert [each.measures["ssim"] for each in found] == pytest.approx(ssim(*pair).tolist())
    given, left = (float(detail(each).sum()) for each in pair)
    assert judge.summary()["sharpness"]["value"] == pytest.approx(left / given)


def test_networks_see_three_channels_or_the_chosen_ones():
    network = LPIPS(lpips_channels=[3, 2, 1])
    network.load_state_dict(network.state_dict())
    images = torch.rand(2, 16, 16, 13, generator=torch.Generator().manual_seed(0)) * 2 - 1
    extractor = Extractor(Brightness(), "brightness", is_inception=True)
    judge = Judge(network, extractor, lpips_channels=[3, 2, 1])
    (first, _) = judge.compare(images, images / 2)
    chosen, alone = images[:1, ..., [3, 2, 1]], LPIPS()
    alone.load_state_dict(network.state_dict())
    with torch.no_grad():
        expected = alone(to_image_tensor(chosen), to_image_tensor(chosen / 2))
    assert first["lpips"] == pytest.approx(float(expected), rel=1e-5)
    colours = Judge(extractor=extractor)
    colours.compare(images[..., [3, 2, 1]], images[..., [3, 2, 1]] / 2)
    assert judge.summary()["rfid"] == colours.summary()["rfid"]
    blind = Judge(LPIPS(), extractor)
    assert blind.compare(images, images / 2)[0].keys() == {"psnr", "ssim"}
    left_out = blind.summary()["left_out"]
    assert left_out.keys() == {"lpips", "rfid", "r_is"}
    assert all("13 channels" in reason for reason in left_out.values())


class Brightness(nn.Module):
    """Features: mean of red and of green, in units of 255; logits by the first."""

    def forward(self, images):
        assert images.dtype == torch.uint8
        features = images[:, :2].float().mean(dim=(2, 3)) / 255
        return features, torch.stack([features[:, 0], 1 - features[:, 0]], dim=1)


def test_the_distance_of_sets_is_that_of_their_features():
    judge = Judge(extractor=Extractor(Brightness(), "brightness", is_inception=False))
    images = torch.zeros(20, 16, 16, 3, dtype=torch.uint8)
    images[::2] = 255
    judge.compare(images, 255 - images // 255 * 205)  # 0 becomes 255, 255 becomes 50
    summary = judge.summary()
    # variance 20/19 / 4 of either channel, all in one direction, and 0.35 of shift in each
    spread = 2 * (20 / 19 / 4) * (1 - 205 / 255) ** 2
    shift = 2 * (0.5 - (255 + 50) / 2 / 255) ** 2
    assert summary["frechet_distance"]["value"] == pytest.approx(spread + shift, rel=1e-6)
    assert (
        summary["frechet_distance"]["features"]
        == summary["classifier_score"]["features"]
        == "brightness"
    )
    assert summary["frechet_distance"]["images"] == 20
    assert 1 < summary["classifier_score"]["value"] < 2


def test_distance_and_score_are_fid_and_is_of_the_inception_network_alone():
    judge = Judge(extractor=Extractor(Brightness(), "stands for it", is_inception=True))
    judge.compare(scenes(10), scenes(10))
    summary = judge.summary()
    assert summary["rfid"]["value"] == pytest.approx(0, abs=1e-9)
    assert summary["r_is"]["parts"] == 10
    assert not summary.keys() & {"frechet_distance", "classifier_score"}


def test_few_images_have_no_score():
    judge = Judge(extractor=Extractor(Brightness(), "brightness", is_inception=False))
    judge.compare(scenes(1), scenes(1))
    left_out = judge.summary()["left_out"]
    assert "two images" in left_out["frechet_distance"]
    assert "10 images" in left_out["classifier_score"]


def test_a_network_of_features_comes_from_a_file(tmp_path):
    file = tmp_path / "features.yaml"
    file.write_text("target: torch.nn.Flatten\nparams: {start_dim: 1}\n")
    extractor = configured_extractor(file, CPU)
    assert extractor.label == "torch.nn.Flatten {'start_dim': 1}"
    assert not extractor.is_inception
    assert extractor(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))[0].shape == (2, 48)
    file.write_text("target: torch.nn.Identity\n")
    with pytest.raises(ConfigError, match=r"expected features \(B, D\)"):
        configured_extractor(file, CPU)(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    file.write_text("target: torch.Size\n")
    with pytest.raises(ConfigError, match="features"):
        configured_extractor(file, CPU)


def test_weights_that_are_not_there_are_named(tmp_path):
    for make, flag in ((inception, "--inception-weights"), (lpips_of, "--lpips-weights")):
        with pytest.raises(ConfigError, match=f"{flag} .*no such file"):
            make(tmp_path / "none.pth", CPU)
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match=r"--lpips-weights .*other\.pth: does not fit"):
        lpips_of(other, CPU)
    other.write_text("no weights")
    with pytest.raises(ConfigError, match=r"--lpips-weights .*other\.pth: does not fit"):
        lpips_of(other, CPU)


def test_lpips_of_a_file_is_measured(tmp_path):
    network = LPIPS()
    torch.save(network.state_dict(), tmp_path / "lpips.pth")
    judge = Judge(lpips=lpips_of(tmp_path / "lpips.pth", CPU))
    images = scenes(2)
    same, changed = judge.compare(images, images), judge.compare(images, images // 2)
    assert [each["lpips"] for each in same] == [0, 0]
    with torch.no_grad():
        network.load_state_dict(network.state_dict())  # these weights are meant
        expected = network(to_image_tensor(images), to_image_tensor(images // 2)).flatten()
    assert [each["lpips"] for each in changed] == pytest.approx(expected.tolist(), rel=1e-5)
    assert judge.summary()["lpips"]["images"] == 4
