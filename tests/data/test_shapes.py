import pickle

import numpy as np
import pytest

from ldm.config import ConfigError
from ldm.data.scenes import CLASS_NAMES, is_held_out, parse
from ldm.data.shapes import ShapesDataset


@pytest.mark.parametrize("objects", [1, 2, 3, [1, 2, 3]])
def test_items_depend_on_seed_and_index_alone(objects):
    first, again = (ShapesDataset(24, objects, length=9, seed=3) for _ in range(2))
    other = ShapesDataset(24, objects, length=9, seed=4)
    for index in reversed(range(9)):
        np.testing.assert_array_equal(first[index]["image"], again[index]["image"])
    assert any((first[i]["image"] != other[i]["image"]).any() for i in range(9))


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_splits_share_no_caption(objects):
    for split, held_out in (("train", False), ("validation", True)):
        data = ShapesDataset(16, objects, split=split, length=60)
        assert all(is_held_out(data[i]["caption"]) is held_out for i in range(60))


def test_the_first_256_validation_captions_differ():
    data = ShapesDataset(16, split="validation", length=256)
    assert len({data[i]["caption"] for i in range(256)}) == 256


def test_a_caption_drawn_twice_is_drawn_differently():
    data = ShapesDataset(64, split="validation", length=2000)
    period = len({data[i]["caption"] for i in range(0, 600)})
    assert data[0]["caption"] == data[period]["caption"]
    assert (data[0]["image"] != data[period]["image"]).any()


def test_numbers_of_objects_are_taken_in_turn():
    data = ShapesDataset(32, [1, 3], length=6)
    assert [len(parse(data[i]["caption"]).things) for i in range(6)] == [1, 3] * 3


def test_labels_boxes_and_segmentation_agree():
    data = ShapesDataset([48, 80], [1, 2, 3], length=30)
    for index in range(30):
        item = data[index]
        scene = parse(item["caption"])
        assert item["class_label"] == scene.things[0].class_label == item["box_classes"][0]
        assert CLASS_NAMES[item["class_label"]] in item["caption"]
        for (left, top, width, height), label in zip(
            item["boxes"], item["box_classes"], strict=True
        ):
            rows, columns = (item["segmentation"] == 1 + label).nonzero()
            # a soft edge is not labelled, and pixels are whole
            np.testing.assert_allclose(
                (columns.min(), columns.max() + 1), (left * 80, (left + width) * 80), atol=1.2
            )
            np.testing.assert_allclose(
                (rows.min(), rows.max() + 1), (top * 48, (top + height) * 48), atol=1.7
            )


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"size": 8}, "size: 8"),
        ({"size": [64, 64, 3]}, "size"),
        ({"objects": 4}, "objects: 4"),
        ({"objects": []}, "objects"),
        ({"split": "test"}, "split: 'test'"),
        ({"length": 0}, "length: 0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_parameter_out_of_range_is_named(parameters, named):
    with pytest.raises(ConfigError, match=named.replace("[", r"\[")):
        ShapesDataset(**parameters)


def test_index_past_the_end_ends_a_loop():
    assert len(list(ShapesDataset(16, length=3))) == 3


def test_dataset_travels_to_a_worker():
    data = ShapesDataset(16, length=2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[1]["image"], data[1]["image"])
