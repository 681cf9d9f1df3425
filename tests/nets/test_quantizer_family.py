"""What holds for every quantizer."""

import inspect

import pytest
import torch

from ldm.config.signature import parameter_problems, signature_of
from ldm.nets.quantizer import CodebookQuantizer, Cures, Quantizer, VectorQuantizer
from ldm.nets.quantizer_base import rotated
from ldm.nets.quantizer_ema import EMAVectorQuantizer
from ldm.nets.quantizer_simvq import SimVQ
from tests.nets.quantizers import QUANTIZERS, D, K, latents, made, noise, rows, train

ALL = pytest.mark.parametrize("name", QUANTIZERS)
STRAIGHT = ("published", "the paper's", "ema", "simvq")
WITH_ROTATION = {
    "published": lambda: VectorQuantizer(K, D, rotation=True),
    "ema": lambda: EMAVectorQuantizer(K, D, rotation=True),
    "simvq": lambda: SimVQ(K, D, rotation=True),
}


@ALL
def test_every_quantizer_keeps_the_interface(name):
    quantizer, z = made(name), latents()
    assert isinstance(quantizer, Quantizer)
    assert (quantizer.num_codes, quantizer.e_dim) == (K, D)
    quantized, loss, (perplexity, encodings, codes) = quantizer(z)
    assert quantized.shape == z.shape
    assert quantized.is_contiguous()
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert perplexity is None
    assert encodings is None
    assert codes.shape == (2 * 4 * 5,)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < K


@ALL
def test_indices_keep_the_shape_of_the_latent_if_asked(name):
    quantizer, z = made(name).eval(), latents()
    flat = quantizer(z)[2][2]
    quantizer.sane_index_shape = True
    shaped = quantizer(z)[2][2]
    assert shaped.shape == (2, 4, 5)
    assert torch.equal(shaped.flatten(), flat)


@ALL
def test_codes_look_up_what_was_quantized(name):
    quantizer, z = made(name).eval(), latents()
    quantized, _, (_, _, codes) = quantizer(z)
    entries = quantizer.get_codebook_entry(codes, (2, 4, 5, D))
    torch.testing.assert_close(quantized, entries, rtol=1e-5, atol=1e-6)
    assert torch.equal(quantizer.get_codebook_entry(codes), rows(entries))


@ALL
def test_evaluation_is_deterministic_and_leaves_no_trace(name):
    quantizer = made(name).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    first = quantizer(latents())
    quantizer.end_step()
    second = quantizer(latents())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2][2], second[2][2])
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@ALL
def test_passes_without_a_gradient_leave_no_trace(name):
    quantizer = made(name).train()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    with torch.no_grad():
        train(quantizer, [latents()])
    train(quantizer, [latents().detach()])
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@ALL
def test_training_draws_nothing_from_the_global_generator(name):
    states = []
    for seed in (3, 4):
        quantizer = made(name)
        parameters = list(quantizer.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
        torch.manual_seed(seed)
        for step in range(3):
            train(quantizer, [latents(step), latents(10 + step)], optimizer, step)
        states.append(quantizer.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@ALL
def test_noise_is_taken_by_those_that_draw_their_codes_in_training(name):
    quantizer, z = made(name).train(), latents()
    shape = quantizer.noise_shape(z)
    assert shape == ((4, 5, K) if name.startswith("gumbel") else None)
    assert quantizer.eval().noise_shape(z) is None
    with pytest.raises(ValueError, match="draws nothing in this mode, but got noise"):
        quantizer(z, torch.zeros(2, 4, 5, K))


@ALL
def test_state_dict_brings_the_quantizer_back(name):
    quantizer, other = made(name), made(name, seed=7)
    for step in range(2):
        train(quantizer, [latents(step)])
    other.load_state_dict(quantizer.state_dict())
    results = [q.eval()(latents(9)) for q in (quantizer, other)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][2][2], results[1][2][2])
    for q in (quantizer, other):  # and it goes on learning alike
        train(q, [latents(8)])
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@ALL
def test_gradient_reaches_the_latent(name):
    quantizer, z = made(name).train(), latents()
    quantized = quantizer(z)[0]
    (quantized * torch.randn_like(quantized)).sum().backward()
    assert z.grad.isfinite().all()
    assert (rows(z.grad).abs().sum(dim=1) > 0).float().mean() > 0.9


@ALL
@pytest.mark.parametrize(("batch", "h", "w"), [(1, 1, 1), (2, 8, 4)])
def test_shapes_are_worked_out_on_the_meta_device(name, batch, h, w):
    with torch.device("meta"):
        quantizer = QUANTIZERS[name]()
        z = torch.empty(batch, D, h, w)
        quantized, loss, (_, _, codes) = quantizer(z)
        entries = quantizer.get_codebook_entry(codes, (batch, h, w, D))
    assert quantized.shape == entries.shape == z.shape
    assert quantized.is_meta
    assert loss.shape == ()
    assert codes.shape == (batch * h * w,)


@ALL
def test_autocast_changes_nothing(name):
    quantizer, z = made(name).train(), latents()
    drawn = noise(quantizer, z)
    want = quantizer(z, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        got = quantizer(z, drawn)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    half = quantizer(z.detach().bfloat16())
    assert half[0].dtype == torch.bfloat16
    assert half[1].dtype == torch.float32


@ALL
def test_latents_of_another_width_are_refused(name):
    with pytest.raises(ValueError, match=f"latents have 5 channels, the codes have {D}"):
        made(name)(latents(channels=5))


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_through_gradient_is_the_identity(name):
    z = latents()
    quantized = made(name)(z)[0]
    cotangent = torch.randn_like(quantized)
    (gradient,) = torch.autograd.grad(quantized, z, cotangent)
    assert torch.equal(gradient, cotangent)


# the rotation trick


def test_rotation_in_the_plane_is_the_one_made_by_hand():
    # from 2 along the first axis to 1 along the second: a quarter turn and half the length
    z = torch.tensor([[2.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.0, 1.0]])
    out = rotated(z, q)
    torch.testing.assert_close(out, q)
    jacobian = torch.autograd.functional.jacobian(lambda v: rotated(v, q)[0], z.detach())[:, 0]
    torch.testing.assert_close(jacobian, torch.tensor([[0.0, -0.5], [0.5, 0.0]]))


def test_rotation_keeps_the_angle_between_gradient_and_vector():
    generator = torch.Generator().manual_seed(0)
    z, q, cotangent = torch.randn(3, 50, 6, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    out = rotated(z, q)
    torch.testing.assert_close(out, q, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(out, z, cotangent)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradient, z), cosine(cotangent, q), rtol=1e-9, atol=1e-9)
    scale = q.norm(dim=1) / z.norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), scale * cotangent.norm(dim=1))


def test_rotation_of_a_latent_at_the_origin_has_a_finite_gradient():
    z = torch.zeros(1, 3, requires_grad=True)
    out = rotated(z, torch.tensor([[1.0, 2.0, 3.0]]))
    assert out.tolist() == [[1.0, 2.0, 3.0]]
    out.sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", WITH_ROTATION)
def test_quantizer_with_rotation_gives_codes_and_the_rotated_gradient(name):
    torch.manual_seed(0)
    quantizer, z = WITH_ROTATION[name](), latents()
    quantized, _, (_, _, codes) = quantizer(z)
    entries = quantizer.get_codebook_entry(codes)
    torch.testing.assert_close(rows(quantized), entries, rtol=1e-4, atol=1e-6)
    cotangent = torch.randn_like(z)
    (gradient,) = torch.autograd.grad(quantized, z, cotangent)
    scale = entries.norm(dim=1) / rows(z).norm(dim=1)
    torch.testing.assert_close(
        rows(gradient).norm(dim=1), scale * rows(cotangent).norm(dim=1), rtol=1e-4, atol=1e-6
    )


# the unit sphere


@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
def test_codes_and_outputs_lie_on_the_unit_sphere_with_l2_norm(cls):
    torch.manual_seed(0)
    quantizer, z = cls(K, D, l2_norm=True), latents()
    for _ in range(3):
        train(quantizer, [z])
    quantized, _, (_, _, codes) = quantizer(z)
    ones = torch.ones(len(codes))
    torch.testing.assert_close(rows(quantized).norm(dim=1), ones)
    torch.testing.assert_close(quantizer.get_codebook_entry(codes).norm(dim=1), ones)
    angles = torch.nn.functional.cosine_similarity(rows(z)[:, None], quantizer.codes(), dim=2)
    assert torch.equal(codes, angles.argmax(dim=1))
    assert torch.equal(codes, quantizer(100 * z)[2][2])


@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"l2norm": True}, "got no 'l2norm'; did you mean 'l2_norm'?"),
        ({"restart": "yes"}, "restart: expected Restart or bool, got 'yes'"),
        ({"sane_index_shape": 1}, "sane_index_shape: expected bool, got 1"),
        ({"rotation": 1}, "rotation: expected bool, got 1"),
        ({"beta": -1}, "beta: expected float >= 0, got -1"),
    ],
)
def test_arguments_that_both_learned_codebooks_take_are_checked(cls, params, message):
    (problem,) = parameter_problems(cls, {"n_e": K, "e_dim": D, **params}, stage="file")
    assert message in problem


@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
def test_cures_are_listed_as_they_are_taken(cls):
    taken = inspect.signature(CodebookQuantizer).parameters
    assert Cures.__annotations__.keys() < taken.keys()
    with pytest.raises(TypeError, match="unexpected keyword argument 'l2norm'"):
        cls(K, D, l2norm=True)
    assert signature_of(cls).annotations.keys() >= Cures.__annotations__.keys()
