import pytest

from ldm.config import ConfigError
from ldm.data.listing import (
    class_names,
    existing_directory,
    existing_file,
    list_files,
    list_or_hash,
    split_by_hash,
)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_images_are_found_at_any_depth_in_order(tmp_path):
    touch(tmp_path, "b.JPG", "a/c.png", "a/b/d.webp", "a/c.txt", "notes.txt", "table.csv")
    assert list_files(tmp_path) == (["a/b/d.webp", "a/c.png", "b.JPG"], {"a/c", "notes"})


def test_hidden_files_are_left_out(tmp_path):
    touch(tmp_path, "a.png", "._a.png", ".cache/b.png", "__MACOSX/a.png")
    assert list_files(tmp_path)[0] == ["a.png"]


def test_links_to_directories_are_followed_once(tmp_path):
    touch(tmp_path, "root/a.png", "elsewhere/b.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    assert list_files(tmp_path / "root")[0] == ["a.png", "linked/b.png"]


def test_directory_without_images_is_an_error_that_says_what_is_expected(tmp_path):
    touch(tmp_path, "a.txt")
    with pytest.raises(ConfigError, match=r"holds no images; expected files ending in .*\.jpg"):
        list_files(tmp_path)


def test_missing_directory_names_key_path_and_nearest(tmp_path):
    (tmp_path / "photographs").mkdir()
    with pytest.raises(
        ConfigError, match=r"root: there is no directory .*/photograph; did you.*phs"
    ):
        existing_directory(tmp_path / "photograph", expected="images")


def test_missing_file_names_key_path_and_nearest(tmp_path):
    touch(tmp_path, "captions.json")
    with pytest.raises(
        ConfigError, match=r"file: there is no file .*/caption.json; did you.*ns.json.; expected x"
    ):
        existing_file(tmp_path / "caption.json", key="file", expected="x")
    with pytest.raises(ConfigError, match=r"file: .* is a directory; expected x"):
        existing_file(tmp_path, key="file", expected="x")
    assert existing_file(tmp_path / "captions.json", key="file", expected="x").is_file()


def test_file_in_place_of_a_directory_is_named(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(ConfigError, match=r"a\.png is a file; expected images"):
        existing_directory(tmp_path / "a.png", expected="images")


def test_class_names_are_the_first_directories():
    assert class_names(["dog/b.png", "cat/x/a.png", "cat/y.png"]) == ["cat", "dog"]
    assert class_names(["dog/b.png", "a.png"]) == []


NAMES = [f"{index:04}.png" for index in range(2000)]


def test_splits_are_disjoint_and_complete():
    train, validation = (split_by_hash(NAMES, split, 0.1) for split in ("train", "validation"))
    assert sorted(train + validation) == NAMES
    # four standard errors of a proportion of 0.1 among 2000
    assert abs(len(validation) - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5


def test_split_of_a_name_stays_when_files_are_added():
    before, after = (split_by_hash(names, "validation", 0.1) for names in (NAMES[:1000], NAMES))
    assert before == [name for name in after if name in set(NAMES[:1000])]


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("fraction", [1e-6, 0.999999])
def test_neither_split_is_empty(count, fraction):
    parts = [split_by_hash(NAMES[:count], split, fraction) for split in ("train", "validation")]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == NAMES[:count]


def test_everything_is_for_training_without_a_fraction():
    assert split_by_hash(NAMES, "train", 0) == split_by_hash(NAMES, "all", 0) == NAMES


@pytest.mark.parametrize(
    ("split", "fraction", "names", "named"),
    [
        ("trainn", 0.1, NAMES, "did you mean 'train'"),
        ("train", 1.0, NAMES, "val_fraction: 1.0"),
        ("validation", 0, NAMES, "is empty"),
        ("train", 0.1, NAMES[:1], "expected two images"),
    ],
)
def test_impossible_split_is_named(split, fraction, names, named):
    with pytest.raises(ConfigError, match=named):
        split_by_hash(names, split, fraction)


def test_list_chooses_names_whatever_their_extension(tmp_path):
    (tmp_path / "train.txt").write_text("0003.npy\n\n0001.jpg\n")
    assert list_or_hash(NAMES[:5], tmp_path / "train.txt", "train") == ["0001.png", "0003.png"]


def test_absent_list_means_a_split_by_hash(tmp_path):
    chosen = list_or_hash(NAMES, tmp_path / "absent.txt", "validation")
    assert chosen == split_by_hash(NAMES, "validation", 0.05)


def test_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "train.txt").write_bytes("caf\u00e9.png".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"train\.txt: is not UTF-8 text"):
        list_or_hash(NAMES, tmp_path / "train.txt", "train")


def test_list_of_other_images_is_an_error(tmp_path):
    (tmp_path / "train.txt").write_text("other.jpg\n")
    with pytest.raises(ConfigError, match=r"has, e\.g\., 0000\.png, the list other"):
        list_or_hash(NAMES, tmp_path / "train.txt", "train")
