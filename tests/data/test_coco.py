"""Images with boxes in COCO's format."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.coco import CocoBoxes
from ldm.data.coco_format import coco_of, json_of
from tests.data.reading import faults

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}]


def annotation(box, image=7, category=18, **more):
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def write(place, *annotations, sizes=((40, 20), (20, 40)), **changes):
    """COCO's JSON for images 7, 8, ... of so many pixels, which lie beside it."""
    images = []
    for index, (width, height) in enumerate(sizes):
        name = f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / name)
        images.append({"id": 7 + index, "file_name": name, "width": width, "height": height})
    data = {"images": images, "annotations": list(annotations), "categories": CATEGORIES}
    path = place / "boxes.json"
    path.write_text(json.dumps({**data, **changes}))
    return path


def read(path):
    return coco_of(path, json_of(path))


def boxes_of(place, *annotations, sizes=((40, 20), (20, 40)), **params):
    path = write(place, *annotations, sizes=sizes)
    given = {"root": str(place), "annotations": str(path), "size": 16} | params
    return instantiate_from_config({"target": "ldm.data.coco.CocoBoxes", "params": given})


def test_boxes_in_pixels_become_fractions_and_categories_labels_in_the_order_of_their_ids(tmp_path):
    path = write(tmp_path, annotation([10, 5, 20, 10]), annotation([0, 0, 20, 40], 8, 2))
    coco = read(path)
    assert coco.class_names == ["cat", "dog"]
    first, second = coco.images
    assert (first.names, first.boxes) == (["dog"], [[0.25, 0.25, 0.5, 0.5]])
    assert (second.names, second.boxes) == (["cat"], [[0, 0, 1, 1]])
    assert coco.problems == []


def test_a_box_is_cut_off_where_it_leaves_its_image_by_a_pixel(tmp_path):
    (image, _) = read(write(tmp_path, annotation([-1, 0, 42, 20.5]))).images
    assert image.boxes == [[0, 0, 1, 1]]


def test_crowds_are_left_out(tmp_path):
    assert read(write(tmp_path, annotation([0, 0, 9, 9], iscrowd=1))).images[0].boxes == []


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (annotation([0, 0, 0, 5]), "annotation 1: box [0.0, 0.0, 0.0, 5.0] in pixels; expected"),
        (annotation([30, 0, 20, 5]), "annotation 1: box [30.0, 0.0, 20.0, 5.0] in pixels"),
        (annotation([40.5, 0, 0.5, 5]), "annotation 1: box [40.5, 0.0, 0.5, 5.0] in pixels"),
        (annotation([float("nan"), 0, 5, 5]), "annotation 1: box [nan"),
        (annotation([0, 0, 5]), "annotation 1: box [0, 0, 5]; expected four numbers"),
        (annotation("0055"), "annotation 1: box '0055'; expected four numbers"),
        (annotation([0, 0, 5, 5], 9), "annotation 1: image_id 9; expected one of the 2"),
        (annotation([0, 0, 5, 5], 7, 3), "annotation 1: category_id 3; expected one of the 2"),
        ({"bbox": [0, 0, 5, 5]}, "annotation 1: {'bbox': [0, 0, 5, 5]}: image_id is None"),
        ("no row", "annotation 1: no row: image_id is None; expected of type int"),
    ],
)
def test_a_bad_annotation_is_named_and_the_others_are_kept(tmp_path, bad, expected):
    coco = read(write(tmp_path, annotation([0, 0, 9, 9]), bad))
    assert len(coco.images[0].boxes) == 1
    (problem,) = coco.problems
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"images": 3}, "expected the lists images, annotations, categories"),
        ({"images": [{"id": 1, "width": 0, "height": 4}]}, "image 1: 0 x 4 pixels"),
        ({"images": [{"id": "a"}]}, "id is 'a'; expected of type int"),
        (
            {"images": [{"id": number, "width": 8, "height": 8} for number in (1, 4, 2, 4, 3)]},
            "two of its images have the id 4",
        ),
        ({"categories": [{"id": 1}]}, "name is None; expected of type str"),
        (
            {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]},
            "two of its categories have one id or one name",
        ),
    ],
)
def test_a_file_in_another_form_is_refused(tmp_path, changes, expected):
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


# the data set


def test_boxes_follow_the_window_that_is_cut_out(tmp_path):
    # of 40 x 20 pixels the window is 20 x 20, from 10 to 30
    data = boxes_of(
        tmp_path,
        annotation([10, 0, 20, 20]),
        annotation([5, 5, 10, 10], category=2),
        annotation([0, 0, 10, 20]),
        annotation([0, 10, 20, 20], 8, 2),
    )
    first, second = data[0], data[1]
    assert first["image"].shape == (16, 16, 3)
    np.testing.assert_allclose(first["boxes"], [[0, 0, 1, 1], [0, 0.25, 0.25, 0.5]], atol=1e-7)
    assert first["box_classes"].tolist() == [1, 0], "what lies outside is not there"
    np.testing.assert_allclose(second["boxes"], [[0, 0, 1, 1]], atol=1e-7)
    assert [item["relpath"] for item in (first, second)] == ["0.png", "1.png"]


def test_an_image_is_mirrored_with_its_boxes(tmp_path):
    plain = boxes_of(tmp_path, annotation([10, 0, 5, 20]))[0]
    mirrored = boxes_of(tmp_path, annotation([10, 0, 5, 20]), flip_p=1.0)[0]
    np.testing.assert_array_equal(mirrored["image"], plain["image"][:, ::-1])
    np.testing.assert_allclose(plain["boxes"], [[0, 0, 0.25, 1]], atol=1e-7)
    np.testing.assert_allclose(mirrored["boxes"], [[0.75, 0, 0.25, 1]], atol=1e-7)


def test_images_with_few_objects_and_small_boxes_are_left_out(tmp_path):
    both = [annotation([10, 0, 20, 20]), annotation([10, 0, 4, 4]), annotation([0, 0, 20, 40], 8)]
    assert len(boxes_of(tmp_path, *both)) == 2
    assert len(boxes_of(tmp_path, *both, min_objects=2)) == 1
    assert len(boxes_of(tmp_path, *both, min_objects=0)) == 2
    assert len(boxes_of(tmp_path, *both, min_area=0.05)[0]["boxes"]) == 1


def test_labels_follow_the_classes_of_another_set(tmp_path):
    data = boxes_of(tmp_path, annotation([10, 0, 20, 20]))
    data.adopt_classes(["bird", "cat", "cow", "dog"])
    assert data[0]["box_classes"].tolist() == [3]
    with pytest.raises(ConfigError, match="the class 'dog' is none of the 2"):
        boxes_of(tmp_path, annotation([10, 0, 20, 20])).adopt_classes(["bird", "cat"])


def test_annotations_that_are_left_out_are_told(tmp_path, caplog_ldm):
    boxes_of(tmp_path, annotation([10, 0, 20, 20]), annotation([10, 0, 0, 20]))
    assert "1 annotations are left out: annotation 1: box [10.0, 0.0, 0.0" in caplog_ldm.text


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_image_that_is_not_as_large_as_its_boxes_say_is_bad(tmp_path, orientation):
    both = [annotation([10, 0, 20, 20]), annotation([0, 0, 20, 40], 8, 2)]
    path = write(tmp_path, *both)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "0.png", exif=exif)
    data = CocoBoxes(tmp_path, path, 16)
    message = "its boxes are of an image of 20 x 40 pixels, it has 40 x 20"
    is_turned = orientation != 3  # by a half turn it is as large as before
    assert faults(data) == ({0: message} if is_turned else {})


def test_no_image_as_large_as_its_boxes_say_is_an_error(tmp_path):
    path = write(tmp_path, annotation([10, 0, 20, 20]))
    Image.fromarray(np.zeros((21, 40, 3), np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ConfigError, match="image of 20 x 40 pixels, it has 21 x 40"):
        CocoBoxes(tmp_path, path, 16)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"root": "none"}, "root: there is no directory none"),
        ({"annotations": "none.json"}, "annotations: there is no file none.json"),
        ({"min_objects": 2}, r"none of its 2 images has 2 objects or more"),
        ({"flip_p": 2}, "flip_p: 2; expected a probability"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, params, expected):
    with pytest.raises(ConfigError, match=expected):
        boxes_of(tmp_path, annotation([10, 0, 20, 20]), **params)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: is no JSON"):
        json_of(tmp_path / "a.json")
