"""Images with captions in COCO's format."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, instantiate_from_config
from tests.data.photographs import gradient

TEXTS = [(7, "a dog"), (8, "a cat on the left"), (7, "a brown dog \n"), (8, "a cat"), (9, "  ")]


def write(place, texts=TEXTS, names=("0.png", "1.png", "2.png"), **changes):
    """COCO's JSON for images 7, 8, ..., which lie beside it."""
    images = [{"id": 7 + index, "file_name": name} for index, name in enumerate(names)]
    for image in images:
        Image.fromarray(gradient(24, 36)).save(place / image["file_name"])
    rows = [{"id": 1, "image_id": image, "caption": text} for image, text in texts]
    path = place / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, **changes}))
    return path


def captions(place, path=None, **params):
    given = {"root": str(place), "annotations": str(path or write(place)), "size": 16} | params
    return instantiate_from_config({"target": "ldm.data.coco.CocoCaptions", "params": given})


def generator(seed):
    return np.random.default_rng(seed)


def test_a_caption_is_drawn_or_the_first_is_taken(tmp_path):
    data = captions(tmp_path)
    drawn = {data.item(0, generator(seed))["caption"] for seed in range(20)}
    assert drawn == {"a dog", "a brown dog"}
    first = captions(tmp_path, random_caption=False)
    assert {first.item(0, generator(seed))["caption"] for seed in range(9)} == {"a dog"}
    assert first[1]["caption"] == "a cat on the left"


def test_images_without_a_caption_are_left_out_and_told(tmp_path, caplog_ldm):
    data = captions(tmp_path)
    assert [data[index]["relpath"] for index in range(len(data))] == ["0.png", "1.png"]
    assert "captions.json: 2 of 3 images have captions" in caplog_ldm.text


def test_the_caption_that_is_taken_says_whether_an_image_may_be_mirrored(tmp_path):
    data, plain = captions(tmp_path, flip_p=1), captions(tmp_path)[1]["image"]
    said = set()
    for seed in range(20):
        item = data.item(1, generator(seed))
        said.add(item["caption"])
        has_side = item["caption"] == "a cat on the left"
        np.testing.assert_array_equal(item["image"], plain if has_side else plain[:, ::-1])
    assert len(said) == 2


def test_the_window_is_drawn(tmp_path):
    data = captions(tmp_path, size=24, random_crop=True)
    starts = {int(data.item(0, generator(seed))["image"][0, 0, 0]) for seed in range(20)}
    assert len(starts) > 5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1, 2]", "holds a list of 2; expected the lists images, annotations, as COCO does"),
        ('"text"', "holds 'text'; expected the lists"),
        ("{}", "holds an object of nothing; expected"),
        ('{"images": [], "annotation": []}', "holds an object of images, annotation; expected"),
        ('{"images": [], "annotations": 5}', "holds annotations: 5, which is no list; expected"),
        ("{", "is no JSON"),
    ],
)
def test_json_in_another_form_is_refused_with_what_it_holds(tmp_path, content, expected):
    path = write(tmp_path)
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        captions(tmp_path, path)
    assert f"annotations: {path}: " in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"texts": [(7, "a"), (70, "b")]}, "annotation 1: image_id 70; expected one of the 3"),
        ({"texts": [(7, 5)]}, "annotation 0: {'id': 1, 'image_id': 7, 'caption': 5}: caption is 5"),
        ({"texts": [(7, " ")]}, "none of its 3 images has a caption"),
        ({"images": [{"id": 7}]}, "file_name is None; expected of type str"),
        ({"names": ["0.png", "0.png"], "images": [{"id": 1, "file_name": "0.png"}] * 2}, "id 1"),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "annotation 0: has a bbox and no caption; expected a file of captions",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, changes, expected):
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        captions(tmp_path, path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_a_directory_with_none_of_the_images_is_refused(tmp_path):
    path = write(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "other/val_0.png")
    with pytest.raises(ConfigError, match=r"root: none of the 2 images of .*'0\.png', there is"):
        captions(tmp_path / "other", path)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"root": "none"}, "root: there is no directory none"),
        ({"annotations": "none.json"}, "annotations: there is no file none.json"),
        ({"flip_p": 2}, "flip_p: 2; expected a probability"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, params, expected):
    with pytest.raises(ConfigError, match=expected):
        captions(tmp_path, **params)
