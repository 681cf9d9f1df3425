"""Boxes follow the window that is drawn; boxes that are none are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data.coco import CocoBoxes
from tests.data.test_coco import annotation, boxes_of, write


def generator(seed):
    return np.random.default_rng(seed)


def with_rectangle(place, box, size, width=64, height=32):
    """A black image with a white box, and its file."""
    left, top, wide, high = box
    path = write(place, annotation(box), sizes=[(width, height)])
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + high, left : left + wide] = 255
    Image.fromarray(pixels).save(place / "0.png")
    return lambda **params: CocoBoxes(place, path, size, **params)


def found_box(image):
    """Left, top, right and bottom of what is white, as fractions of the image's sides."""
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    height, width = image.shape[:2]
    return np.array(
        [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    )


@pytest.mark.parametrize("flip_p", [0.0, 0.5])
def test_a_drawn_rectangle_is_where_its_box_says_in_windows_of_the_images_height(tmp_path, flip_p):
    data = with_rectangle(tmp_path, (20, 6, 18, 11), 32)(random_crop=True, flip_p=flip_p)
    starts = set()
    for seed in range(40):
        item = data.item(0, generator(seed))
        left, top, width, height = item["boxes"][0]
        corners = [left, top, left + width, top + height]
        np.testing.assert_allclose(corners, found_box(item["image"]), atol=1e-6)
        starts.add(float(left))
    assert len(starts) > 10, "the window moves"


@pytest.mark.parametrize("size", [48, [64, 32]])
@pytest.mark.parametrize("random_crop", [False, True])
def test_a_drawn_rectangle_is_where_its_box_says_in_resized_windows(tmp_path, random_crop, size):
    make = with_rectangle(tmp_path, (26, 8, 14, 13), size)
    data = make(random_crop=random_crop, min_crop=0.5, flip_p=0.5)
    pixels = np.array([data[0]["image"].shape[1], data[0]["image"].shape[0]] * 2)
    areas = set()
    for seed in range(40):
        item = data.item(0, generator(seed))
        left, top, width, height = item["boxes"][0]
        apart = np.array([left, top, left + width, top + height]) - found_box(item["image"])
        assert np.abs(apart * pixels).max() <= 1, "a pixel that the filter has made grey"
        areas.add(round(float(width * height), 3))
    assert len(areas) > 10, "the window's side is drawn"


def test_objects_outside_of_the_window_are_dropped(tmp_path):
    both = [annotation([0, 0, 8, 8]), annotation([32, 4, 4, 4], category=2)]
    data = boxes_of(tmp_path, *both, sizes=[(64, 32)], size=32, random_crop=True)
    counts = set()
    for seed in range(40):
        item = data.item(0, generator(seed))
        assert len(item["boxes"]) == len(item["box_classes"])
        assert (item["boxes"] >= 0).all()
        assert (item["boxes"][:, :2] + item["boxes"][:, 2:] <= 1 + 1e-6).all()
        assert set(item["box_classes"].tolist()) <= {0, 1}
        counts.add(len(item["boxes"]))
    assert counts == {1, 2}


def test_min_area_counts_in_the_window_that_is_drawn(tmp_path):
    data = boxes_of(
        tmp_path, annotation([16, 0, 32, 32]), sizes=[(64, 32)], size=32, random_crop=True,
        min_area=0.6, min_objects=0,
    )  # fmt: skip
    shares = set()
    for seed in range(60):
        for left, _, width, _ in data.item(0, generator(seed))["boxes"].tolist():
            assert width >= 0.6
            shares.add(left)
    assert len(shares) > 3


def test_a_window_without_objects_gives_way_to_the_central_one(tmp_path):
    central = boxes_of(tmp_path, annotation([46, 0, 2, 8]), sizes=[(64, 32)], size=32)[0]
    data = boxes_of(
        tmp_path, annotation([46, 0, 2, 8]), sizes=[(64, 32)], size=32, random_crop=True
    )
    empty = boxes_of(
        tmp_path, annotation([46, 0, 2, 8]), sizes=[(64, 32)], size=32, random_crop=True,
        min_objects=0,
    )  # fmt: skip
    replaced = 0
    for seed in range(30):
        item, bare = data.item(0, generator(seed)), empty.item(0, generator(seed))
        assert len(item["boxes"]) == 1
        if len(bare["boxes"]):
            np.testing.assert_array_equal(item["image"], bare["image"])
        else:
            replaced += 1
            np.testing.assert_array_equal(item["image"], central["image"])
            np.testing.assert_array_equal(item["boxes"], central["boxes"])
    assert 0 < replaced < 30


@pytest.mark.parametrize("min_crop", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(tmp_path, min_crop):
    with pytest.raises(ConfigError, match=rf"min_crop: {min_crop}; expected above 0"):
        boxes_of(tmp_path, annotation([10, 0, 20, 20]), min_crop=min_crop)


# boxes that are none


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (annotation([30, 0, 20, 5]), "annotation 1: box [30.0, 0.0, 20.0, 5.0] in pixels"),
        (annotation([30, 0, 20, 5]), "inside of 40 x 20, the size of 0.png"),
        (annotation([20, 5, -4, 5]), "annotation 1: box [20.0, 5.0, -4.0, 5.0]"),
        (annotation([1, 2, 3]), "annotation 1: box [1, 2, 3]; expected four numbers"),
        (annotation([0, 0, 5, 5], 70), "annotation 1: image_id 70; expected one of the 2"),
    ],
)
def test_an_annotation_that_is_none_is_one_error_unless_it_may_be_left_out(
    tmp_path, caplog_ldm, bad, expected
):
    rows = [annotation([10, 0, 20, 20]), bad, annotation([50, 0, 9, 9])]
    with pytest.raises(ConfigError) as error:
        boxes_of(tmp_path, *rows)
    assert expected in str(error.value)
    assert "boxes.json" in str(error.value)
    assert "(and 1 more); skip_bad_boxes: true" in str(error.value)
    assert len(boxes_of(tmp_path, *rows, skip_bad_boxes=True)[0]["boxes"]) == 1
    assert "2 annotations are left out: annotation 1" in caplog_ldm.text


@pytest.mark.parametrize("flat", [[10, 0, 0, 20], [10, 0, 5, 0], [40.5, 0, 0.5, 5]])
def test_boxes_without_area_are_left_out_and_counted(tmp_path, caplog_ldm, flat):
    assert len(boxes_of(tmp_path, annotation([10, 0, 20, 20]), annotation(flat))) == 1
    assert "1 annotations are left out: annotation 1" in caplog_ldm.text


# captions of the same images


def captions(place, *rows, names=("0.png", "1.png")):
    images = [{"id": 7 + index, "file_name": name} for index, name in enumerate(names)]
    rows = [{"image_id": image, "caption": text} for image, text in rows]
    path = place / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return str(path)


BOTH = [annotation([10, 0, 5, 20]), annotation([0, 0, 20, 40], 8)]


def test_captions_come_with_boxes_of_their_images(tmp_path):
    path = captions(tmp_path, (8, "two"), (7, "one"), (7, " uno\n"))
    data = boxes_of(tmp_path, *BOTH, captions=path)
    assert {data.item(0, generator(seed))["caption"] for seed in range(20)} == {"one", "uno"}
    assert data[1]["caption"] == "two"
    assert data[1]["box_classes"].tolist() == [1]
    first = boxes_of(tmp_path, *BOTH, captions=path, random_caption=False)
    assert {first.item(0, generator(seed))["caption"] for seed in range(9)} == {"one"}


def test_images_without_a_caption_are_left_out(tmp_path, caplog_ldm):
    data = boxes_of(tmp_path, *BOTH, captions=captions(tmp_path, (8, "two"), (7, " ")))
    assert [data[index]["relpath"] for index in range(len(data))] == ["1.png"]
    assert "captions.json: 1 of 2 images have captions" in caplog_ldm.text


def test_a_caption_that_says_a_side_prevents_mirroring_of_image_and_boxes(tmp_path):
    plain = boxes_of(tmp_path, *BOTH)
    for text, is_mirrored in (("a dog", True), ("a dog on the left", False)):
        path = captions(tmp_path, (7, text), (8, text))
        item = boxes_of(tmp_path, *BOTH, captions=path, flip_p=1)[0]
        expected = plain[0]["image"][:, ::-1] if is_mirrored else plain[0]["image"]
        np.testing.assert_array_equal(item["image"], expected)
        np.testing.assert_allclose(item["boxes"][0, 0], 0.75 if is_mirrored else 0, atol=1e-7)


@pytest.mark.parametrize(
    ("names", "rows", "expected"),
    [
        (["0.png", "1.png", "2.png"], [(9, "two")], "has a caption of none of the 2 images"),
        (["5.png", "1.png"], [(8, "two")], "image 7 is 5.png, in annotations 0.png"),
    ],
)
def test_captions_of_other_images_are_refused(tmp_path, names, rows, expected):
    with pytest.raises(ConfigError) as error:
        boxes_of(tmp_path, *BOTH, captions=captions(tmp_path, *rows, names=names))
    assert f"captions: {tmp_path}/captions.json: " in str(error.value)
    assert expected in str(error.value)
