"""Layouts of data sets with boxes, and pictures of them."""

import numpy as np
import pytest

from ldm.config import ConfigError
from ldm.data.layouts import Layouts, layout_picture, require_layout
from ldm.data.maps import colour_of, coloured
from ldm.data.module import Keyed, collate
from ldm.data.scenes import CLASS_NAMES
from ldm.data.shapes import ShapesDataset

SHAPES = {
    "target": "ldm.data.shapes.ShapesDataset",
    "params": {"size": 16, "objects": [1, 3], "length": 4},
}


class Boxes:
    """Items with these boxes."""

    class_names = ("cat", "dog")

    def __init__(self, **item):
        self.held = item

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.held


class Drawn(Boxes):
    """Items with a random box."""

    def item(self, index, rng):
        boxes = np.array([[0, 0, rng.uniform(0.5, 1), 1]], dtype=np.float32)
        return {"boxes": boxes, "box_classes": np.array([1])}


def test_a_layout_is_class_and_box_of_every_thing():
    data, shapes = Layouts(SHAPES), ShapesDataset(16, [1, 3], length=4)
    assert len(data) == 4
    assert list(data.class_names) == list(CLASS_NAMES)
    for index in range(4):
        item, plain = data[index], shapes[index]
        assert item["layout"].dtype == np.float32
        assert item["layout"].shape == ((1, 3)[index % 2], 5)
        np.testing.assert_array_equal(item["layout"][:, 0], plain["box_classes"])
        np.testing.assert_array_equal(item["layout"][:, 1:], plain["boxes"])
        assert item.keys() - {"layout"} == plain.keys()


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), np.zeros((0,), np.float32)])
def test_an_item_without_things_has_an_empty_layout(boxes):
    layout = Layouts(Boxes(boxes=boxes, box_classes=[]))[0]["layout"]
    assert layout.shape == (0, 5)
    assert layout.dtype == np.float32


def test_layouts_of_a_batch_stay_apart():
    data = Keyed(Layouts(SHAPES), seed=0)
    batch = collate([data[index] for index in range(4)])
    assert [tuple(each.shape) for each in batch["layout"]] == [(1, 5), (3, 5), (1, 5), (3, 5)]


def test_random_choices_are_those_of_the_data_set():
    data = Layouts(Drawn())
    first, second = (Keyed(data, seed=seed)[0]["layout"] for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, Keyed(data, seed=0)[0]["layout"])


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"image": 0}, "source: items of Boxes have no 'box_classes', only image"),
        (
            {"boxes": [[0, 0, 1, 1]], "box_classes": [2]},
            "item 0: object 0: label 2; expected a whole number 0 to 1",
        ),
        ({"boxes": [[0, 0, 1, 2]], "box_classes": [1]}, r"item 0: object 0: box \[0, 0, 1, 2\]"),
        (
            {"boxes": [[0, 0, 1, 1]], "box_classes": [1, 0]},
            r"item 0: boxes of shape \(1, 4\) and box_classes of shape \(2,\); expected \(N, 4\)",
        ),
        ({"boxes": [[0, 0, 1]], "box_classes": [1]}, r"item 0: boxes of shape \(1, 3\)"),
        ({"boxes": [], "box_classes": [1]}, r"item 0: boxes of shape \(0, 4\) and box_classes"),
    ],
)
def test_an_item_without_a_layout_is_named(item, expected):
    with pytest.raises(ConfigError, match=expected):
        Layouts(Boxes(**item))[0]


@pytest.mark.parametrize("place", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_make_no_box(place, value):
    layout = [[1, 0.1, 0.2, 0.3, 0.4], [1, 0.1, 0.2, 0.3, 0.4]]
    require_layout(layout, 2)
    layout[1][place] = value
    with pytest.raises(ValueError, match=rf"object 1: box .*{value:g}.*; expected finite numbers"):
        require_layout(layout, 2)


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 0.5, -1, 2])
def test_labels_are_whole_numbers_of_classes(label):
    with pytest.raises(ValueError, match=r"object 0: label .*; expected a whole number 0 to 1"):
        require_layout([[label, 0, 0, 1, 1]], 2)


def test_classes_are_numbered_as_the_data_set_can():
    with pytest.raises(ConfigError, match="source: the classes of Boxes cannot"):
        Layouts(Boxes()).adopt_classes(["dog", "cat"])


def test_a_picture_frames_each_box_in_the_colour_of_its_class():
    picture = layout_picture([[3, 0.25, 0.5, 0.5, 0.25]], 41, 81)
    assert picture.shape == (41, 81, 3)
    framed = (picture == colour_of(3)).all(axis=2)
    assert framed[20, 20:61].all()
    assert framed[30, 20:61].all()
    assert framed[20:31, 20].all()
    assert framed[20:31, 60].all()
    assert (picture[:20] == 255).all()
    assert (picture[:, 61:] == 255).all()


def test_small_boxes_are_not_covered_by_large_ones():
    small, large = [1, 0.4, 0.4, 0.2, 0.2], [2, 0, 0, 1, 1]
    np.testing.assert_array_equal(
        layout_picture([small, large], 64, 64), layout_picture([large, small], 64, 64)
    )


def test_neighbouring_classes_have_colours_that_are_apart():
    colours = np.array([colour_of(label) for label in range(25)])
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 60
    assert len({tuple(colour) for colour in colours}) == 25
    assert np.array_equal(coloured(np.arange(25)), colours), "a map has the same"
