"""Many images as one array: which jobs can have it, found before anything is drawn."""

import numpy as np
import pytest
from PIL import Image

from ldm.cli.sampling.arrays import write_npz
from ldm.cli.sampling.image_to_image import ImageToImage
from ldm.cli.sampling.superres import Superres
from ldm.config import ConfigError, instantiate_model
from tests.cli.jobs import draw
from tests.cli.runs import unconditional

IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


@pytest.fixture(scope="module")
def model():
    block = unconditional()["model"]
    return instantiate_model(block).eval()


def save(place, **sizes):
    place.mkdir()
    for name, (height, width) in sizes.items():
        Image.new("RGB", (width, height)).save(place / f"{name}.png")
    return place


def test_images_of_several_sizes_are_refused_before_they_are_drawn(model, tmp_path):
    given = save(tmp_path / "in", a=(16, 16), b=(16, 24), c=(16, 16))
    words = [given, "--steps", 2, "--npz"]
    with pytest.raises(ConfigError, match=r"--npz: .* at 16 x 16 and some at 16 x 24 pixels"):
        draw(model, tmp_path / "out", *words, task=ImageToImage())
    assert not list((tmp_path / "out").iterdir())
    draw(model, tmp_path / "one", *words, "--size", 16, 16, task=ImageToImage())
    assert np.load(tmp_path / "one/images.npz")["arr_0"].shape == (3, 16, 16, 3)


def test_of_enlarged_images_the_size_that_they_are_cut_to_counts(model, tmp_path):
    words = ["--guide", "l2", "--factor", 2, "--steps", 2, "--npz"]
    given = save(tmp_path / "in", a=(7, 8), b=(8, 8))  # both drawn as 16 x 16
    with pytest.raises(ConfigError, match=r"--npz: .* at 14 x 16 and some at 16 x 16 pixels"):
        draw(model, tmp_path / "out", given, *words, task=Superres())
    same = save(tmp_path / "same", a=(7, 8), b=(7, 8))
    draw(model, tmp_path / "one", same, *words, task=Superres())
    assert np.load(tmp_path / "one/images.npz")["arr_0"].shape == (2, 14, 16, 3)


def test_an_array_holds_the_images(tmp_path):
    write_npz(IMAGES, IMAGES.shape, tmp_path / "a.npz")
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], IMAGES)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 4, 3, 3), r"image 0 is \(3, 4, 3\)"), ((3, 3, 4, 3), "there are 2 images, expected 3")],
)
def test_an_array_that_cannot_be_written_leaves_nothing(tmp_path, shape, expected):
    with pytest.raises(ValueError, match=expected):
        write_npz(IMAGES, shape, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
