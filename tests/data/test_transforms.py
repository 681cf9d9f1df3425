import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data.transforms import Framing, crop, resize, side_lengths
from tests.data.photographs import gradient


def generator(seed=0):
    return np.random.default_rng(seed)


def test_centre_crop_leaves_equal_borders():
    np.testing.assert_array_equal(crop(gradient(10, 20), 4, 6), gradient(10, 20)[3:7, 7:13])


def test_random_crop_reaches_every_position():
    rows = np.arange(5, dtype=np.uint8)[:, None, None]
    tops = {int(crop(rows, 3, 1, generator(seed))[0, 0, 0]) for seed in range(50)}
    assert tops == {0, 1, 2}


@pytest.mark.parametrize(
    "interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
@pytest.mark.parametrize(("height", "width"), [(24, 30), (100, 90)])
def test_resize_is_pillows_within_one_level(interpolation, height, width):
    image = generator().integers(0, 256, (60, 72, 3), dtype=np.uint8)
    method = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(image).resize((width, height), method))
    sized = resize(image, height, width, interpolation)
    assert sized.shape == (height, width, 3)
    # torch rounds its weights to 15 bits as Pillow does to 22
    assert np.abs(sized.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_resize_keeps_a_single_channel(interpolation):
    grey = gradient(60, 72)[..., :1]
    assert resize(grey, 30, 36, interpolation).shape == (30, 36, 1)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("size", [(24, 72), (100, 200), (7, 72)])  # no middle on a border
def test_labels_are_resized_to_those_that_nearest_finds_in_bytes(dtype, size):
    labels = generator().integers(0, 256, (60, 72, 1), dtype=np.uint8)
    sized = resize(labels.astype(dtype), *size, "nearest")
    assert sized.dtype == dtype
    np.testing.assert_array_equal(sized, resize(labels, *size, "nearest"))


def test_labels_that_bytes_do_not_hold_are_kept():
    labels = np.array([[-1, 70_000], [3, 256]])[..., None]
    np.testing.assert_array_equal(resize(labels, 4, 4, "nearest")[::2, ::2], labels)
    frame = Framing.of(4, interpolation="nearest", flip_p=1)
    np.testing.assert_array_equal(frame(labels, generator())[::2, ::-2], labels)


def test_resize_leaves_a_read_only_array_alone():
    image = gradient(60, 60)
    image.setflags(write=False)
    before = image.copy()
    resize(image, 30, 30)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 32), (100, 20)])
@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (9, 200), (201, 33)])
@pytest.mark.parametrize("random_crop", [False, True])
def test_framing_makes_one_size_of_any(size, shape, random_crop):
    frame = Framing.of(size, random_crop=random_crop, min_crop=0.5)
    framed = frame(gradient(*shape), generator())
    assert framed.shape == (*size, 3)
    assert framed.dtype == np.uint8
    assert framed.flags["C_CONTIGUOUS"]


def test_framing_keeps_proportions():
    image = np.zeros((60, 120, 3), np.uint8)
    image[10:50, 40:80] = 255
    framed = Framing.of(30)(image, generator())[..., 0] > 127
    assert framed.any(axis=1).sum() == framed.any(axis=0).sum() == 20


def test_flip_happens_with_its_probability_and_never_when_forbidden():
    image = gradient(16, 16)
    frame, rng = Framing.of(16, flip_p=0.25), generator()
    flips = [bool((frame(image, rng)[0, 0] != image[0, 0]).any()) for _ in range(400)]
    # four standard errors of a proportion of 0.25 among 400
    assert abs(np.mean(flips) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    always = Framing.of(16, flip_p=1)
    np.testing.assert_array_equal(always(image, rng), image[:, ::-1])
    np.testing.assert_array_equal(always(image, rng, may_flip=False), image)


def test_forbidding_a_flip_does_not_change_later_draws():
    frame, one, two = Framing.of(16, flip_p=0.5), generator(), generator()
    frame(gradient(16, 16), one)
    frame(gradient(16, 16), two, may_flip=False)
    assert one.random() == two.random()


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"size": 0}, "size: 0"),
        ({"size": [32]}, "size"),
        ({"size": 32, "flip_p": 2}, "flip_p: 2"),
        ({"size": 32, "interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"size": 32, "min_crop": 0.0}, "crops of 0"),
    ],
)
def test_framing_parameter_out_of_range_is_named(parameters, named):
    with pytest.raises(ConfigError, match=named):
        Framing.of(**parameters)


def test_side_lengths_takes_one_side_or_two():
    assert side_lengths(64) == (64, 64)
    assert side_lengths([48, 64]) == (48, 64)
