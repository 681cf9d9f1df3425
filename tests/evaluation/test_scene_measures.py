"""Figures of pictures of scenes: full marks for the scenes themselves, known answers otherwise."""

import numpy as np
import pytest

from ldm.data.scenes import COLOURS
from ldm.data.shapes import ShapesDataset
from ldm.evaluation.scene_measures import (
    agreement,
    classes,
    colours,
    layouts,
    overlap,
    peak_signal,
    scenes,
)


def items_of(objects, size=64, count=24):
    source = ShapesDataset(size, objects, split="validation", length=count)
    return [source[index] for index in range(count)]


def images_of(items):
    return [item["image"] for item in items]


@pytest.mark.parametrize(
    ("measure", "objects"), [(scenes, [1, 2, 3]), (classes, 1), (agreement, [1, 2, 3])]
)
def test_the_scenes_themselves_have_full_marks(measure, objects):
    items = items_of(objects)
    assert set(measure(images_of(items), items).values()) == {1.0}


@pytest.mark.parametrize("size", [48, 64, [48, 64], [64, 48]])
def test_boxes_read_from_pixels_are_those_that_were_drawn(size):
    items = items_of([1, 2, 3], size)
    found = layouts(images_of(items), items)
    assert found["box IoU"] > 0.95
    assert found["box class"] == 1


def test_a_thing_that_is_not_there_overlaps_nothing():
    items = items_of(2)
    single = images_of(items_of(1))
    found = layouts(single, items)
    assert found["box IoU"] < 0.5  # at most one of two boxes
    assert layouts([np.zeros((64, 64, 3), np.uint8)] * 24, items) == {
        "box IoU": 0.0,
        "box class": 0.0,
    }


def test_things_are_assigned_to_boxes_whatever_their_order():
    items = items_of(3)
    turned = [
        {**item, "boxes": item["boxes"][::-1], "box_classes": item["box_classes"][::-1]}
        for item in items
    ]
    images = images_of(items)
    assert layouts(images, turned) == pytest.approx(layouts(images, items))


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0, 0, 2, 2), 1), ((1, 0, 2, 2), 1 / 3), ((2, 0, 2, 2), 0), ((0.5, 0.5, 1, 1), 1 / 4)],
)
def test_overlap_is_intersection_over_union(other, expected):
    assert overlap((0, 0, 2, 2), other) == pytest.approx(expected)


def test_colours_count_pixels_of_the_asked_colour():
    label = 1 + list(COLOURS).index("green")  # a green circle
    segmentation = np.zeros((4, 4), np.int64)
    segmentation[:2] = label
    image = np.full((4, 4, 3), 252, np.uint8)
    image[0] = COLOURS["green"]
    image[1] = COLOURS["red"]
    assert colours([image], [{"segmentation": segmentation}]) == {
        "pixels": pytest.approx(12 / 16),
        "of things": pytest.approx(4 / 8),
    }


def test_a_background_of_any_colour_is_one():
    segmentation = np.zeros((4, 4), np.int64)
    segmentation[0, 0] = 1  # red
    for level in ((252,) * 3, (165,) * 3, (12,) * 3, (25, 35, 105)):
        image = np.full((4, 4, 3), level, np.uint8)
        found = colours([image], [{"segmentation": segmentation}])
        assert found == {"pixels": pytest.approx(15 / 16), "of things": 0.0}


def test_a_level_of_error_everywhere_is_48_decibels():
    image = np.full((4, 4, 3), 100, np.uint8)
    found = peak_signal([image + 1], [{"image": image}])
    assert found["PSNR"] == pytest.approx(20 * np.log10(255))
    assert peak_signal([image], [{"image": image}])["PSNR"] == pytest.approx(88.13, abs=0.01)
