import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from ldm.cli.exits import EXIT_CONFIG
from ldm.config import ConfigError
from ldm.data.coco import CocoBoxes
from ldm.preparation import header, openimages
from ldm.preparation.box_table import boxes_of_images, class_descriptions
from tests.preparation.raw import picture, write_tar
from tests.preparation.scripts import run
from tests.preparation.stopping import Stopped, stopping, times

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLASSES = "/m/011k07,Tortoise\n/m/0120dh,Sea turtle\n/m/01_5g,Container\n"
SIZE = (20, 16)  # width, height
IDS = [f"{i:016x}" for i in range(0x2B, 0x30)]


def row(image, label, box, *, group=0, depiction=0):
    """A line of the table; box: XMin, XMax, YMin, YMax."""
    values = [IDS[image], "xclick", label, 1, *box, 0, 0, group, depiction, -1]
    return ",".join(map(str, values))


ROWS = [
    row(0, "/m/0120dh", (0.25, 0.75, 0.5, 1.0)),
    row(0, "/m/011k07", (0, 1, 0, 0.5), group=-1, depiction=-1),  # nobody looked: kept
    row(1, "/m/01_5g", (0.1, 0.9, 0.25, 0.75)),
    row(2, "/m/01_5g", (0.2, 0.8, 0.25, 0.75), group=1),
    row(2, "/m/011k07", (0.3, 0.7, 0.25, 0.75)),
    row(3, "/m/011k07", (0.4, 0.8, 0.25, 0.75), depiction=1),
    row(4, "/m/011k07", (0.5, 0.5, 0.25, 0.75)),  # without area
    row(4, "/m/0120dh", (0.0, 0.4, 0.0, 0.25)),
]


@pytest.fixture
def raw(tmp_path):
    """The tables of a part, and its images."""
    (tmp_path / "boxes.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    (tmp_path / "classes.csv").write_text(CLASSES)
    (tmp_path / "images").mkdir()
    for i, name in enumerate(IDS):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(picture(i, SIZE, "JPEG"))
    return tmp_path


def prepare(raw, *words, images=("images",), expect=5):
    places = [raw / each for each in images]
    words = ("--classes", raw / "classes.csv", "--out", raw / "data", "--expect", expect, *words)
    return run("prepare_openimages", raw / "boxes.csv", "--images", *places, *words)


def written(raw):
    return json.loads((raw / "data" / "instances_train.json").read_text())


def names_and_boxes(raw):
    """File name -> categories and boxes in pixels."""
    found = written(raw)
    names = {image["id"]: image["file_name"] for image in found["images"]}
    result = {name: [] for name in names.values()}
    for each in found["annotations"]:
        result[names[each["image_id"]]].append((each["category_id"], each["bbox"]))
    return result


def test_boxes_are_in_pixels_and_categories_are_the_lines_of_the_classes(raw):
    assert prepare(raw) == 0
    assert names_and_boxes(raw) == {
        f"{IDS[0]}.jpg": [(2, [5.0, 8.0, 10.0, 8.0]), (1, [0.0, 0.0, 20.0, 8.0])],
        f"{IDS[1]}.jpg": [(3, [2.0, 4.0, 16.0, 8.0])],
        f"{IDS[2]}.jpg": [(1, [6.0, 4.0, 8.0, 8.0])],
        f"{IDS[4]}.jpg": [(2, [0.0, 0.0, 8.0, 4.0])],
    }
    assert written(raw)["categories"] == [
        {"id": 1, "name": "Tortoise"},
        {"id": 2, "name": "Sea turtle"},
        {"id": 3, "name": "Container"},
    ]
    ids = [each["id"] for each in written(raw)["annotations"]]
    assert ids == [1, 2, 3, 4, 5]


def test_the_data_set_of_boxes_reads_the_fractions_of_the_table(raw):
    assert prepare(raw) == 0
    data = CocoBoxes(raw / "images", raw / "data" / "instances_train.json", size=[16, 20])
    assert data.class_names == ["Tortoise", "Sea turtle", "Container"]
    assert [item["relpath"] for item in data] == [f"{IDS[i]}.jpg" for i in (0, 1, 2, 4)]
    assert data[0]["box_classes"].tolist() == [1, 0]
    np.testing.assert_allclose(data[0]["boxes"], [[0.25, 0.5, 0.5, 0.5], [0, 0, 1, 0.5]], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        ((), [2, 1, 1, 0, 1]),
        (("--keep-groups",), [2, 1, 2, 0, 1]),
        (("--keep-depictions",), [2, 1, 1, 1, 1]),
        (("--keep-groups", "--keep-depictions"), [2, 1, 2, 1, 1]),
    ],
)
def test_groups_and_depictions_are_kept_on_demand(raw, flags, counts):
    assert prepare(raw, *flags) == 0
    found = names_and_boxes(raw)
    assert [len(found.get(f"{name}.jpg", [])) for name in IDS] == counts


def test_images_in_archives_are_unpacked_and_an_archive_is_not_read_again(raw, monkeypatch):
    for i, names in enumerate((IDS[:3], IDS[3:])):
        files = {f"train_{i}/{name}.jpg": raw / "images" / f"{name}.jpg" for name in names}
        contents = {name: path.read_bytes() for name, path in files.items()}
        write_tar(raw / f"train_{i}.tar.gz", contents | {"train_0/notes.txt": b"no image"})
    archives = ("train_0.tar.gz", "train_1.tar.gz")
    assert prepare(raw, images=archives) == 0
    unpacked = sorted((raw / "data" / "train").iterdir())
    assert [path.name for path in unpacked] == [f"{name}.jpg" for name in IDS]
    data = CocoBoxes(raw / "data" / "train", raw / "data" / "instances_train.json", size=16)
    assert len(data) == 4
    (raw / "data" / "instances_train.json").unlink()
    monkeypatch.setattr(openimages, "members", stopping(openimages.members, 0))
    assert prepare(raw, images=archives) == 0
    assert len(written(raw)["images"]) == 4


def test_an_image_that_lies_on_its_side_has_its_upright_size(raw):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(raw / "images" / f"{IDS[1]}.jpg").save(file, "JPEG", exif=exif)
    (raw / "images" / f"{IDS[1]}.jpg").write_bytes(file.getvalue())
    assert prepare(raw) == 0
    image = next(each for each in written(raw)["images"] if each["file_name"].startswith(IDS[1]))
    assert (image["width"], image["height"]) == (SIZE[1], SIZE[0])
    data = CocoBoxes(raw / "images", raw / "data" / "instances_train.json", size=16)
    assert data[1]["relpath"] == f"{IDS[1]}.jpg"


def test_a_job_that_was_killed_does_not_look_at_an_image_again(raw, monkeypatch):
    prepare(raw, "--out", raw / "whole")
    looked = []

    def size(path):
        looked.append(path.stem)
        return header_size(path)

    header_size = header.upright_header_size
    monkeypatch.setattr(header, "upright_header_size", size)
    monkeypatch.setattr(openimages, "_CHUNK", 1)
    with monkeypatch.context() as patch:
        patch.setattr(openimages, "boxes_of_images", stopping(openimages.boxes_of_images, 3))
        with pytest.raises(Stopped):
            prepare(raw)
    assert looked == IDS[:3]
    assert not (raw / "data" / "instances_train.json").exists()
    with (raw / "data" / ".sizes-train").open("a") as notes:
        notes.write(f"{IDS[3]}.jpg\t9")  # of 99: half a line
    (raw / "data" / ".prepared-instances_train.json").write_text('{"images": [')
    assert prepare(raw) == 0
    assert looked == IDS
    results = [raw / name / "instances_train.json" for name in ("data", "whole")]
    assert results[0].read_bytes() == results[1].read_bytes()
    assert not list((raw / "data").glob(".sizes*"))
    before = times(raw / "data", "*.json")
    assert prepare(raw) == 0
    assert looked == IDS
    assert times(raw / "data", "instances*") == {results[0]: before[results[0]]}


def test_missing_images_are_named_and_counted(raw, caplog_ldm):
    (raw / "images" / f"{IDS[1]}.jpg").unlink()
    (raw / "images" / f"{IDS[2]}.jpg").write_bytes(b"no image")
    assert prepare(raw) == EXIT_CONFIG
    assert f"images that are not there or cannot be read: {IDS[1]}, {IDS[2]}" in caplog_ldm.text
    assert "images that cannot be read (not an image)" in caplog_ldm.text
    assert "3 files of the part 'train', 2 missing; expected 5" in caplog_ldm.text
    assert not (raw / "data" / "instances_train.json").exists()
    assert prepare(raw, expect="any") == 0
    assert set(names_and_boxes(raw)) == {f"{IDS[0]}.jpg", f"{IDS[4]}.jpg"}


def test_images_that_came_since_are_found_when_all_are_expected(raw):
    apart = raw / f"{IDS[0]}.jpg"
    (raw / "images" / apart.name).rename(apart)
    assert prepare(raw, expect="any") == 0
    assert apart.name not in names_and_boxes(raw)
    apart.rename(raw / "images" / apart.name)
    assert prepare(raw) == 0
    assert apart.name in names_and_boxes(raw)


def test_images_of_other_names_are_refused(raw, caplog_ldm):
    for path in (raw / "images").iterdir():
        path.rename(path.with_stem(f"x{path.stem}"))
    assert prepare(raw, expect="any") == EXIT_CONFIG
    assert "none of the 5 images of the table" in caplog_ldm.text


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([HEADER, ROWS[0], ROWS[2], ROWS[1]], "do not stand together; sort them by ImageID"),
        ([HEADER.replace("XMax", "Right"), *ROWS], "has no column XMax"),
        ([], "has no column ImageID"),
        ([HEADER, ROWS[0], ROWS[1].replace("0.5", "half")], "line 3"),
        ([HEADER, ROWS[0], ROWS[1][:40]], "line 3"),
        ([HEADER, ROWS[0].replace("/m/0120dh", "/m/other")], "/m/other .* has no description"),
    ],
)
def test_a_table_that_is_none_is_said(raw, caplog_ldm, lines, problem):
    (raw / "boxes.csv").write_text("\n".join(lines))
    assert prepare(raw) == EXIT_CONFIG
    assert re.search(problem, caplog_ldm.text)


def test_the_table_is_read_as_a_stream(tmp_path):
    path, told = tmp_path / "boxes.csv", []
    path.write_text("\n".join([HEADER, *ROWS, "damaged"]) + "\n")
    images = boxes_of_images(path, told.append)
    image, rows = next(images)
    assert (image, len(rows)) == (IDS[0], 2)
    assert sum(told) < len(path.read_text()) / 2
    with pytest.raises(ConfigError, match="line 10"):
        list(images)


def test_names_of_classes_are_told_apart_and_a_header_is_none(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text('LabelName,DisplayName\n/m/1,Bat\n/m/2,Bat\n/m/3,"Bow, arrow"\n')
    assert list(class_descriptions(path).values()) == ["Bat", "Bat (/m/2)", "Bow, arrow"]
    for text, problem in (
        ("/m/1,Bat\n/m/1,Cat\n", "line 2: the label /m/1 is there twice"),
        ("/m/1\n", "line 1: .* expected a label and a name"),
        ("", "is empty"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            class_descriptions(path)


def test_archives_and_a_directory_do_not_go_together(raw, caplog_ldm):
    write_tar(raw / "a.tar", {"a.jpg": b"x"})
    assert prepare(raw, images=("a.tar", "images")) == EXIT_CONFIG
    assert "expected one directory, or archives alone" in caplog_ldm.text
