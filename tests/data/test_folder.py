import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data import images
from ldm.data.folder import ImageFolder, ImageList
from ldm.data.substitutes import known_bad
from tests.data.photographs import gradient, mixed_directory
from tests.data.reading import faults, read_whole


def save(root, *names, side=16):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((side, side, 3), 10 * number, np.uint8)
        pixels[:, : side // 2, 0] = 255
        Image.fromarray(pixels).save(root / name)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fast_decode", [False, True])
def test_mixed_directory_is_read_whole(tmp_path, channels, fast_decode):
    mixed_directory(tmp_path)
    data = ImageFolder(tmp_path, 24, split="all", channels=channels, fast_decode=fast_decode)
    assert len(data) == 13
    items, _ = read_whole(data)
    for item in items:
        assert item["image"].dtype == np.uint8
        assert item["image"].shape == (24, 24, channels)


def test_bad_files_are_counted_and_named(tmp_path, caplog_ldm):
    bad = mixed_directory(tmp_path)
    data = ImageFolder(tmp_path, 24, split="all")
    assert "2 of 13 image files cannot be used" in caplog_ldm.text
    assert "narrow.png (1 x 40 pixels), text.jpg (not an image)" in caplog_ldm.text
    assert {data.names[index] for index in faults(data)} == bad
    assert [name for name, _ in known_bad(data)] == [
        str(tmp_path / name) for name in ("narrow.png", "text.jpg")
    ]


def test_a_narrow_image_is_bad_however_far_the_survey_came(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_SURVEY_SECONDS", -1.0)
    save(tmp_path, "a.png", "c.png")
    Image.new("RGB", (1, 40)).save(tmp_path / "b.png")
    assert faults(ImageFolder(tmp_path, 16, split="all")) == {1: "1 x 40 pixels"}


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_a_directory_of_bad_files_only_is_one_error(tmp_path, damage):
    save(tmp_path, "a.png", "b.png")
    for path in tmp_path.iterdir():
        path.write_bytes(b"text" if damage == "text" else path.read_bytes()[:60])
    with pytest.raises(
        ConfigError, match=r"none of its 2 image files can be used: a\.png .*b\.png"
    ):
        ImageFolder(tmp_path, 16, split="all")


def test_many_bad_files_are_named_in_part(tmp_path, caplog_ldm):
    save(tmp_path, "good.png")
    for number in range(15):
        (tmp_path / f"{number:02}.png").write_text("no image")
    ImageFolder(tmp_path, 16, split="all")
    assert "15 of 16 image files" in caplog_ldm.text
    assert "09.png (not an image), and 5 more" in caplog_ldm.text


def test_small_images_are_enlarged_and_counted(tmp_path, caplog_ldm):
    save(tmp_path, "a.png", "b.png")
    assert ImageFolder(tmp_path, 32, split="all")[0]["image"].shape == (32, 32, 3)
    assert "2 of 2 images are smaller than 32 x 32" in caplog_ldm.text


@pytest.mark.parametrize("make", [ImageFolder, ImageList])
def test_missing_path_is_named(tmp_path, make):
    with pytest.raises(ConfigError, match=r"there is no .*absent"):
        make(tmp_path / "absent")


def test_classes_are_the_first_directories_of_the_whole_set(tmp_path):
    save(tmp_path, "dog/a.png", "dog/b.png", "cat/deep/c.png", "owl/d.png", "owl/e.png")
    for split in ("train", "validation", "all"):
        data = ImageFolder(tmp_path, 16, split=split, val_fraction=0.4)
        assert data.class_names == ["cat", "dog", "owl"]
        for index in range(len(data)):
            item = data[index]
            assert item["human_label"] == item["relpath"].split("/")[0]
            assert data.class_names[item["class_label"]] == item["human_label"]


def test_images_in_the_root_mean_no_classes(tmp_path):
    save(tmp_path, "dog/a.png", "b.png")
    data = ImageFolder(tmp_path, 16, split="all")
    assert data.class_names == []
    assert "class_label" not in data[0]


def test_directories_that_look_like_splits_are_remarked(tmp_path, caplog_ldm):
    save(tmp_path, "train/a.png", "val/b.png")
    ImageFolder(tmp_path, 16, split="all")
    assert "give one of them as root" in caplog_ldm.text


def test_caption_is_drawn_in_training_and_the_first_in_validation(tmp_path):
    save(tmp_path, "a.png", "b.png")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one\ntwo")
    train, validation = (
        ImageFolder(tmp_path, 16, split=split, val_fraction=0.5)
        for split in ("train", "validation")
    )
    assert {train.item(0, generator(seed))["caption"] for seed in range(20)} == {"one", "two"}
    assert {validation.item(0, generator(seed))["caption"] for seed in range(20)} == {"one"}


@pytest.mark.parametrize(
    ("random_caption", "expected"), [(None, {"one"}), (True, {"one", "two"}), (False, {"one"})]
)
def test_a_directory_that_is_one_split_says_whether_a_caption_is_drawn(
    tmp_path, random_caption, expected
):
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one\ntwo")
    data = ImageFolder(tmp_path, 16, split="all", random_caption=random_caption)
    assert {data.item(0, generator(seed))["caption"] for seed in range(20)} == expected


def test_captions_are_not_looked_at_where_they_are_not_wanted(tmp_path):
    save(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nc.png,a dog\n")
    with pytest.raises(ConfigError, match="1 of 1 names in it are of no image"):
        ImageFolder(tmp_path, 16, split="all")
    assert "caption" not in ImageFolder(tmp_path, 16, split="all", captions=False)[0]


@pytest.mark.parametrize(("caption", "flips"), [("a dog", True), ("a dog on the left", False)])
def test_an_image_whose_caption_says_left_is_not_mirrored(tmp_path, caption, flips):
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text(caption)
    data = ImageFolder(tmp_path, 16, split="all", flip_p=1)
    is_mirrored = bool(data[0]["image"][0, 0, 0] == 0)
    assert is_mirrored is flips


def test_random_choices_come_from_the_generator_alone(tmp_path):
    Image.fromarray(gradient(32, 64)).save(tmp_path / "a.png")
    data = ImageFolder(tmp_path, 16, split="all", random_crop=True, flip_p=0.5)
    first, again = (data.item(0, generator(1))["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [data.item(0, generator(seed))["image"] for seed in range(2, 8)]
    assert any((other != first).any() for other in others)


def test_list_names_images_relative_to_itself_or_to_a_root(tmp_path):
    save(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    (tmp_path / "images/list.txt").write_text("c.png\n\na.png\n")
    beside = ImageList(tmp_path / "images/list.txt", size=16)
    assert [beside[i]["relpath"] for i in range(len(beside))] == ["c.png", "a.png"]
    (tmp_path / "list.txt").write_text("b.png\n")
    assert ImageList(tmp_path / "list.txt", tmp_path / "images", 16)[0]["relpath"] == "b.png"


def test_empty_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"list\.txt is empty"):
        ImageList(tmp_path / "list.txt")


def test_index_past_the_end_ends_a_loop(tmp_path):
    save(tmp_path, "a.png", "b.png")
    assert len(list(ImageFolder(tmp_path, 16, split="all"))) == 2
