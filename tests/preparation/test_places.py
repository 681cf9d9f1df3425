import pytest

from ldm.cli.exits import EXIT_CONFIG
from ldm.config import ConfigError
from ldm.data.folder import ImageFolder, ImageList
from ldm.preparation.places import COUNTS, divide_for_inpainting, read_labels
from tests.preparation.raw import picture, write_tar
from tests.preparation.scripts import run

SCENES = ["a/abbey", "a/apartment_building/outdoor", "b/beach"]
CLASSES = ["abbey", "apartment_building-outdoor", "beach"]
TRAIN = {
    f"data_large/{scene}/{i:08d}.jpg": picture(10 * s + i, kind="JPEG")
    for s, scene in enumerate(SCENES)
    for i in (1, 2)
}
VAL = {f"val_large/Places365_val_{i:08d}.jpg": picture(i, kind="JPEG") for i in range(1, 9)}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty directory to work in, with the owner's archives and lists beside it."""
    write_tar(tmp_path / "train.tar", TRAIN)
    write_tar(tmp_path / "val_large.tar", VAL)
    categories = "".join(f"/{scene} {i}\n" for i, scene in enumerate(SCENES))
    (tmp_path / "categories_places365.txt").write_text(categories)
    labels = "".join(f"{name.partition('/')[2]} {i % 3}\n" for i, name in enumerate(VAL))
    (tmp_path / "places365_val.txt").write_text(labels)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_training_images_lie_in_directories_of_their_classes(work):
    assert run("prepare_places", "../train.tar", "--expect", 6) == 0
    data = ImageFolder("data/places/train", size=16, split="all")
    assert data.class_names == CLASSES
    assert [data[i]["human_label"] for i in range(6)] == [name for name in CLASSES for _ in (1, 2)]
    for scene, name in zip(SCENES, CLASSES, strict=True):
        path = work / "data" / "places" / "train" / name / "00000002.jpg"
        assert path.read_bytes() == TRAIN[f"data_large/{scene}/00000002.jpg"]


@pytest.mark.parametrize(
    "root", ["data_256/", "data_large_standard/", "places365_standard/train/", ""]
)
def test_the_owners_other_layouts_give_the_same_names(work, root):
    source = work / "directory"
    for name, content in TRAIN.items():
        path = source / name.replace("data_large/", root)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert run("prepare_places", source, "--expect", 6) == 0
    assert ImageFolder("data/places/train", size=16).class_names == CLASSES


def test_validation_images_are_listed_for_inpainting(work, caplog_ldm):
    assert run("prepare_places", "../val_large.tar", "--part", "val", "--expect", 8) == 0
    assert "divided by hash" in caplog_ldm.text
    validation = ImageList("data/places/inpainting_val.txt", size=16)
    test = ImageList("data/places/inpainting_test.txt", size=16)
    assert (len(validation), len(test)) == (1, 7)
    assert {*validation.names, *test.names} == {name.replace("_large", "") for name in VAL}
    name = test.names[0]
    assert (work / "data/places" / name).read_bytes() == VAL[name.replace("val/", "val_large/")]


def test_labels_make_directories_of_classes_of_the_validation_images(work):
    words = ["../val_large.tar", "--part", "val", "--expect", 8, "--labels", ".."]
    assert run("prepare_places", *words) == 0
    data = ImageFolder("data/places/val", size=16, split="all")
    assert data.class_names == CLASSES
    found = {name.partition("/")[2]: name.partition("/")[0] for name in data.names}
    assert found == {name.partition("/")[2]: CLASSES[i % 3] for i, name in enumerate(VAL)}
    assert ImageList("data/places/inpainting_test.txt", size=16).names


def test_published_lists_are_taken(work):
    lists = work / "published"
    lists.mkdir()
    (lists / "inpainting_val.txt").write_text("Places365_val_00000003.jpg\n")
    (lists / "inpainting_test.txt").write_text("eval/Places365_val_00000007.png\n")
    words = ["../val_large.tar", "--part", "val", "--expect", 8, "--lists", lists]
    assert run("prepare_places", *words) == 0
    names = ["val/Places365_val_00000003.jpg", "val/Places365_val_00000007.jpg"]
    parts = ("val", "test")
    assert [
        ImageList(f"data/places/inpainting_{part}.txt", size=16).names[0] for part in parts
    ] == names


def test_the_papers_numbers_are_divided_exactly_and_without_overlap():
    names = [f"val/Places365_val_{i:08d}.jpg" for i in range(1, COUNTS["val"] + 1)]
    validation, test = divide_for_inpainting(names)
    assert (len(set(validation)), len(set(test))) == (2_000, 30_000)
    assert set(validation).isdisjoint(test)
    assert set(validation + test) <= set(names)


def test_an_archive_that_ends_early_leaves_whole_images_and_is_not_taken_for_done(work, caplog_ldm):
    whole = (work.parent / "train.tar").read_bytes()
    third = whole.index(list(TRAIN.values())[2])
    (work / "train.tar").write_bytes(whole[: third + 100])
    assert run("prepare_places", "train.tar", "--expect", 6) == EXIT_CONFIG
    assert "00000001.jpg: cannot be read from the archive: unexpected end" in caplog_ldm.text
    found = list((work / "data" / "places" / "train").rglob("*.jpg"))
    assert len(found) == 2
    assert all(path.read_bytes() in TRAIN.values() for path in found)


def test_a_wrong_number_is_refused(work, caplog_ldm):
    assert run("prepare_places", "../train.tar") == EXIT_CONFIG
    assert "6 files of the part 'train', 1803454 missing; expected 1803460" in caplog_ldm.text


@pytest.mark.parametrize("flag", ["--labels", "--lists"])
def test_flags_of_validation_images_are_refused_for_training(work, caplog_ldm, flag):
    assert run("prepare_places", "../train.tar", flag, "..") == EXIT_CONFIG
    assert f"{flag}: is for the images of --part val" in caplog_ldm.text


def test_labels_that_do_not_fit_are_refused(work, caplog_ldm):
    table = work.parent / "places365_val.txt"
    whole = table.read_text()
    table.write_text(whole.replace("00000003.jpg 2", "00000003.jpg 9"))
    with pytest.raises(ConfigError, match=r"label 9 of places365_val.txt is not in"):
        read_labels(work.parent)
    table.write_text("one two three\n")
    with pytest.raises(ConfigError, match=r"line 1 is 'one two three'; expected a name and"):
        read_labels(work.parent)
    table.write_text(whole.partition("\n")[2])
    words = ["../val_large.tar", "--part", "val", "--expect", 8, "--labels", ".."]
    assert run("prepare_places", *words) == EXIT_CONFIG
    assert "Places365_val_00000001.jpg has no label" in caplog_ldm.text
    table.unlink()
    with pytest.raises(ConfigError, match=r"there is no .*places365_val.txt"):
        read_labels(work.parent)
