from functools import partial

import pytest

from ldm.config import ConfigError
from ldm.data.listing import split_by_hash
from ldm.preparation.lists import by_hash, held_out, listed, write_split
from ldm.preparation.record import stem

NAMES = [f"a/{i:03d}.webp" for i in range(40)]


divide = partial(held_out, val_fraction=0.2)


def lines(path):
    return path.read_text().splitlines()


def test_a_stem_is_the_last_part_without_its_ending():
    assert [stem(each) for each in ("a/b/0.1.png", "b", "a/b", ".hidden")] == [
        "0.1",
        "b",
        "b",
        ".hidden",
    ]


def test_a_published_list_means_names_with_other_directories_and_endings(tmp_path):
    (tmp_path / "list.txt").write_text("images/007.npy\n\n003.jpg\n")
    assert listed(NAMES, tmp_path / "list.txt") == ["a/003.webp", "a/007.webp"]


def test_a_published_list_of_other_images_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("007.npy\n" + "".join(f"x{i}.png\n" for i in range(7)))
    with pytest.raises(ConfigError, match=r"7 of its 8 names .* x0.png, .*x4.png and 2 more;"):
        listed(NAMES, tmp_path / "list.txt")
    with pytest.raises(ConfigError, match=r"--lists: there is no list .*none.txt"):
        listed(NAMES, tmp_path / "none.txt")


def test_without_lists_the_split_is_that_of_the_data_sets(tmp_path):
    train, validation = tmp_path / "train.txt", tmp_path / "validation.txt"
    write_split(NAMES, (train, validation), divide, lists=None)
    assert lines(train) == split_by_hash(NAMES, "train", 0.2)
    assert lines(validation) == split_by_hash(NAMES, "validation", 0.2)


def test_published_lists_are_translated_and_kept_by_a_later_call(tmp_path, caplog_ldm):
    published = tmp_path / "published"
    published.mkdir()
    (published / "train.txt").write_text("000.jpg\n001.jpg\n")
    (published / "validation.txt").write_text("002.jpg\n")
    train, validation = tmp_path / "data" / "train.txt", tmp_path / "data" / "validation.txt"
    write_split(NAMES, (train, validation), divide, lists=published)
    assert (lines(train), lines(validation)) == (NAMES[:2], NAMES[2:3])
    write_split(NAMES, (train, validation), divide, lists=None)
    assert (lines(train), lines(validation)) == (NAMES[:2], NAMES[2:3])
    assert "are there and kept" in caplog_ldm.text
    assert "they name 3 images, of 40 that could be: remove both" in caplog_ldm.text


def test_lists_that_are_there_and_name_every_image_are_kept_without_a_word(tmp_path, caplog_ldm):
    files = (tmp_path / "train.txt", tmp_path / "validation.txt")
    first = write_split(NAMES, files, divide, lists=None)
    assert write_split(NAMES, files, divide, lists=None) == first
    assert not [each for each in caplog_ldm.records if each.levelname == "WARNING"]


def test_published_lists_with_an_image_in_common_are_refused(tmp_path):
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).write_text("000.jpg\n")
    with pytest.raises(ConfigError, match=r"1 images are in both lists, a/000.webp"):
        write_split(
            NAMES,
            (tmp_path / "out" / "train.txt", tmp_path / "out" / "validation.txt"),
            divide,
            lists=tmp_path,
        )


def test_the_order_by_hash_does_not_depend_on_the_order_given_and_adding_moves_nothing():
    shuffled = by_hash(NAMES)
    assert sorted(shuffled) == NAMES != shuffled
    assert by_hash(NAMES[::-1]) == shuffled
    assert [each for each in by_hash([*NAMES, "b/1.webp"]) if each in NAMES] == shuffled
