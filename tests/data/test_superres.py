"""Pairs of an image and its low-resolution copy."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data.folder import ImageFolder
from ldm.data.module import DataModuleFromConfig, Keyed
from ldm.data.resampling import resampled
from ldm.data.shapes import ShapesDataset
from ldm.data.superres import Degradation, Method, SuperResolution, low_resolution

METHODS = get_args(Method)
PIL_FILTERS = {"area": "BOX"}
SHAPES = {"target": "ldm.data.shapes.ShapesDataset", "params": {"size": 32, "length": 4}}


def noise(height, width, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def by_pillow(image, factor, method):
    height, width = (side // factor for side in image.shape[:2])
    name = PIL_FILTERS.get(method, method.upper())
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[name]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_constant_image_stays_what_it_is(method, level):
    low = low_resolution(np.full((32, 48, 3), level, np.uint8), 4, method)
    assert low.dtype == np.uint8
    assert np.array_equal(low, np.full((8, 12, 3), level))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_a_low_resolution_image_is_pillows(method, factor):
    image = noise(64, 96)
    low = low_resolution(image, factor, method)
    apart = np.abs(low.astype(int) - by_pillow(image, factor, method))
    # torch computes bilinear and bicubic, with other roundings
    assert apart.max() <= (1 if method in ("bilinear", "bicubic") else 0)


# Keys's cubic with a = -1/2 at 1/8, 3/8, ... 15/8, in units of 1 / 1024: what SR3's and the paper's
# factor of 4 weighs a pixel with that is 1/2, 3/2, ... 15/2 pixels away from a new one's middle
CUBIC = [987, 745, 399, 93, -49, -75, -45, -7]


def test_bicubic_by_four_weighs_sixteen_pixels_as_worked_out_by_hand():
    impulse = np.zeros((4, 64, 1), np.float32)
    for column in range(24, 40):
        impulse[:], impulse[:, column] = 0, 1
        small = low_resolution(impulse, 4, "bicubic")[0, :, 0]
        away = np.abs(column - (4 * np.arange(16) + 1.5))
        expected = [CUBIC[int(d)] / 4096 if d < 8 else 0 for d in away]
        np.testing.assert_allclose(small, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
def test_opencvs_filters_round_and_clip_what_they_give(name):
    image = np.where(noise(16, 24) > 127, np.uint8(255), np.uint8(0))
    exact = resampled(image.astype(np.float64), 4, 6, name)
    small = low_resolution(image, 4, f"cv_{name}")
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, np.rint(exact.clip(0, 255)))
    as_floats = low_resolution((image / 127.5 - 1).astype(np.float32), 4, f"cv_{name}")
    assert as_floats.dtype == np.float32
    np.testing.assert_allclose(as_floats, (exact / 127.5 - 1).clip(-1, 1), atol=1e-5)


@pytest.mark.parametrize("method", ["bsr", "bsr_light"])
def test_blind_degradation_is_a_function_of_seed_epoch_and_sample(method):
    data = [Keyed(SuperResolution(ShapesDataset(32, length=3), 4, method), 0) for _ in range(2)]
    keys = [0, 1, 3, 4, 6]  # samples 0 and 1 of the epochs 0, 1 and 2
    small = [data[0][key]["LR_image"] for key in keys]
    assert all(each.shape == (8, 8, 3) and each.dtype == np.uint8 for each in small)
    assert len({each.tobytes() for each in small}) == len(keys)
    for key, each in zip(keys, small, strict=True):
        assert np.array_equal(data[1][key]["LR_image"], each)


def test_blind_degradation_of_floats_is_that_of_bytes():
    image = noise(32, 32)
    as_floats = (image / 127.5 - 1).astype(np.float32)
    small = [
        low_resolution(each, 4, "bsr", np.random.default_rng(5)) for each in (image, as_floats)
    ]
    assert small[1].dtype == np.float32
    # what JPEG gets is rounded from numbers that differ by 1e-7
    assert np.abs(small[1] * 127.5 + 127.5 - small[0]).mean() < 0.5
    grey = low_resolution(image[..., 0], 4, "bsr", np.random.default_rng(5))
    assert grey.shape == (8, 8)


def test_blind_degradation_needs_a_generator_and_channels_that_jpeg_holds():
    with pytest.raises(ConfigError, match="rng: none; expected a generator, which bsr draws from"):
        low_resolution(noise(8, 8), 4, "bsr")
    with pytest.raises(ConfigError, match="expected 1 or 3 channels, got 13"):
        low_resolution(noise(8, 8, 13), 4, "bsr_light", np.random.default_rng(0))


def test_every_degradation_has_a_name_in_a_configuration():
    params = {"source": SHAPES, "method": "cv_bicubik"}
    train = {"target": "ldm.data.superres.SuperResolution", "params": params}
    config = {"data": {"target": "ldm.data.module.DataModuleFromConfig",
                       "params": {"batch_size": 1, "train": train}}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"params\.method: expected .*did you mean 'cv_bicubic'"):
        check(config)
    for method in get_args(Degradation):
        params["method"] = method
        check(config)
        assert instantiate_from_config(train)[0]["LR_image"].shape == (8, 8, 3)


def test_area_is_the_mean_and_nearest_is_a_pixel_of_the_image():
    image = noise(8, 8)
    blocks = image.reshape(2, 4, 2, 4, 3).swapaxes(1, 2).astype(float)  # (2, 2, 4, 4, 3)
    means = blocks.mean(axis=(2, 3))
    # rounded twice, once along each side
    assert np.abs(low_resolution(image, 4, "area") - means).max() <= 1
    assert np.array_equal(low_resolution(image, 4, "nearest"), image[2::4, 2::4])


@pytest.mark.parametrize("method", get_args(Method))
def test_a_grey_image_without_channels_has_a_copy_without_any(method):
    image = noise(8, 12, channels=1)
    small = low_resolution(image[..., 0], 4, method)
    assert small.shape == (2, 3)
    np.testing.assert_array_equal(small[..., None], low_resolution(image, 4, method))


def test_what_bicubic_overshoots_is_clipped():
    edge = np.zeros((16, 16, 3), np.uint8)
    edge[:, 6:] = 255
    low = low_resolution(edge, 4).astype(int)
    assert low[:, 0].max() == 0, "the filter is negative there"
    assert low[:, 3].min() == 255
    as_floats = low_resolution(edge.astype(np.float32) / 127.5 - 1, 4)
    assert as_floats.dtype == np.float32
    assert as_floats.min() >= -1
    assert as_floats.max() <= 1


def test_a_factor_of_one_is_the_image_itself():
    image = noise(8, 8)
    assert np.array_equal(low_resolution(image, 1), image)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30), (2, 32)])
def test_sides_that_the_factor_does_not_divide_are_named(height, width):
    message = f"factor: 4; expected a divisor of both sides .* {height} x {width} pixels"
    with pytest.raises(ConfigError, match=message):
        low_resolution(noise(height, width), 4)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"method: 'bicubik'.*bicubic"):
        low_resolution(noise(8, 8), 4, "bicubik")


def test_an_item_is_the_sources_and_the_low_resolution_image():
    source = ShapesDataset(32, length=4)
    data = SuperResolution(source, 2)
    assert len(data) == 4
    for index in range(4):
        item, own = data[index], source[index]
        assert item.keys() == own.keys() | {"LR_image"}
        assert np.array_equal(item["image"], own["image"])
        assert np.array_equal(item["LR_image"], low_resolution(own["image"], 2))


def test_a_source_is_built_from_its_configuration():
    config = {"target": "ldm.data.superres.SuperResolution", "params": {"source": SHAPES}}
    data = instantiate_from_config(config)
    assert isinstance(data.source, ShapesDataset)
    assert data[0]["LR_image"].shape == (8, 8, 3)


def test_the_copy_is_cut_and_mirrored_as_the_image_is(tmp_path):
    Image.fromarray(noise(48, 96)).save(tmp_path / "a.png")
    source = ImageFolder(tmp_path, 32, split="all", random_crop=True, flip_p=0.5)
    data = Keyed(SuperResolution(source, 4, "area"), seed=0)
    items = [data[epoch] for epoch in range(6)]
    assert len({item["image"].tobytes() for item in items}) > 2, "epochs cut another window"
    for item in items:
        assert np.array_equal(item["LR_image"], low_resolution(item["image"], 4, "area"))


def test_classes_are_the_sources(tmp_path):
    for name in ("train/cat", "train/dog", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(noise(32, 32)).save(tmp_path / name / "a.png")

    def config(part):
        folder = {"root": str(tmp_path / part), "size": 32, "split": "all"}
        source = {"target": "ldm.data.folder.ImageFolder", "params": folder}
        return {"target": "ldm.data.superres.SuperResolution", "params": {"source": source}}

    module = DataModuleFromConfig(1, config("train"), config("val"))
    module.setup()
    assert module.num_classes == 2
    assert module.datasets["validation"][0]["class_label"] == 1


def test_classes_that_cannot_be_numbered_anew_are_an_error():
    data = SuperResolution(ShapesDataset(32, length=1))
    with pytest.raises(ConfigError, match="source: the classes of ShapesDataset"):
        data.adopt_classes(["cat"])


@pytest.mark.parametrize("factor", [0, 1.5, "4"])
def test_a_factor_that_is_no_whole_number_is_found_before_anything_is_built(factor):
    params = {"source": SHAPES, "factor": factor}
    train = {"target": "ldm.data.superres.SuperResolution", "params": params}
    module = "ldm.data.module.DataModuleFromConfig"
    config = {"data": {"target": module, "params": {"batch_size": 1, "train": train}}}
    with pytest.raises(ConfigError, match=r"train\.params\.factor: expected int >= 1"):
        check(config)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"factor": 3}, r"params\.factor: 3; expected a divisor .* 32 x 32 pixels"),
        ({"factor": 0}, r"params\.factor: 0; expected a divisor"),
        ({"method": "bicubik"}, r"params\.method: "),
        ({"source": {**SHAPES, "params": {"size": 8}}}, r"source\.params\.size: 8"),
        ({"source": {"target": "ldm.data.superres.SuperResolution", "params": {"source": SHAPES}}},
         "source: SuperResolution has an 'LR_image' of its own"),
    ],
)  # fmt: skip
def test_faults_of_a_configuration_are_explained(params, expected):
    params = {"source": SHAPES, **params}
    config = {"target": "ldm.data.superres.SuperResolution", "params": params}
    with pytest.raises(ConfigError, match=expected):
        instantiate_from_config(config, path="data.params.train")
