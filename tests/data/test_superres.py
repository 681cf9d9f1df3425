"""Pairs of an image and its low-resolution copy."""

from typing import get_args

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data.folder import ImageFolder
from ldm.data.module import DataModuleFromConfig, Keyed
from ldm.data.shapes import ShapesDataset
from ldm.data.superres import Method, SuperResolution, low_resolution

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
