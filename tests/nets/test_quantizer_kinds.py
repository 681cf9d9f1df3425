"""What is particular to each kind: moving averages, one learned layer, a grid, drawn codes."""

import itertools
import math

import pytest
import torch

from ldm.nets.quantizer_ema import EMAVectorQuantizer
from ldm.nets.quantizer_fsq import FSQ
from ldm.nets.quantizer_gumbel import CosineAnnealing, GumbelQuantizer, to_gumbel
from ldm.nets.quantizer_simvq import SimVQ
from tests.nets.quantizers import D, K, latents, noise, rows, train

# moving averages


def two_codes():
    """Codes at -1 and 1 on a line, decay 0.9, no smoothing to speak of."""
    quantizer = EMAVectorQuantizer(2, 1, decay=0.9, epsilon=1e-12)
    start = torch.tensor([[-1.0], [1.0]])
    quantizer.embedding.weight.copy_(start)
    quantizer.cluster_sum.copy_(start)
    return quantizer


@pytest.mark.parametrize("n", [1, 2, 7])
def test_codes_after_equal_batches_are_the_closed_form_average(n):
    quantizer = two_codes()
    z = torch.tensor([-3.0, -2.0, -1.0, 4.0]).view(1, 1, 2, 2).requires_grad_()
    for _ in range(n):
        train(quantizer, [z])
    kept = 0.9**n
    size = kept + (1 - kept) * torch.tensor([3.0, 1.0])
    total = kept * torch.tensor([-1.0, 1.0]) + (1 - kept) * torch.tensor([-6.0, 4.0])
    torch.testing.assert_close(quantizer.cluster_size, size)
    torch.testing.assert_close(quantizer.cluster_sum[:, 0], total)
    torch.testing.assert_close(quantizer.codes()[:, 0], total / size)


def test_smoothing_is_laplace_s():
    quantizer = two_codes()
    quantizer.epsilon = 0.5
    train(quantizer, [torch.tensor([4.0]).view(1, 1, 1, 1).requires_grad_()])
    size = torch.tensor([0.9, 1.0])
    smooth = (size + 0.5) / (1.9 + 2 * 0.5) * 1.9
    total = torch.tensor([-0.9, 0.9 + 0.4])
    torch.testing.assert_close(quantizer.codes()[:, 0], total / smooth)


def test_a_code_without_latents_is_not_drawn_to_the_origin():
    quantizer = two_codes()
    quantizer.epsilon = 1e-5
    z = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    for _ in range(300):  # 0.9^300 is far below the smoothing
        train(quantizer, [z])
    assert quantizer.cluster_size[0] < 1e-10
    assert quantizer.codes()[0] < -0.49  # smoothing halves it while N sinks to epsilon
    assert quantizer.codes()[1] == pytest.approx(3.0, rel=1e-3)


def test_passes_of_one_step_move_the_averages_once():
    one, two = two_codes(), two_codes()
    train(one, [latents(channels=1, batch=2)])
    train(two, [z.detach().requires_grad_() for z in latents(channels=1, batch=2).split(1)])
    torch.testing.assert_close(one.codes(), two.codes())


def test_only_the_commitment_has_a_gradient():
    quantizer, z = EMAVectorQuantizer(K, D, beta=0.3), latents()
    assert list(quantizer.parameters()) == []
    quantized, loss, _ = quantizer(z)
    (gradient,) = torch.autograd.grad(loss, z)
    error = (z - quantized).detach()
    torch.testing.assert_close(gradient, 0.3 * 2 * error / z.numel())
    torch.testing.assert_close(loss, 0.3 * error.square().mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"decay": 1.0}, "decay=1.0"), ({"epsilon": 0.0}, "epsilon=0.0: expected a number above 0")],
)
def test_averages_that_never_move_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EMAVectorQuantizer(2, 1, **changes)


# SimVQ


def test_only_the_layer_of_simvq_moves_and_it_moves_every_code():
    torch.manual_seed(0)
    quantizer = SimVQ(K, D)
    assert [name for name, _ in quantizer.named_parameters()] == ["projection.weight"]
    before, frozen = quantizer.codes().detach(), quantizer.codebook.clone()
    torch.testing.assert_close(before, frozen)  # W starts as the identity
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    train(quantizer, [latents(batch=1)[:, :, :1, :1].detach().requires_grad_()], optimizer)
    assert torch.equal(quantizer.codebook, frozen)
    assert (quantizer.codes() - before).norm(dim=1).min() > 0
    torch.testing.assert_close(quantizer.codes(), frozen @ quantizer.projection.weight.T)


def test_simvq_weighs_codebook_and_commitment_as_the_paper():
    torch.manual_seed(0)
    quantizer, z = SimVQ(K, D, beta=0.25), latents()
    quantized, loss, _ = quantizer(z)
    error = (z - quantized).detach()
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradient, 0.25 * 2 * error / z.numel())
    torch.testing.assert_close(loss, 1.25 * error.square().mean())


# finite scalars

LEVELS = pytest.mark.parametrize("levels", [[2], [3], [8, 5, 5], [4, 2, 3], [7, 6, 2, 2]])


def grid(levels):
    """The integers of every channel over half the levels, all combinations."""
    each = [[(i - n // 2) / (n // 2) for i in range(n)] for n in levels]
    return {tuple(row) for row in torch.tensor(list(itertools.product(*each))).tolist()}


@LEVELS
def test_grid_has_as_many_codes_as_the_product_of_its_levels(levels):
    quantizer = FSQ(levels)
    assert quantizer.num_codes == math.prod(levels)
    assert quantizer.e_dim == len(levels)
    codes = quantizer.codes()
    assert codes.shape == (math.prod(levels), len(levels))
    assert {tuple(row) for row in codes.tolist()} == grid(levels)
    assert list(quantizer.state_dict()) == []


@LEVELS
def test_every_code_of_the_grid_can_be_reached_and_comes_back(levels):
    quantizer = FSQ(levels)
    want = quantizer.codes()
    half, offset, shift = quantizer.bounds.double()
    # the latent in the middle of each cell of the bound, the outermost ones far outside
    middle = (want.double() * quantizer.half_width + offset) / half
    z = (torch.atanh(middle.clamp(-1 + 1e-12, 1 - 1e-12)) - shift).float()
    quantized, loss, (_, _, codes) = quantizer(z[:, :, None, None])
    assert codes.tolist() == list(range(quantizer.num_codes))
    torch.testing.assert_close(quantized[:, :, 0, 0], want)
    assert torch.equal(quantizer.get_codebook_entry(codes), want)
    assert loss == 0


def test_indices_are_numbers_of_mixed_radix_by_hand():
    quantizer = FSQ([3, 4])
    # channel 0 has -1, 0, 1; channel 1 has -2, -1, 0, 1 over 2
    assert quantizer.get_codebook_entry(torch.tensor([0, 5, 11])).tolist() == [
        [-1.0, -1.0],
        [1.0, -0.5],
        [1.0, 0.5],
    ]


@pytest.mark.parametrize("levels", [3, 4, 5, 8])
def test_the_origin_is_the_code_of_zero(levels):
    quantizer = FSQ([levels])
    assert quantizer(torch.zeros(1, 1, 1, 1))[0].item() == 0
    nudged = quantizer(torch.full((1, 1, 1, 1), 1e-3))[0].item()
    assert nudged == 0  # well inside its cell


def test_levels_are_an_even_or_odd_number_of_integers():
    far = torch.linspace(-20, 20, 4001).view(1, 1, 1, -1)
    even, odd = (FSQ([levels])(far)[0].unique().tolist() for levels in (4, 5))
    assert even == [-1.0, -0.5, 0.0, 0.5]
    assert odd == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_gradient_is_that_of_the_bound():
    quantizer = FSQ([5])
    z = torch.tensor([0.3]).view(1, 1, 1, 1).requires_grad_()
    quantizer(z)[0].sum().backward()
    # d/dz h tanh(z) / 2, h = (5 - 1) / 2 less a thousandth
    want = 2 * 0.999 * (1 - math.tanh(0.3) ** 2) / 2
    assert z.grad.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("levels", [[], [8, 1], [2] * 63])
def test_levels_that_make_no_grid_are_refused(levels):
    with pytest.raises(ValueError, match="levels="):
        FSQ(levels)


# drawn codes


def test_codes_are_drawn_with_the_probabilities_of_their_logits():
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(4, 2).train()
    z = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).expand(1, 2, 200, 200)
    codes = quantizer(z, noise(quantizer, z))[2][2]
    p = quantizer.projection(torch.tensor([0.5, -1.0])).softmax(dim=0)
    shares = torch.bincount(codes, minlength=4) / len(codes)
    deviation = (p * (1 - p) / len(codes)).sqrt()
    assert ((shares - p).abs() < 4 * deviation).all()


def test_gumbel_numbers_have_their_quantiles_far_out_too():
    # P(g < x) = exp(-exp(-x)), P(n < x) = Phi(x)
    normal = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0])
    want = -torch.log(-torch.special.log_ndtr(normal.double()))
    assert want[2] == pytest.approx(-math.log(math.log(2)))
    assert want[4] == pytest.approx(-math.log(2.8665157e-7), rel=1e-6)  # of the upper tail at 5
    torch.testing.assert_close(to_gumbel(normal), want.float(), rtol=1e-5, atol=1e-6)


def test_codes_are_those_of_the_noise_and_without_it_the_most_likely():
    torch.manual_seed(0)
    quantizer, z = GumbelQuantizer(K, D).train(), latents()
    draws = [quantizer(z, noise(quantizer, z, seed))[2][2] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    quantized, _, (_, _, codes) = quantizer(z)
    assert torch.equal(codes, quantizer.projection(rows(z)).argmax(dim=1))
    torch.testing.assert_close(rows(quantized), quantizer.embedding.weight[codes])


def test_hard_samples_are_codes_and_soft_ones_are_means_of_codes():
    torch.manual_seed(0)
    hard, soft = (GumbelQuantizer(K, D, straight_through=hard) for hard in (True, False))
    soft.load_state_dict(hard.state_dict())
    results, z = [], latents()
    for quantizer in (hard, soft):
        quantized, _, (_, _, codes) = quantizer.train()(z, noise(quantizer, z))
        results.append((rows(quantized), codes, quantizer.get_codebook_entry(codes)))
    torch.testing.assert_close(results[0][0], results[0][2])
    assert torch.equal(results[0][1], results[1][1])  # the same draw
    assert (results[1][0] - results[1][2]).abs().max() > 0.1


def test_sample_is_the_softmax_of_logits_with_noise_over_the_temperature():
    torch.manual_seed(0)
    quantizer, z = GumbelQuantizer(K, D, temperature=0.5, straight_through=False), latents()
    normal = noise(quantizer, z)
    logits = quantizer.projection(z.permute(0, 2, 3, 1)) + to_gumbel(normal)
    want = (2 * logits).softmax(dim=-1) @ quantizer.embedding.weight
    torch.testing.assert_close(quantizer(z, normal)[0], want.permute(0, 3, 1, 2))


def test_evaluation_takes_the_largest_logit():
    torch.manual_seed(0)
    quantizer, z = GumbelQuantizer(K, D).eval(), latents()
    quantized, _, (_, _, codes) = quantizer(z)
    assert torch.equal(codes, quantizer.projection(rows(z)).argmax(dim=1))
    assert torch.equal(rows(quantized), quantizer.embedding.weight[codes])


def test_loss_is_the_divergence_from_uniform():
    quantizer = GumbelQuantizer(4, 2, kl_weight=0.5).eval()
    torch.nn.init.zeros_(quantizer.projection.weight)
    z = torch.zeros(1, 2, 1, 1)
    for p in ([0.25] * 4, [0.5, 0.25, 0.125, 0.125]):
        p = torch.tensor(p)
        with torch.no_grad():
            quantizer.projection.bias.copy_(p.log())
        want = 0.5 * (p * (4 * p).log()).sum()
        torch.testing.assert_close(quantizer(z)[1], want, rtol=1e-5, atol=1e-7)


def test_temperature_is_half_a_cosine_of_the_step():
    annealing = CosineAnnealing(start=2.0, end=1.0, steps=100)
    assert [annealing(step) for step in (0, 50, 100, 500)] == pytest.approx([2.0, 1.5, 1.0, 1.0])
    quantizer = GumbelQuantizer(4, 2, temperature=annealing)
    assert quantizer.temperature == 2.0
    quantizer.begin_step(50)
    assert quantizer.temperature == pytest.approx(1.5)
    constant = GumbelQuantizer(4, 2, temperature=0.7)
    constant.begin_step(10**6)
    assert constant.temperature == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GumbelQuantizer(4, 2, temperature=0), "temperature=0: expected a number above 0"),
        (lambda: CosineAnnealing(end=0.0), "end=0.0: a temperature is above 0"),
    ],
)
def test_a_temperature_of_zero_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
