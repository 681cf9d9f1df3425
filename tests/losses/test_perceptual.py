"""LPIPS: published values, the package's values, and where its weights come from."""

import warnings

import pytest
import torch

from ldm.losses.perceptual import LPIPS, VGG16_FILE
from tests.reference import Case, fill, key_crc32, rule_weight

NO_WEIGHTS = "LPIPS has no weights: vgg16-397923af.pth"


def rule_state(module):
    """The rule's weights as a state dict, which is how weights are brought."""
    fill(module)
    return module.state_dict()


@pytest.fixture(scope="module")
def lpips():
    metric = LPIPS()
    metric.load_state_dict(rule_state(LPIPS()))
    return metric


@pytest.fixture(autouse=True)
def empty_hub_cache(monkeypatch, tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache))
    return cache


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory):
    """torchvision's layout with weights by rule."""
    state = {}
    for name, value in LPIPS().net.state_dict().items():
        key = "features." + name.split(".", 1)[1]
        state[key] = torch.from_numpy(rule_weight(key, value.shape))
    path = tmp_path_factory.mktemp("vgg") / VGG16_FILE
    torch.save(state, path)
    return path


def images(channels=3, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 2, channels, size, size, generator=generator).mul(2).sub(1)


def test_distance_equals_published_value(lpips):
    case = Case("g_losses", "lpips")
    assert key_crc32(lpips) == case.spec["rule_filled"][0]["key_crc32"]
    case.check("distance", lpips(case.input("image_a"), case.input("image_b")))


@pytest.mark.slow
def test_distance_and_gradient_equal_the_lpips_package(vgg16_file):
    package = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecation of `pretrained`
        reference = package.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    ours = LPIPS(vgg16_file)
    missing = reference.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert all(name.startswith("lin") for name in missing)  # the same heads, listed twice
    a, b = images()
    gradients = []
    for metric in (ours, reference):
        leaf = b.clone().requires_grad_()
        distance = metric(a, leaf)
        gradients.append((distance, *torch.autograd.grad(distance.sum(), leaf)))
    # float32 sums over channels and pixels in another order
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_distance_of_equal_images_is_zero_with_a_finite_gradient(lpips):
    a = torch.zeros(1, 3, 32, 32)
    leaf = a.clone().requires_grad_()
    distance = lpips(a, leaf)
    distance.sum().backward()
    assert distance.item() == 0
    assert torch.isfinite(leaf.grad).all()


def test_grey_images_count_as_three_equal_channels(lpips):
    a, b = images(channels=1)
    torch.testing.assert_close(lpips(a, b), lpips(a.expand(-1, 3, -1, -1), b.repeat(1, 3, 1, 1)))


def test_images_of_other_channel_counts_are_an_error_that_names_the_switch(lpips):
    with pytest.raises(ValueError, match=r"got 4.*perceptual_weight: 0"):
        lpips(*images(channels=4))


def chosen(lpips, channels):
    """The same metric for other channels."""
    metric = LPIPS(lpips_channels=channels)
    metric.load_state_dict(lpips.state_dict())
    return metric


@pytest.mark.parametrize("channels", [[3, 2, 1], [0, 0, 4], (0, 1, 2)])
def test_chosen_channels_are_red_green_and_blue(lpips, channels):
    a, b = images(channels=5)
    expected = lpips(a[:, list(channels)], b[:, list(channels)])
    torch.testing.assert_close(chosen(lpips, channels)(a, b), expected)


def test_the_other_channels_do_not_count(lpips):
    a, b = images(channels=5)
    changed = b.clone().requires_grad_()
    with torch.no_grad():
        changed[:, [0, 4]] += 1
    distance = chosen(lpips, [3, 2, 1])(a, changed)
    torch.testing.assert_close(distance, chosen(lpips, [3, 2, 1])(a, b))
    (gradient,) = torch.autograd.grad(distance.sum(), changed)
    assert [bool(page.any()) for page in gradient.transpose(0, 1)] == [False] + [True] * 3 + [False]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_distance_of_each_channel_is_that_of_grey_images_and_the_mean_is_taken(lpips, channels):
    a, b = images(channels=channels)
    expected = sum(lpips(a[:, i : i + 1], b[:, i : i + 1]) for i in range(channels)) / channels
    distance = chosen(lpips, "each")(a, b)
    assert distance.shape == (2, 1, 1, 1)
    torch.testing.assert_close(distance, expected)


def test_chosen_channels_that_images_do_not_have_are_named(lpips):
    with pytest.raises(ValueError, match=r"lpips_channels=\[3, 2, 1\]: images have 3 channels.* 2"):
        chosen(lpips, [3, 2, 1])(*images())


@pytest.mark.parametrize("channels", ["all", [0, 1], [0, 1, 2, 3], [-1, 0, 1], []])
def test_a_choice_of_other_than_three_channels_is_refused(channels):
    with pytest.raises(ValueError, match="expected three channels, counted from 0, or 'each'"):
        LPIPS(lpips_channels=channels)


def test_metric_stays_frozen_and_in_eval_mode(lpips):
    lpips.train()
    assert not any(module.training for module in lpips.modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_inputs_get_no_graph(lpips):
    a, b = images()
    a.requires_grad_()
    assert not lpips(a, b).requires_grad


def test_file_of_vgg16_brings_the_features_and_the_package_the_heads(vgg16_file):
    state = LPIPS(vgg16_file).state_dict()
    torch.testing.assert_close(
        state["net.slice3.12.bias"], torch.from_numpy(rule_weight("features.12.bias", (256,)))
    )
    assert (state["lin4.model.1.weight"] >= 0).all()  # LPIPS constrains its heads
    assert state["lin4.model.1.weight"].sum() > 0


def test_file_in_the_hub_cache_is_found(vgg16_file, empty_hub_cache):
    cached = empty_hub_cache / "checkpoints" / VGG16_FILE
    cached.parent.mkdir()
    cached.write_bytes(vgg16_file.read_bytes())
    LPIPS().require_weights()


def test_complete_lpips_file_is_accepted(lpips, tmp_path):
    torch.save(lpips.state_dict(), tmp_path / "lpips.pth")
    a, b = images()
    torch.testing.assert_close(LPIPS(tmp_path / "lpips.pth")(a, b), lpips(a, b))


def test_checkpoint_brings_the_weights(lpips):
    restored = torch.nn.ModuleDict({"perceptual_loss": LPIPS()})
    restored.load_state_dict({f"perceptual_loss.{k}": v for k, v in lpips.state_dict().items()})
    restored["perceptual_loss"].require_weights()


def test_checkpoint_without_a_weight_does_not_count(lpips):
    state = lpips.state_dict()
    del state["lin2.model.1.weight"]
    restored = LPIPS()
    restored.load_state_dict(state, strict=False)
    with pytest.raises(ValueError, match=NO_WEIGHTS):
        restored.require_weights()


def test_missing_weights_are_an_error_that_names_file_place_and_switch(empty_hub_cache):
    with pytest.raises(ValueError, match=NO_WEIGHTS) as error:
        LPIPS()(*images())
    assert str(empty_hub_cache / "checkpoints" / VGG16_FILE) in str(error.value)
    assert "perceptual_weight: 0" in str(error.value)


def test_missing_named_file_is_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth"):
        LPIPS(tmp_path / "nowhere.pth")


def test_file_of_another_network_is_an_error(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"neither torchvision's VGG16.*slice1\.0\.bias"):
        LPIPS(tmp_path / "other.pth")


def test_metric_builds_on_the_meta_device(vgg16_file):
    with torch.device("meta"):
        assert all(p.is_meta for p in LPIPS(vgg16_file).parameters())
