"""Images and captions of tars, each read where it lies."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data import shard_index
from ldm.data.module import DataModuleFromConfig
from ldm.data.shards import Shards
from tests.data.reading import faults, read_whole
from tests.data.tars import picture, samples, shards, write_tar


def read(place, **params):
    given = {"shards": str(place), "size": 20, "split": "all"} | params
    return instantiate_from_config({"target": "ldm.data.shards.Shards", "params": given})


def generator(seed):
    return np.random.default_rng(seed)


def items(data):
    return [data[index] for index in range(len(data))]


def test_samples_are_those_that_webdataset_streams(tmp_path):
    expected = []
    for path in shards(tmp_path):
        with path.open("rb") as stream:
            files = tar_file_expander([{"url": path.name, "stream": stream}])
            expected += group_by_keys(files)
    found = items(read(tmp_path))
    assert len(found) == len(expected) == 10
    for item, sample in zip(found, expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])))
        np.testing.assert_array_equal(item["image"], pixels[:, 5:25])
        assert item["caption"] == sample["txt"].decode()
        assert item["relpath"] == f"{sample['__url__']}/{sample['__key__']}.jpg"


def test_any_order_gives_the_same_samples_and_a_copy_does_too(tmp_path):
    shards(tmp_path)
    data = read(tmp_path, random_crop=True, flip_p=0.5)
    copy = pickle.loads(pickle.dumps(data))
    forth = [data.item(index, generator(index)) for index in range(10)]
    back = [copy.item(index, generator(index)) for index in reversed(range(10))]
    for one, two in zip(forth, reversed(back), strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])
        assert one["caption"] == two["caption"]


def batches(place, rank, world_size):
    config = {
        "target": "ldm.data.shards.Shards",
        "params": {"shards": str(place), "size": 16, "split": "all", "random_crop": True},
    }
    module = DataModuleFromConfig(4 // world_size, config, num_workers=0)
    module._rank = lambda: (rank, world_size)
    module.setup()
    return list(module.train_dataloader())


def test_two_processes_see_together_what_one_sees(tmp_path):
    shards(tmp_path)
    whole, parts = batches(tmp_path, 0, 1), [batches(tmp_path, rank, 2) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 2
    for one, first, second in zip(whole, *parts, strict=True):
        assert one["caption"][::2] == first["caption"]
        assert one["caption"][1::2] == second["caption"]
        np.testing.assert_array_equal(one["image"][::2], first["image"])


# which tars


def test_shards_are_named_by_directory_file_pattern_or_list(tmp_path):
    first, second = shards(tmp_path / "deep/er")
    pattern = f"{tmp_path}/deep/er/{{00000..00001}}.tar"
    for given in (tmp_path, pattern, [str(first), str(second)], [str(first), str(tmp_path)]):
        assert len(Shards(given if isinstance(given, list) else str(given), 16, split="all")) == 10
    assert len(read(second)) == 5


def test_paths_may_be_relative_or_not(tmp_path, monkeypatch):
    shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = Shards(["00000.tar", f"{tmp_path}/00001.tar"], 16, split="all")
    assert [data[index]["relpath"][:9] for index in (0, 9)] == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{place}/{{00000..00004}}.tar", "3 of 5 are not there, e.g. {place}/00002.tar"),
        ("{place}/00001.tra", "did you mean {place}/00001.tar?"),
        ("{place}/{{00000..}}.tar", "are not there"),
        ("https://host/{{0..4}}.tar", "expected files of this machine"),
        ("{place}/empty", "holds no files that end in .tar"),
    ],
)
def test_shards_that_are_not_there_are_named(tmp_path, given, expected):
    shards(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as error:
        Shards(given.format(place=tmp_path))
    assert str(error.value).startswith("shards: ")
    assert expected.format(place=tmp_path) in str(error.value)


# which samples


def test_samples_without_a_caption_are_left_out_and_counted(tmp_path, caplog_ldm):
    members = [
        ("a.png", picture(0)),
        ("b.png", picture(1)), ("b.txt", " \n"),
        ("c.png", picture(2)), ("c.json", {"caption": "from JSON"}),
        ("d.png", picture(3)), ("d.json", "{"),
        ("e.png", picture(4)), ("e.json", {"caption": None, "text": "a text"}),
        ("f.png", picture(5)), ("f.txt", ""), ("f.json", {"caption": "behind an empty text"}),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    texts = [item["caption"] for item in items(read(tmp_path))]
    assert texts == ["from JSON", "a text", "behind an empty text"]
    assert "3 of 6 images (all) in 1 tars" in caplog_ldm.text
    assert "left out of 6 images: 3 without a caption" in caplog_ldm.text
    bare = items(read(tmp_path, captions=False))
    assert len(bare) == 6
    assert "caption" not in bare[2]


def test_lines_of_a_text_are_alternatives(tmp_path):
    members = [("a.png", picture(0)), ("a.txt", "one\n two \n\n")]
    write_tar(tmp_path / "a.tar", members)
    train = read(tmp_path, split="train", val_fraction=0)
    assert {train.item(0, generator(seed))["caption"] for seed in range(20)} == {"one", "two"}
    assert {read(tmp_path).item(0, generator(seed))["caption"] for seed in range(9)} == {"one"}
    drawn = read(tmp_path, random_caption=True)
    assert {drawn.item(0, generator(seed))["caption"] for seed in range(20)} == {"one", "two"}


@pytest.mark.parametrize(("text", "is_mirrored"), [("a dog", True), ("a dog on the left", False)])
def test_a_caption_that_says_a_side_prevents_mirroring(tmp_path, text, is_mirrored):
    write_tar(tmp_path / "a.tar", [("a.png", picture(0)), ("a.txt", text)])
    plain, item = read(tmp_path)[0]["image"], read(tmp_path, flip_p=1)[0]
    np.testing.assert_array_equal(item["image"], plain[:, ::-1] if is_mirrored else plain)


@pytest.mark.parametrize(
    ("params", "kept", "told"),
    [
        ({}, "abcd", "1 with a side below 8 pixels"),
        ({"min_side": 20}, "acd", "2 with a side below min_side, 20"),
        ({"max_aspect": 2.0}, "abc", "2 longer than max_aspect, 2.0"),
        ({"min_side": 20, "max_aspect": 1}, "c", "4 longer than max_aspect, 1"),
    ],
)
def test_images_may_be_too_small_or_too_long(tmp_path, caplog_ldm, params, kept, told):
    sizes = {"a": (20, 40), "b": (19, 30), "c": (64, 64), "d": (82, 40), "e": (7, 30)}
    members = [
        member
        for key, size in sizes.items()
        for member in ((f"{key}.png", picture(0, *size)), (f"{key}.txt", key))
    ]
    write_tar(tmp_path / "a.tar", members)
    assert "".join(item["caption"] for item in items(read(tmp_path, **params))) == kept
    assert told in caplog_ldm.text


def test_splits_depend_on_the_keys_alone(tmp_path):
    shards(tmp_path / "two", 2, 6)
    write_tar(tmp_path / "one/other.tar", reversed(samples(0, 12)))
    held_out = []
    for place in ("two", "one"):
        texts = {
            split: {item["caption"] for item in items(read(tmp_path / place, split=split, **part))}
            for split, part in (("train", {"val_fraction": 0.3}), ("all", {}))
        }
        validation = read(tmp_path / place, split="validation", val_fraction=0.3)
        held_out.append({item["caption"] for item in items(validation)})
        assert held_out[-1] == texts["all"] - texts["train"]
        assert 0 < len(held_out[-1]) < 12
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"min_side": 100}, "no sample is left of 5 images: 5 with a side below min_side, 100"),
        ({"max_aspect": 0.5}, "max_aspect: 0.5; expected 1 or more"),
        ({"split": "valid"}, "split: 'valid'; expected .*did you mean 'validation'"),
        ({"flip_p": 2}, "flip_p: 2; expected a probability"),
    ],
)
def test_what_leaves_nothing_is_refused(tmp_path, params, expected):
    shards(tmp_path, 1)
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, **params)


def test_shards_without_any_caption_say_how_they_are_read(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", picture(0))])
    with pytest.raises(ConfigError, match=r"1 without a caption \(captions: false takes them\)"):
        read(tmp_path)
    assert items(read(tmp_path, captions=False))[0].keys() == {"image", "relpath"}


def test_a_configuration_is_checked_against_the_parameters(tmp_path):
    params = {"shards": "DIR", "min_sides": 3}
    config = {"train": {"target": "ldm.data.shards.Shards", "params": params}}
    with pytest.raises(ConfigError, match="did you mean 'min_side'"):
        check({"data": {"target": "ldm.data.module.DataModuleFromConfig", "params": config}})


# what is bad


def test_bad_samples_are_named_and_left_out(tmp_path, caplog_ldm):
    members = [
        ("a.txt", "no image"), ("a.json", {}),
        ("b.png", b"text"), ("b.txt", "b"),
        *samples(0, 3),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    assert len(read(tmp_path)) == 3
    assert "a.tar: a: has no image, only txt, json" in caplog_ldm.text
    assert "a.tar: b: not an image" in caplog_ldm.text


def test_an_image_that_cannot_be_decoded_is_bad_and_replaced_with_its_caption(tmp_path):
    members = [("a.png", picture(0)[:200]), ("a.txt", "a"), *samples(0, 2)]
    write_tar(tmp_path / "a.tar", members)
    data = read(tmp_path)
    found, bad = read_whole(data)
    assert [name for name, _ in bad] == [f"{tmp_path}/a.tar/a.png"]
    assert found[0]["caption"] in ("caption 0", "caption 1")
    assert found[0]["relpath"] == f"a.tar/00000000{found[0]['caption'][-1]}.jpg"
    assert [item["caption"] for item in found[1:]] == ["caption 0", "caption 1"]


def test_a_caption_that_is_no_text_is_named_and_its_sample_left_out(tmp_path, caplog_ldm):
    members = [("a.png", picture(0)), ("a.txt", b"\x81\x00\xff"), *samples(0, 2)]
    write_tar(tmp_path / "a.tar", members)
    assert len(read(tmp_path)) == 2
    assert "a.tar: a: its caption: is no text in UTF-8" in caplog_ldm.text


def test_a_caption_that_changed_under_the_index_is_bad(tmp_path):
    path = write_tar(tmp_path / "a.tar", samples(0, 2))
    data = read(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"caption 1", b"\x81" * 9))
    assert list(faults(data)) == [1]


@pytest.mark.parametrize(("kept", "count"), [(0.7, 3), (0.35, 2), (0.05, 0)])
def test_of_a_tar_that_was_cut_off_the_samples_before_are_used(tmp_path, caplog_ldm, kept, count):
    first, second = shards(tmp_path)
    content = second.read_bytes()
    body = len(content.rstrip(b"\0"))
    second.write_bytes(content[: int(kept * body)])
    texts = [item["caption"] for item in items(read(tmp_path))]
    assert texts == [f"caption {number}" for number in range(5 + count)]
    assert "00001.tar: ends too early, behind" in caplog_ldm.text
    assert first.name not in caplog_ldm.text


def test_a_tar_that_was_cut_off_between_members_is_told(tmp_path, caplog_ldm):
    path = write_tar(tmp_path / "a.tar", [("a.png", picture(0)), ("a.txt", "a" * 512)])
    path.write_bytes(path.read_bytes().rstrip(b"\0"))
    assert len(read(tmp_path)) == 1
    assert "ends too early, behind 2 members: has no end mark" in caplog_ldm.text


def test_a_file_that_is_no_tar_is_named_and_no_image_at_all_is_an_error(tmp_path, caplog_ldm):
    (tmp_path / "b.tar").write_bytes(b"text" * 400)
    with pytest.raises(ConfigError, match=r"no image in 1 tars: b\.tar: is no plain tar"):
        read(tmp_path)
    shards(tmp_path, 1)
    assert len(read(tmp_path)) == 5
    assert "b.tar: is no plain tar" in caplog_ldm.text


# the index


def test_the_index_is_stored_and_made_anew_for_another_tar(tmp_path, monkeypatch):
    (path,) = shards(tmp_path, 1)
    stored = tmp_path / "00000.tar.index.npz"
    first = items(read(tmp_path))
    assert [each.name for each in sorted(tmp_path.iterdir())] == [path.name, stored.name]
    monkeypatch.setattr(shard_index, "_made", None)  # what is stored is enough
    again = items(read(tmp_path))
    assert [item["caption"] for item in again] == [item["caption"] for item in first]
    monkeypatch.undo()
    write_tar(path, samples(7, 9))
    assert [item["caption"] for item in items(read(tmp_path))] == ["caption 7", "caption 8"]
    stored.write_bytes(stored.read_bytes()[:100])
    assert len(read(tmp_path)) == 2


def test_the_index_of_a_place_that_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    shards(tmp_path / "tars", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = shard_index._store

    def refused(place, *rest):
        if place.parent == tmp_path / "tars":
            raise PermissionError("read-only")
        write(place, *rest)

    monkeypatch.setattr(shard_index, "_store", refused)
    assert len(read(tmp_path / "tars")) == 5
    assert os.listdir(tmp_path / "tars") == ["00000.tar"]
    assert len(list((tmp_path / "cache/ldm/shards").glob("00000.tar.*.index.npz"))) == 1
    monkeypatch.setattr(shard_index, "_made", None)
    assert len(read(tmp_path / "tars")) == 5


def test_the_index_goes_where_it_is_wanted(tmp_path):
    shards(tmp_path / "tars", 2)
    read(tmp_path / "tars", index_dir=str(tmp_path / "indices"))
    assert len(list((tmp_path / "indices").iterdir())) == len(os.listdir(tmp_path / "tars")) == 2


def test_progress_is_told(tmp_path, monkeypatch, caplog_ldm):
    shards(tmp_path)
    monkeypatch.setattr("ldm.data.shards._PROGRESS_SECONDS", -1.0)
    read(tmp_path)
    assert "looked into 1 of 2 tars" in caplog_ldm.text
