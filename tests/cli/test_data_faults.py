"""What may be wrong with text, boxes and maps ends the command with one clear error and code 2."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from ldm.cli.train import main
from tests.cli.runs import first_stage, write
from tests.data.tars import picture, shards, write_tar

LIMIT = 10  # seconds; a fraction of one on an idle machine

SIDE = 24  # pixels of the images
IMAGES = [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(3)]
CATEGORIES = [{"id": 1, "name": "cat"}]
BOX = {"image_id": 0, "category_id": 1, "bbox": [2, 2, 10, 10]}
BOXES = {"images": IMAGES, "categories": CATEGORIES, "annotations": [BOX]}
CAPTIONS = {"images": IMAGES, "annotations": [{"image_id": 0, "caption": "a cat"}]}

BOXES_SET = ("ldm.data.coco.CocoBoxes", {"root": "images", "annotations": "file.json"})
CAPTIONS_SET = ("ldm.data.coco.CocoCaptions", {"root": "images", "annotations": "file.json"})
FOLDER_SET = ("ldm.data.folder.ImageFolder", {"root": "images", "split": "all"})
MAPS_SET = ("ldm.data.pairs.ImageMapFolder", {"root": ".", "split": "all", "num_labels": 5})
SHARDS_SET = ("ldm.data.shards.Shards", {"shards": "tars/{00000..00001}.tar", "split": "all"})


def more(base, **row):
    return {**base, "annotations": [*base["annotations"], {**base["annotations"][0], **row}]}


def table(*names):
    return "".join(json.dumps({"file_name": name, "text": "a cat"}) + "\n" for name in names)


# fault: (data set, file that is written, its content, what the error names)
FAULTS = {
    "a box outside of its image": (
        BOXES_SET,
        "file.json",
        more(BOXES, bbox=[20, 2, 30, 10]),
        ["annotations: file.json: annotation 1: box [20.0, 2.0, 30.0, 10.0]", "24 x 24", "0.png"],
    ),
    "boxes in a JSON that is not COCO's": (
        BOXES_SET,
        "file.json",
        {"0.png": [2, 2, 10, 10]},
        ["annotations: file.json: holds an object of 0.png; expected the lists images, annot"],
    ),
    "captions in place of boxes": (
        BOXES_SET,
        "file.json",
        CAPTIONS,
        ["file.json: holds an object of images, annotations; expected", "categories"],
    ),
    "captions in a JSON that is not COCO's": (
        CAPTIONS_SET,
        "file.json",
        ["0.png", "a cat"],
        ["annotations: file.json: holds a list of 2; expected the lists images, annotations"],
    ),
    "boxes in place of captions": (
        CAPTIONS_SET,
        "file.json",
        BOXES,
        ["file.json: annotation 0: has a bbox and no caption; expected a file of captions"],
    ),
    "a caption without its image": (
        CAPTIONS_SET,
        "file.json",
        more(CAPTIONS, image_id=42),
        ["file.json: annotation 1: image_id 42; expected one of the 3 that the file lists"],
    ),
    "captions of other images": (
        CAPTIONS_SET,
        "file.json",
        {**CAPTIONS, "images": [{"id": 0, "file_name": "val/0.png"}]},
        ["root: none of the 1 images of file.json is in images", "'val/0.png'", "'0.png'"],
    ),
    "a table without a match": (
        FOLDER_SET,
        "images/metadata.jsonl",
        table("images/0.png", "images/1.png"),
        ["metadata.jsonl: 2 of 2 names in it are of no image", "'images/0.png'", "'0.png'"],
    ),
    "texts without a match": (
        FOLDER_SET,
        "images/texts/0.txt",
        "a cat",
        ["images: none of its 1 .txt files", "texts/0.txt", "expected 0.txt"],
    ),
    "a label outside of the palette": (
        MAPS_SET,
        "maps/0.png",
        np.full((SIDE, SIDE), 5, np.uint8),
        ["maps/0.png", "has the label 5, expected 0 to 4"],
    ),
    "a tar that is missing": (
        SHARDS_SET,
        "tars/00002.tar",
        b"",
        ["shards: tars/{00000..00001}.tar: 1 of 2 are not there, e.g. tars/00001.tar"],
    ),
    "tars without images": (
        SHARDS_SET,
        "tars/00001.tar",
        b"no tar",
        ["/tars: no image in 2 tars", "00001.tar: is no plain tar", "a: has no image, only"],
    ),
}


def put(path, content):
    """A file of what it is to hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with three images, their maps of labels, and a tar without images."""
    for number in range(3):
        put(tmp_path / f"images/{number}.png", picture(number, SIDE, SIDE))
        put(tmp_path / f"maps/{number}.png", np.full((SIDE, SIDE), 4, np.uint8))
    write_tar(tmp_path / "tars/00000.tar", [("a.txt", "a cat")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(place, target, params, *words):
    """The code of the command for a first stage on such a data set."""
    config = first_stage()
    config["data"]["params"]["train"] = {"target": target, "params": {"size": 16, **params}}
    del config["data"]["params"]["validation"]
    write(place / "config.yaml", config)
    return main(["-b", "config.yaml", "--gpus", "cpu", *words])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_one_clear_error(place, caplog_ldm, fault):
    (target, params), name, content, expected = FAULTS[fault]
    put(place / name, content)
    began = time.monotonic()
    assert start(place, target, params, "-t") == 2, caplog_ldm.text
    assert time.monotonic() - began < LIMIT
    errors = [record.getMessage() for record in caplog_ldm.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert [text for text in expected if text not in errors[0]] == [], errors[0]
    assert not (place / "logs").exists()


@pytest.mark.parametrize(
    ("data", "name", "content"),
    [
        (BOXES_SET, "file.json", BOXES),
        (CAPTIONS_SET, "file.json", CAPTIONS),
        (FOLDER_SET, "images/metadata.jsonl", table("0.png")),
        (MAPS_SET, "maps/0.png", np.full((SIDE, SIDE), 3, np.uint8)),
        (SHARDS_SET, "tars/more.txt", ""),
    ],
)
def test_without_the_fault_the_same_data_can_be_trained_on(place, caplog_ldm, data, name, content):
    shards(place / "tars")
    put(place / name, content)
    assert start(place, *data) == 0, caplog_ldm.text


@pytest.mark.slow
def test_a_fault_that_a_loaders_process_finds_is_one_clear_error_too(place, caplog_ldm):
    put(place / "maps/2.png", np.full((SIDE, SIDE), 5, np.uint8))
    words = ["-t", "data.params.num_workers=1", "data.params.batch_size=3"]
    assert start(place, *MAPS_SET, *words) == 2
    assert "error: maps/2.png: has the label 5, expected 0 to 4" in caplog_ldm.text
    assert "Traceback" not in caplog_ldm.text
