"""A way from the noise of one seed to that of another."""

import numpy as np
import pytest
import torch

from ldm.config import ConfigError
from ldm.diffusion.interpolation import slerp
from ldm.models.diffusion.sampling import starting_noise
from ldm.samplers.ddim import DDIM
from ldm.tensor import to_uint8
from tests.cli.jobs import job


def drawn(model, out, *words, seed=0):
    made = job(model, out, "--steps", 3, *words, seed=seed)
    return np.stack(made.draw(range(len(made.items))))


def test_both_ends_are_the_images_of_their_seeds_and_all_between_differ(plain, tmp_path):
    way = drawn(plain, tmp_path, "--between", 5, 17, "--n", 4)
    assert np.array_equal(way[0], drawn(plain, tmp_path, "--n", 4, seed=5)[0])
    assert np.array_equal(way[3], drawn(plain, tmp_path, "--n", 4, seed=14)[3])
    assert len({image.tobytes() for image in way}) == 4


def test_shares_are_equal_and_of_the_noise_itself(plain, tmp_path):
    way = drawn(plain, tmp_path, "--between", 5, 17, "--n", 5, "--size", 16, 24)
    first, last = (starting_noise(plain, [seed], (8, 12)) for seed in (5, 17))
    noise = torch.cat([slerp(first, last, share) for share in (0, 0.25, 0.5, 0.75, 1)])
    want = plain.sample([5] * 5, steps=3, size=(8, 12), noise=noise)
    assert np.array_equal(way, to_uint8(want))


def test_noise_on_the_way_is_that_of_the_first_seed(plain, tmp_path):
    way = drawn(plain, tmp_path, "--between", 5, 17, "--n", 2, "--eta", 1)
    noise = starting_noise(plain, [5, 17])
    want = to_uint8(plain.sample([5, 5], steps=3, sampler=DDIM(eta=1.0), noise=noise))
    assert np.array_equal(way, want)


def test_every_class_goes_the_whole_way(by_class, tmp_path):
    words = ["--classes", 3, 7, "--between", 5, 17, "--n", 3]
    items = job(by_class, tmp_path, *words).items
    way = [{"seed": 5, "towards": [17, share]} for share in (0.0, 0.5, 1.0)]
    assert items == [{"class_label": label, **each} for label in (3, 7) for each in way]
    images = drawn(by_class, tmp_path, *words)
    alone = drawn(by_class, tmp_path, "--classes", 7, "--between", 5, 17, "--n", 3)
    assert np.abs(images[3:].astype(int) - alone).max() <= 1
    assert not np.array_equal(images[:3], images[3:])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--between", -1, 3], "--between -1 3: expected seeds, 0 or more"),
        (["--between", 1, 3, "--n", 1], "--n 1: expected 2 or more"),
        (["--between", 1, 3], "--seed 4 and --between: seeds are those of --between"),
    ],
)
def test_a_way_that_is_none_is_refused(plain, tmp_path, words, expected):
    with pytest.raises(ConfigError, match=expected):
        job(plain, tmp_path, *words, seed=4 if "--seed 4" in expected else 0)
