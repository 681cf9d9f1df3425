"""Random numbers by name: functions of (seed, step, key, stream) and of nothing else."""

import numpy as np
import pytest
import torch

from ldm.diffusion.draws import GeneratorDraws, KeyedDraws, normal_like

KEYS = [3, 14, 15, 92, 65]


def both(draws, stream="a"):
    return torch.cat([draws.normal((2, 3), stream).flatten(1), draws.uniform(stream)[:, None]], 1)


def test_an_examples_numbers_do_not_depend_on_its_batch():
    together = both(KeyedDraws(KEYS, seed=1, step=7))
    for index, key in enumerate(KEYS):
        assert torch.equal(both(KeyedDraws([key], seed=1, step=7))[0], together[index])
    order = [4, 2, 0, 1, 3]
    shuffled = both(KeyedDraws([KEYS[i] for i in order], seed=1, step=7))
    assert torch.equal(shuffled, together[order])


@pytest.mark.parametrize(
    "other",
    [
        both(KeyedDraws(KEYS, seed=2, step=7)),
        both(KeyedDraws(KEYS, seed=1, step=8)),
        both(KeyedDraws([k + 1 for k in KEYS], seed=1, step=7)),
        both(KeyedDraws([str(k) for k in KEYS], seed=1, step=7)),
        both(KeyedDraws(KEYS, seed=1, step=7), "b"),
        both(KeyedDraws(KEYS, seed=17, step=0)),
    ],
    ids=["seed", "step", "key", "text key", "stream", "digits moved"],
)
def test_every_part_of_the_name_matters(other):
    assert (both(KeyedDraws(KEYS, seed=1, step=7)) != other).all()


def test_numpy_keys_are_the_integers_they_hold():
    assert torch.equal(both(KeyedDraws(np.array(KEYS), 1)), both(KeyedDraws(KEYS, 1)))


def test_numbers_have_the_distribution_they_are_named_for():
    draws = KeyedDraws(range(4000), seed=0)
    u, z = draws.uniform("u"), draws.normal((25,), "z")
    # 4 standard errors of each moment of 4000 uniform and 100000 normal numbers
    assert abs(u.mean() - 1 / 2) < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / 4000) ** 0.5
    assert abs(z.mean()) < 4 * 1e-5**0.5
    assert abs(z.var() - 1) < 4 * 2e-5**0.5
    assert u.min() >= 0
    assert u.max() < 1
    assert len(z.unique()) > 99_000


def test_numbers_are_the_same_on_every_machine():
    """Pinned: a change of these numbers changes what every seed draws."""
    draws = KeyedDraws([0, "cat"], seed=23, step=5)
    assert (draws.uniform("t") * 2**24).int().tolist() == [6854352, 15320016]


def test_generator_draws_follow_the_generator():
    def make():
        return GeneratorDraws(torch.Generator().manual_seed(4), batch_size=3)

    first, again = make(), make()
    assert torch.equal(first.normal((2,), "a"), again.normal((2,), "b"))
    assert torch.equal(first.uniform("a"), again.uniform("a"))
    assert first.normal((2, 2), "a").shape == (3, 2, 2)


def test_noise_like_a_tensor_has_its_shape_and_type():
    draws, x = KeyedDraws(KEYS, seed=1), torch.zeros(5, 2, 3, dtype=torch.float64)
    noise = normal_like(draws, x, "a")
    assert noise.dtype == torch.float64
    assert torch.equal(noise, draws.normal((2, 3), "a").double())


@pytest.mark.gpu
def test_noise_made_on_the_cpu_reaches_a_gpu_without_waiting_for_it():
    draws, x = KeyedDraws(KEYS, seed=1), torch.zeros(5, 2, 3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        noise = normal_like(draws, x, "a")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(noise.cpu(), draws.normal((2, 3), "a"))
