import pytest
import torch

from ldm.nets.quantizer import VectorQuantizer
from ldm.nets.quantizer_base import nearest_codes


def make(**arguments):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(**{"n_e": 10, "e_dim": 3, **arguments})
    torch.nn.init.normal_(quantizer.embedding.weight)
    return quantizer


def latents():
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, 5, requires_grad=True)


def test_every_vector_becomes_the_nearest_code():
    quantizer, z = make(), latents()
    quantized, _, (_, _, indices) = quantizer(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 3)
    distances = (vectors[:, None] - quantizer.embedding.weight).norm(dim=2)
    assert torch.equal(indices, distances.argmin(dim=1))
    codes = quantizer.get_codebook_entry(indices, (2, 4, 5, 3))
    torch.testing.assert_close(quantized, codes)


def test_distances_taken_in_parts_find_the_same_codes():
    codes, z = make().codes(), latents().permute(0, 2, 3, 1)
    assert torch.equal(nearest_codes(z, codes, max_distances=70), nearest_codes(z, codes))


def test_of_codes_equally_near_the_first_is_taken():
    codes = torch.tensor([[1.0], [0.0], [0.0]])
    assert nearest_codes(torch.tensor([0.1, 0.5, 0.9])[:, None], codes).tolist() == [1, 0, 0]


def test_gradient_goes_straight_through():
    quantized, z = None, latents()
    quantized = make()(z)[0]
    cotangent = torch.randn_like(quantized)
    (gradient,) = torch.autograd.grad(quantized, z, cotangent)
    assert torch.equal(gradient, cotangent)


@pytest.mark.parametrize("legacy", [True, False])
def test_beta_weighs_the_term_that_legacy_says(legacy):
    quantizer, z = make(beta=0.25, legacy=legacy), latents()
    quantized, loss, _ = quantizer(z)
    to_z, to_codes = torch.autograd.grad(loss, (z, quantizer.embedding.weight))
    weight_z, weight_codes = (1, 0.25) if legacy else (0.25, 1)
    error = (z - quantized).detach()
    torch.testing.assert_close(to_z, weight_z * 2 * error / z.numel())
    torch.testing.assert_close(
        to_codes.sum(dim=0), -weight_codes * 2 * error.sum(dim=(0, 2, 3)) / z.numel()
    )
    torch.testing.assert_close(loss, 1.25 * error.square().mean())


def test_indices_may_keep_the_shape_of_the_latent():
    z = latents()
    flat, shaped = (make(sane_index_shape=sane)(z)[2][2] for sane in (False, True))
    assert shaped.shape == (2, 4, 5)
    assert torch.equal(shaped.flatten(), flat)


def test_half_precision_finds_the_same_codes_and_keeps_its_type():
    quantizer, z = make(n_e=500), latents().detach().bfloat16()
    want = quantizer(z.float())[2][2]
    with torch.autocast("cpu", torch.bfloat16):
        quantized, loss, (_, _, indices) = quantizer(z)
    assert torch.equal(indices, want)
    assert quantized.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("unknown", "expected"), [("extra", 3), (1, 1)])
def test_remapped_indices_count_the_codes_in_use(unknown, expected):
    used = torch.tensor([7, 2, 5])
    plain, remapped = make(), make(remap=used, unknown_index=unknown)
    z = latents()
    indices, positions = plain(z)[2][2], remapped(z)[2][2]
    known = torch.isin(indices, used)
    assert 0 < known.sum() < len(known)
    assert torch.equal(used[positions[known]], indices[known])
    assert (positions[~known] == expected).all()
    assert torch.equal(remapped.unmap_to_all(positions)[known], indices[known])
    assert remapped.re_embed == 3 + (unknown == "extra")


def test_an_unused_code_may_become_a_random_one_in_use():
    quantizer = make(remap=torch.tensor([7, 2, 5]))
    positions = quantizer.remap_to_used(torch.zeros(1000, dtype=torch.long))
    assert set(positions.tolist()) == {0, 1, 2}


def test_the_extra_position_becomes_the_first_code_in_use():
    quantizer = make(remap=torch.tensor([7, 2]), unknown_index="extra")
    codes = quantizer.get_codebook_entry(torch.tensor([0, 1, 2]))
    assert torch.equal(codes, quantizer.embedding.weight[[7, 2, 7]])


def test_latents_of_another_width_are_refused():
    with pytest.raises(ValueError, match="latents have 4 channels, the codes have 3"):
        make()(torch.zeros(1, 4, 2, 2))


def test_an_unknown_index_that_is_no_index_is_refused():
    with pytest.raises(ValueError, match="unknown_index='first': expected a number, 'extra'"):
        make(remap=torch.tensor([7, 2]), unknown_index="first")
