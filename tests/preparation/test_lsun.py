import io
import sys

import numpy as np
import pytest
from PIL import Image

from ldm.cli.exits import EXIT_CONFIG
from ldm.config import ConfigError
from ldm.data.lsun import LSUNChurchesTrain, LSUNChurchesValidation
from ldm.preparation.databases import database_entries, database_file
from tests.preparation.raw import picture, write_lsun
from tests.preparation.scripts import run

IMAGES = {f"{i:02x}{i}c0ffee": picture(i, kind="WEBP") for i in range(6)}
FILES = {f"{key[:3]}/{key}.webp": content for key, content in sorted(IMAGES.items())}
HELD_OUT = {f"val{i}": picture(100 + i, kind="WEBP") for i in range(2)}


@pytest.fixture
def churches(tmp_path, monkeypatch):
    """An empty directory with both databases of the churches beside it."""
    write_lsun(tmp_path / "church_outdoor_train_lmdb", IMAGES)
    write_lsun(tmp_path / "church_outdoor_val_lmdb", HELD_OUT)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def export(source, *words, part="train", expect=6):
    words = ["--category", "church_outdoor", "--part", part, "--expect", expect, *words]
    return run("prepare_lsun", source, *words)


def written(churches):
    root = churches / "work" / "data" / "lsun" / "churches"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.webp")}


def names_of(part):
    with open(f"data/lsun/church_outdoor_{part}.txt") as file:
        return file.read().splitlines()


def test_a_database_is_exported_as_it_is_and_read_by_the_data_sets(churches):
    assert export(churches / "church_outdoor_train_lmdb") == 0
    assert written(churches) == FILES
    train, validation = LSUNChurchesTrain(size=16, flip_p=0.0), LSUNChurchesValidation(size=16)
    assert {*train.names, *validation.names} == set(FILES)
    assert (len(train), len(validation)) == (5, 1)
    for data in (train, validation):
        for i in range(len(data)):
            item = data[i]
            image = Image.open(io.BytesIO(FILES[item["relative_file_path_"]]))
            np.testing.assert_array_equal(item["image"], np.asarray(image))


@pytest.mark.parametrize("order", [["train", "val"], ["val", "train"], ["train", "val", "train"]])
def test_both_of_the_owners_parts_are_the_owners_split_in_any_order(churches, order):
    for part in order:
        source = churches / f"church_outdoor_{part}_lmdb"
        assert export(source, part=part, expect={"train": 6, "val": 2}[part]) == 0
    assert names_of("train") == list(FILES)
    assert names_of("val") == ["val/val0.webp", "val/val1.webp"]
    assert len(LSUNChurchesTrain(size=16)) == 6
    assert len(LSUNChurchesValidation(size=16)) == 2


def test_published_lists_of_flat_names_are_understood(churches):
    keys = sorted(IMAGES)
    lists = churches / "lists"
    lists.mkdir()
    (lists / "church_outdoor_train.txt").write_text("".join(f"{key}.webp\n" for key in keys[:4]))
    (lists / "church_outdoor_val.txt").write_text("".join(f"{key}.webp\n" for key in keys[4:]))
    assert export(churches / "church_outdoor_train_lmdb", "--lists", lists) == 0
    assert [LSUNChurchesTrain(size=16).names, LSUNChurchesValidation(size=16).names] == [
        list(FILES)[:4],
        list(FILES)[4:],
    ]


def test_another_number_than_lsuns_is_refused_before_anything_is_written(churches, caplog_ldm):
    source = churches / "church_outdoor_train_lmdb"
    assert run("prepare_lsun", source, "--category", "church_outdoor") == EXIT_CONFIG
    assert "6 files of the part 'train', 126221 missing; expected 126227" in caplog_ldm.text
    assert not written(churches)


def test_a_part_that_lsun_does_not_publish_is_refused(churches, caplog_ldm):
    source = churches / "church_outdoor_val_lmdb"
    assert run("prepare_lsun", source, "--category", "cat", "--part", "val") == EXIT_CONFIG
    assert "no such part of cat; expected train" in caplog_ldm.text


def test_lists_do_not_go_with_the_owners_validation_images(churches, caplog_ldm):
    source = churches / "church_outdoor_val_lmdb"
    assert export(source, "--lists", ".", part="val", expect=2) == EXIT_CONFIG
    assert "expected no --part val" in caplog_ldm.text


def test_a_zip_and_a_directory_without_a_database_are_refused(tmp_path):
    (tmp_path / "a.zip").touch()
    with pytest.raises(ConfigError, match="unzip it first"):
        database_file(tmp_path / "a.zip")
    with pytest.raises(ConfigError, match=r"holds no data.mdb"):
        database_file(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="is not a database of LSUN"):
        database_entries(tmp_path / "data.mdb")


def test_a_key_that_leaves_the_directory_is_refused(churches, caplog_ldm):
    write_lsun(churches / "bad_lmdb", {"../../x": b"image"})
    assert export(churches / "bad_lmdb", expect=1) == EXIT_CONFIG
    assert "expected a relative name that stays" in caplog_ldm.text
    assert not list(churches.rglob("x.webp"))


def test_a_missing_package_is_said_with_the_command_that_installs_it(churches, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ConfigError, match="pip install lmdb"):
        database_entries(churches / "church_outdoor_train_lmdb" / "data.mdb")
