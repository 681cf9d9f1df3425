"""What is found without numbers is what a step of real numbers takes."""

import warnings

import pytest
import torch

from ldm.activations import (
    _gradients,
    autocast_dtype,
    checkpointed,
    is_checkpointed,
    measured,
    saved_bytes,
    step_memory,
)
from ldm.data.module import collate
from ldm.losses.perceptual import LPIPS
from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion_models import ON_META, Pictures, by_class, kl, latent, parameters, unet
from tests.models.first_stages import tiny_kl, tiny_vq

SIZE = 4
NARROW = unet(model_channels=32, use_spatial_transformer=True, context_dim=8)


def examples(count, side=8):
    pictures = Pictures(count, side)
    return collate([pictures[index] for index in range(count)])


def second_stage():
    return latent(by_class(first_stage_config=kl(), unet_config=NARROW))


def narrow():
    """A second stage of few layers."""
    return latent(unet_config=unet(channel_mult=[1], attention_resolutions=[1]))


def real(model, batches, precision):
    """The same of a step that is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of logging without a trainer
        cpu, dtype = torch.device("cpu"), autocast_dtype(precision)
        return measured(model, lambda: _gradients(model, batches, cpu, dtype))


MAKERS = {
    "second stage": second_stage,
    "kl": tiny_kl,
    "vq": tiny_vq,
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("second stage", "32-true"),
        ("second stage", "bf16-mixed"),
        ("kl", "32-true"),
        ("vq", "bf16-mixed"),
    ],
)
def test_a_step_without_numbers_takes_what_a_real_one_does(name, precision):
    model = MAKERS[name]()
    batches = [examples(4)] * (2 if name == "kl" else 1)
    found = step_memory(model, batches, precision=precision)
    expected = real(model, batches, precision)
    assert found.saved == pytest.approx(expected.saved, rel=0.02)
    assert found.peak == pytest.approx(expected.peak, rel=0.1 if "bf16" in precision else 0.01)


def test_saved_tensors_are_counted_once_and_weights_not_at_all():
    layer = torch.nn.Linear(16, 16, bias=False)
    x = torch.randn(4, 16)

    def step():
        y = layer(x)  # saves x and the weight
        (y.sigmoid() * y.sigmoid()).sum().backward()  # saves two results, each of them twice

    assert measured(layer, step).saved == 3 * x.numel() * 4


def test_recomputing_saves_as_much_as_it_does_in_a_real_step():
    model = narrow()
    assert is_checkpointed(model) is False
    batch = examples(SIZE)
    found = {on: saved_bytes(model, batch, checkpointing=on) for on in (False, True)}
    assert found[True] < found[False] / 2
    with checkpointed(model, True):
        assert is_checkpointed(model)
        assert real(model, [batch], "32-true").saved == pytest.approx(found[True], rel=0.01)
    assert is_checkpointed(model) is False
    assert is_checkpointed(tiny_kl()) is None


def test_half_a_batch_saves_half():
    model = narrow()
    whole, half = (saved_bytes(model, examples(n)) for n in (SIZE, SIZE // 2))
    assert half == pytest.approx(whole / 2, rel=0.01)


def test_a_model_on_the_meta_device_takes_the_same_and_all_stay_as_they_are():
    with ON_META:
        shapes = LatentDiffusion(**parameters(unet_config=unet(channel_mult=[1])))
    model = latent(unet_config=unet(channel_mult=[1])).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learned = list(map(id, model.parameters()))
    batch = examples(2)
    assert step_memory(shapes, [batch]) == step_memory(model, [batch])
    assert not model.training
    assert model.device == torch.device("cpu")
    assert list(map(id, model.parameters())) == learned
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in shapes.parameters())


def test_validation_keeps_nothing():
    model = narrow()
    found = step_memory(model, [examples(SIZE)], trains=False)
    assert found.saved == 0
    assert 0 < found.peak < step_memory(model, [examples(SIZE)]).peak


def test_a_step_that_cannot_be_followed_says_so():
    model = tiny_kl({"perceptual_weight": 1.0})
    model.loss.perceptual_loss = LPIPS(weights=None)
    model.loss.perceptual_loss._has_weights = False
    with pytest.raises(ValueError, match="weights"):
        step_memory(model, [examples(2, 16)])
