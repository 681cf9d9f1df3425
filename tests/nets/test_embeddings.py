import math

import pytest
import torch

from ldm.nets.embeddings import sine_first_timestep_embedding, timestep_embedding


@pytest.mark.parametrize("t", [0, 3, 12.5])
def test_timestep_embedding_has_cosines_then_sines(t):
    got = timestep_embedding(torch.tensor([t]), 8)[0]
    angles = [t * 10000 ** (-i / 4) for i in range(4)]
    want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(got, torch.tensor(want))


def test_sine_first_embedding_ends_its_frequencies_at_the_period():
    got = sine_first_timestep_embedding(torch.tensor([5]), 8)[0]
    angles = [5 * 10000 ** (-i / 3) for i in range(4)]
    want = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize("function", [timestep_embedding, sine_first_timestep_embedding])
def test_an_odd_width_ends_in_a_zero(function):
    got = function(torch.tensor([1, 2]), 9)
    assert got.shape == (2, 9)
    assert torch.equal(got[:, -1], torch.zeros(2))
