import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data.folder import ImageFolder
from ldm.data.maps import SemanticMaps, coloured, labels_in_range, map_size, read_map
from ldm.data.module import Keyed
from ldm.data.shapes import ShapesDataset
from tests.data.deep_files import write_packed_png

LABELS = np.arange(24, dtype=np.uint8).reshape(4, 6)


def palette_image(labels, colour=lambda label: (255 - label, 7, 7)):
    image = Image.fromarray(labels)
    image.putpalette([level for label in range(256) for level in colour(label)])
    assert image.mode == "P"
    return image


class Maps:
    """Two maps of the same labels."""

    def __init__(self, labels=LABELS, **entries):
        self.entries = {"image": np.zeros((4, 6, 3), np.uint8), "segmentation": labels, **entries}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(self.entries)


# files


def test_labels_of_a_palette_are_its_indices_not_its_colours(tmp_path):
    palette_image(LABELS).save(tmp_path / "a.png")
    assert np.array_equal(read_map(tmp_path / "a.png"), LABELS)
    palette_image(LABELS).save(tmp_path / "few.png", bits=8, transparency=0)
    assert np.array_equal(read_map(tmp_path / "few.png"), LABELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_labels_of_a_grey_image_are_its_levels(tmp_path, dtype):
    labels = (LABELS % 2).astype(bool) if dtype is bool else (LABELS.astype(dtype) * 11)
    Image.fromarray(labels).save(tmp_path / "a.png")
    assert np.array_equal(read_map(tmp_path / "a.png"), labels)
    assert read_map(tmp_path / "a.png").dtype == np.int64
    assert map_size(tmp_path / "a.png") == (4, 6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_a_grey_image_of_few_bits_are_its_levels_too(tmp_path, bits):
    labels = np.arange(17 * 33).reshape(33, 17) % 2**bits
    write_packed_png(tmp_path / "a.png", labels, bits)
    assert np.array_equal(read_map(tmp_path / "a.png"), labels)
    assert map_size(tmp_path / "a.png") == (33, 17)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indices_of_a_palette_of_few_bits_are_labels_too(tmp_path, bits):
    labels = (np.arange(24) % 2**bits).astype(np.uint8).reshape(4, 6)
    palette_image(labels).save(tmp_path / "a.png", bits=bits)
    assert np.array_equal(read_map(tmp_path / "a.png"), labels)


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("b.png", "JPEG"), ("c.bmp", "BMP")])
def test_files_that_may_not_keep_labels_are_no_maps(tmp_path, name, kind):
    Image.fromarray(LABELS).save(tmp_path / name, format=kind)
    for read in (read_map, map_size):
        with pytest.raises(ValueError, match=f"is a {kind} file, expected a PNG or a .npy"):
            read(tmp_path / name)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_labels_of_an_array_are_its_integers(tmp_path, shape):
    np.save(tmp_path / "a.npy", (LABELS.astype(np.int32) * 1000).reshape(shape))
    assert np.array_equal(read_map(tmp_path / "a.npy"), LABELS.astype(int) * 1000)
    assert map_size(tmp_path / "a.npy") == (4, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 6, 3), np.uint8), "has 3 channels"),
        (np.zeros((4, 6), np.float32), "holds float32, expected integers"),
    ],
)
def test_an_array_of_anything_else_is_refused(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=message):
        read_map(tmp_path / "a.npy")


def test_a_coloured_picture_is_no_map(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    for read in (read_map, map_size):
        with pytest.raises(ValueError, match="mode RGB, expected one with a palette"):
            read(tmp_path / "a.png")


# ranges


def test_a_label_out_of_range_is_named_with_its_range():
    assert np.array_equal(labels_in_range(LABELS, 24, "a.png"), LABELS)
    with pytest.raises(ConfigError, match=r"a\.png: has the label 23, expected 0 to 22"):
        labels_in_range(LABELS, 23, "a.png")
    with pytest.raises(ConfigError, match="has the label -1, expected 0 to 2"):
        labels_in_range(np.array([[0, -1]]), 3, "a.npy")


def test_void_becomes_no_label_wherever_it_lies():
    labels = np.array([[0, 255], [2, 1]], np.uint8)
    assert labels_in_range(labels, 3, "a", 255).tolist() == [[0, -1], [2, 1]]
    assert labels_in_range(labels, 256, "a", 0).tolist() == [[-1, 255], [2, 1]]
    with pytest.raises(ConfigError, match="has the label 255"):
        labels_in_range(labels, 3, "a", 0)


# the data set


def test_maps_of_drawn_scenes_are_those_of_the_source():
    source = ShapesDataset(16, length=3)
    data = SemanticMaps(source, 25)
    assert len(data) == 3
    assert list(data.class_names) == list(source.class_names)
    for index in range(3):
        item = data[index]
        assert item.keys() == source[index].keys()
        assert item["segmentation"].dtype == np.int64
        assert np.array_equal(item["segmentation"], source[index]["segmentation"])


def test_a_map_out_of_range_names_its_sample():
    data = SemanticMaps(Maps(), 20)
    with pytest.raises(ConfigError, match="segmentation of sample 1: has the label 20"):
        data[1]
    named = SemanticMaps(Maps(relpath="b/c.png"), 20)
    with pytest.raises(ConfigError, match=r"segmentation of b/c\.png: has the label 20"):
        named[0]


@pytest.mark.parametrize(
    ("labels", "found"),
    [(np.zeros((4, 6)), "float64 of shape"), (np.zeros((4, 6, 3), int), "int64 of shape")],
)
def test_what_is_no_map_is_refused(labels, found):
    with pytest.raises(ConfigError, match=rf"sample 0: is {found} .*, expected integers \(H, W\)"):
        SemanticMaps(Maps(labels), 25)[0]


def test_a_source_without_maps_says_what_it_has():
    with pytest.raises(ConfigError, match="items of Maps have no 'labels', only image, segment"):
        SemanticMaps(Maps(), 25, key="labels")[0]
    with pytest.raises(ConfigError, match="source: expected a data set"):
        SemanticMaps({"root": "a"}, 25)


def test_a_source_is_a_configuration_and_misspelt_parameters_are_found():
    params = {"size": 16, "length": 2}
    source = {"target": "ldm.data.shapes.ShapesDataset", "params": params}
    config = {
        "target": "ldm.data.maps.SemanticMaps",
        "params": {"num_labels": 25, "source": source},
    }
    assert len(instantiate_from_config(config)) == 2
    block = {"data": {"target": "ldm.data.module.DataModuleFromConfig", "params": {}}}
    block["data"]["params"] = {"batch_size": 1, "train": config}
    check(block)
    params["sizes"] = params.pop("size")
    with pytest.raises(ConfigError, match=r"train\.params\.source\.params\.sizes.*size"):
        check(block)


def test_random_choices_of_the_source_follow_the_epoch(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")

    class Cropped(ImageFolder):
        def facts(self, index, rng):
            return {"segmentation": np.zeros((16, 16), np.int64)}

    source = Cropped(tmp_path, 16, split="all", random_crop=True)
    data = Keyed(SemanticMaps(source, 1), seed=0)
    assert np.array_equal(data[0]["image"], Keyed(source, seed=0)[0]["image"])
    assert any(not np.array_equal(data[0]["image"], data[epoch]["image"]) for epoch in range(1, 9))


# colours


def test_a_label_has_one_colour_wherever_it_stands():
    few, many = coloured(np.array([[0, 1], [2, -1]])), coloured(np.array([[2, 1, 0, 181]]))
    assert few.shape == (2, 2, 3)
    assert few.dtype == np.uint8
    assert np.array_equal(few[0, 0], many[0, 2])
    assert np.array_equal(few[0, 1], many[0, 1])
    assert np.array_equal(few[1, 0], many[0, 0])
    assert few[1, 1].tolist() == [0, 0, 0]


def test_labels_that_are_near_each_other_are_told_apart():
    colours = coloured(np.arange(-1, 182)).astype(int)
    assert len({tuple(colour) for colour in colours}) == 183
    apart = np.abs(colours[:26, None] - colours[None, :26]).sum(axis=2) + 1000 * np.eye(26)
    assert apart.min() > 20
