import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from ldm.cli.exits import EXIT_CONFIG
from ldm.data.coco import CocoBoxes
from ldm.data.pairs import ImageMapFolder
from ldm.preparation import coco
from tests.preparation.raw import picture, write_zip
from tests.preparation.scripts import run
from tests.preparation.stopping import Stopped, stopping, times

SIZE = (20, 16)  # width, height
TRAIN = {f"train2017/{i:012}.jpg": picture(i, SIZE, "JPEG") for i in range(1, 5)}
VAL = {f"val2017/{i:012}.jpg": picture(i, SIZE, "JPEG") for i in range(5, 7)}
KINDS = ("instances", "captions", "person_keypoints")


def boxes(names):
    """COCO's file of boxes of these images: box i of class i % 2 begins at pixel (i, 2)."""
    rows = list(enumerate(names, start=1))
    images = [
        {"id": i, "file_name": name.rpartition("/")[2], "width": SIZE[0], "height": SIZE[1]}
        for i, name in rows
    ]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [i, 2, 8, 4], "iscrowd": 0}
        for i, _ in rows
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def label_map(name):
    """A PNG of labels: that of each image is its number's last digit."""
    return np.full((SIZE[1], SIZE[0]), int(name[-5]), np.uint8)


def png(pixels):

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


ANNOTATIONS = {
    f"annotations/{kind}_{part}2017.json": json.dumps(boxes(names)).encode()
    for kind in KINDS
    for part, names in (("train", TRAIN), ("val", VAL))
}
MAPS = {name.replace(".jpg", ".png"): png(label_map(name)) for name in TRAIN | VAL}
ARCHIVES = {
    "train2017.zip": TRAIN,
    "val2017.zip": VAL,
    "annotations_trainval2017.zip": ANNOTATIONS,
    "stuffthingmaps_trainval2017.zip": MAPS,
}
RESULT = TRAIN | VAL | ANNOTATIONS | {f"stuffthingmaps/{name}": MAPS[name] for name in MAPS}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """COCO's archives, smaller, and its numbers of files, too."""
    for name, files in ARCHIVES.items():
        write_zip(tmp_path / name, files)
    directories = [name.rpartition("/")[0] for name in RESULT]
    for directory in set(directories) - {"annotations"}:
        assert directory in coco.COUNTS
        monkeypatch.setitem(coco.COUNTS, directory, directories.count(directory))
    return tmp_path


def prepare(raw, *words):
    sources = [raw / name for name in ARCHIVES]
    return run("prepare_coco", *sources, "--out", raw / "data", *words)


def files(raw):
    root = raw / "data"
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.*")}
    kept = {name: path for name, path in found.items() if "prepared" not in name}
    return {name: path.read_bytes() for name, path in kept.items() if path.is_file()}


def test_the_archives_become_what_the_data_sets_read(raw):
    assert prepare(raw) == 0
    assert files(raw) == RESULT
    root = raw / "data"
    for part, names in (("train2017", TRAIN), ("val2017", VAL)):
        data = CocoBoxes(root / part, root / "annotations" / f"instances_{part}.json", size=16)
        assert len(data) == len(names)
        assert data.class_names == ["person", "bicycle"]
        assert data[0]["box_classes"].tolist() == [1]
        # the window of 16 x 16 begins at pixel 2: a box of pixels 1 to 9 is seen from 0 to 7
        np.testing.assert_allclose(data[0]["boxes"], [[0, 2 / 16, 7 / 16, 4 / 16]], atol=1e-7)
    parts = {"images": "train2017", "maps": "stuffthingmaps/train2017"}
    maps = ImageMapFolder(root, 16, num_labels=182, void=255, split="all", **parts)
    assert [int(maps[i]["segmentation"].max()) for i in range(4)] == [1, 2, 3, 4]


def test_archives_come_one_by_one_in_any_order_and_as_directories(raw):

    for name in reversed(ARCHIVES):
        archive = zipfile.ZipFile(raw / name)
        if name == "val2017.zip":
            archive.extractall(raw)
            source = raw / "val2017"
        elif name.startswith("stuff"):
            source = raw / "stuffthingmaps"
            archive.extractall(source)
        else:
            source = raw / name
        assert run("prepare_coco", source, "--out", raw / "data") == 0
    assert files(raw) == RESULT


def test_a_job_that_was_killed_goes_on_without_writing_anything_twice(raw, monkeypatch):
    with monkeypatch.context() as patch:
        # the first time, the files are counted
        calls = iter([coco.records, coco.records, coco.records, stopping(coco.records, 1)])
        patch.setattr(coco, "records", lambda source: next(calls)(source))
        with pytest.raises(Stopped):
            prepare(raw)
    assert len(files(raw)) == len(TRAIN) + 1
    (raw / "data" / ".prepared-3").write_bytes(b"half")
    before = times(raw / "data", "*.jpg")
    assert prepare(raw) == 0
    assert files(raw) == RESULT
    assert before.items() <= times(raw / "data", "*.jpg").items()
    assert not (raw / "data" / ".prepared-3").exists()


def test_another_number_than_cocos_is_refused_before_anything_is_written(raw, caplog_ldm):
    write_zip(raw / "train2017.zip", dict(list(TRAIN.items())[:3]))
    assert prepare(raw) == EXIT_CONFIG
    assert "3 files of the part 'train2017', 1 missing; expected 4" in caplog_ldm.text
    assert files(raw) == {}


def test_files_of_an_unknown_directory_are_not_counted_and_that_is_said(raw, caplog_ldm):
    write_zip(raw / "mine.zip", {"mine/1.jpg": picture(1, SIZE, "JPEG")})
    assert run("prepare_coco", raw / "mine.zip", "--out", raw / "data") == 0
    assert "how many files belong to mine is not known" in caplog_ldm.text


def test_annotations_of_another_archive_join_the_others_uncounted(raw, caplog_ldm):
    assert prepare(raw) == 0
    stuff = {"annotations/stuff_train2017.json": b"{}", "annotations/stuff_train2017.zip": b""}
    write_zip(raw / "stuff_annotations_trainval2017.zip", stuff)
    source = raw / "stuff_annotations_trainval2017.zip"
    assert run("prepare_coco", source, "--out", raw / "data") == 0
    assert "how many files belong to annotations is not known" in caplog_ldm.text
    assert files(raw) == RESULT | {"annotations/stuff_train2017.json": b"{}"}
    write_zip(raw / "annotations_trainval2017.zip", stuff)
    assert prepare(raw) == EXIT_CONFIG
    assert "1 files of the part 'annotations_trainval2017', 5 missing" in caplog_ldm.text


def test_an_archive_of_something_else_is_refused(raw, caplog_ldm):
    write_zip(raw / "train2017.zip", {"notes.txt": b"no image"})
    assert prepare(raw) == EXIT_CONFIG
    assert "holds none of COCO's files" in caplog_ldm.text


def test_digests_are_one_for_each_source(raw, caplog_ldm):
    assert prepare(raw, "--sha256", "0" * 64) == EXIT_CONFIG
    assert "1 digests of 4 sources" in caplog_ldm.text
    assert prepare(raw, *["--sha256", "0" * 64] * 4) == EXIT_CONFIG
    assert "train2017.zip: its SHA-256 is" in caplog_ldm.text


def test_a_name_that_leaves_the_directory_is_refused(raw, caplog_ldm):
    write_zip(raw / "train2017.zip", {"../x.jpg": b"image"})
    assert prepare(raw, "--expect", "any") == EXIT_CONFIG
    assert "expected a relative name" in caplog_ldm.text
    assert not list(raw.rglob("x.jpg"))
