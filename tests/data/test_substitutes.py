import os

import numpy as np
import pytest
from torch.utils.data import DataLoader

from ldm.cli.exits import exit_code
from ldm.config import ConfigError
from ldm.data.faces import FacesHQTrain
from ldm.data.folder import ImageFolder, ImageList
from ldm.data.module import DataModuleFromConfig
from ldm.data.substitutes import (
    FAULTS,
    BadSample,
    Keyed,
    Substituted,
    first_readable,
    known_bad,
    name_of,
    printable,
)
from ldm.data.superres import SuperResolution
from tests.data.damaged import KINDS, damaged_directory, object_array, picture
from tests.data.reading import faults, read_whole
from tests.data.test_module import Placed


class Numbers:
    """A data set of numbers, some of which are bad."""

    def __init__(self, length=20, bad=(), error=BadSample):
        self.length, self.bad, self.error = length, set(bad), error

    def __len__(self):
        return self.length

    def item(self, index, rng):
        draw = rng.random()
        if index in self.bad:
            raise self.error(f"{index}.jpg", "broken")
        return {"index": index, "draw": draw}


def config(**params):
    return {"target": f"{__name__}.Numbers", "params": params}


def listed(root, **params):
    params = {"file": str(root / "list.txt"), "size": 16, **params}
    return {"target": "ldm.data.folder.ImageList", "params": params}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    return root, damaged_directory(root)


def test_every_kind_of_damage_is_bad_with_its_reason(directory):
    root, bad = directory
    data = ImageList(root / "list.txt", size=16)
    found = {data.names[index]: why for index, why in faults(data).items()}
    assert set(found) == bad
    for name, (_, why) in KINDS.items():
        assert why in found[name]
    assert found["directory.png"] == "Is a directory"


def test_an_array_of_objects_and_a_pipe_are_bad_and_nothing_of_them_is_read(tmp_path):
    picture(tmp_path / "a.png")
    object_array(tmp_path / "b.npy")
    os.mkfifo(tmp_path / "c.jpg")
    found = faults(ImageFolder(tmp_path, 16, split="all"))
    assert found == {1: "holds Python objects, expected numbers", 2: "is no regular file"}


def test_an_array_of_too_many_pixels_is_not_read(tmp_path):
    picture(tmp_path / "a.png")
    with (tmp_path / "b.npy").open("wb") as file:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (10_000, 10_000, 3)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.truncate(file.tell() + 300_000_000)  # a hole, without a block on the disk
    assert "decompression bomb" in faults(ImageFolder(tmp_path, 16, split="all"))[1]


@pytest.mark.parametrize("content", [b"\xff\xfea\x00b", b"a\x81b", b"a cat\0"])
def test_a_caption_that_is_no_text_is_bad(tmp_path, content):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a cat")
    (tmp_path / "b.txt").write_bytes(content)
    found = faults(ImageFolder(tmp_path, 16, split="all"))
    expected = "its caption: is no text in UTF-8, UTF-16 with its mark, or Windows-1252"
    assert found == {1: expected}


def test_a_substitute_keeps_the_place_and_its_draws_and_has_its_own_facts():
    good, keyed = Keyed(Numbers(), 1), Keyed(Numbers(bad=[3]), 1, replaces=True)
    item = keyed[3]
    assert item["sample_id"] == 3
    assert item["draw"] == good[3]["draw"]
    assert item["index"] != 3
    assert item[FAULTS] == [("3.jpg", "broken")]
    assert FAULTS not in keyed[4]


def test_substitutes_depend_on_seed_epoch_and_sample_and_are_spread():
    def taken(seed, epoch, bad=range(10)):
        items, _ = read_whole(Numbers(100, bad), epoch, seed)
        return [item["index"] for item in items]

    first = taken(0, 0)
    assert first == taken(0, 0)
    assert first[10:] == list(range(10, 100))
    assert min(first[:10]) >= 10
    assert len(set(first[:10])) > 5
    assert taken(0, 1)[:10] != first[:10] != taken(1, 0)[:10]


def test_a_substitute_that_is_bad_is_named_and_passed_by():
    items, met = read_whole(Numbers(30, bad=range(15)))
    assert all(item["index"] >= 15 for item in items)
    assert len(met) > 15
    assert {name for name, _ in met} <= {f"{index}.jpg" for index in range(15)}


@pytest.mark.parametrize("length", [1, 5, 300])
def test_a_set_in_which_nothing_can_be_read_is_one_error(length):
    keyed = Keyed(Numbers(length, bad=range(length)), 0, replaces=True)
    with pytest.raises(ConfigError, match=r"^0\.jpg \(broken\) cannot be read, and ") as raised:
        keyed[0]
    assert type(raised.value) is ConfigError


def test_the_only_good_sample_is_found():
    items, _ = read_whole(Numbers(60, bad=range(59)))
    assert {item["index"] for item in items} == {59}


def test_outside_of_training_a_bad_sample_is_an_error_that_names_it():
    with pytest.raises(BadSample, match=r"^3\.jpg: broken$"):
        Keyed(Numbers(bad=[3]), 0)[3]


def test_what_the_system_says_of_a_foreign_data_set_is_a_bad_sample_and_a_bug_is_not():
    def missing(name, _):
        return FileNotFoundError(2, "No such file", name)

    items, met = read_whole(Numbers(bad=[3], error=missing))
    assert met == [("sample 3", "No such file")]
    assert len(items) == 20
    with pytest.raises(KeyError):
        read_whole(Numbers(bad=[3], error=lambda *_: KeyError("image")))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on two cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_substitutes_do_not_depend_on_the_number_of_workers(directory, workers):
    root, bad = directory
    module = DataModuleFromConfig(8, train=listed(root), num_workers=workers, max_bad_rate=1)
    module.setup()
    loader = module.train_dataloader()
    expected, _ = read_whole(module.datasets["train"])
    taken = {
        sample_id: name
        for batch in loader
        for sample_id, name in zip(batch["sample_id"], batch["relpath"], strict=True)
    }
    assert len(taken) == 96
    assert taken == {each: expected[each]["relpath"] for each in taken}
    assert bad.isdisjoint(taken.values())
    assert module.tally.seen == 96
    names = module.datasets["train"].names
    assert module.tally.bad == sum(names[each] in bad for each in taken)


def test_substitutes_are_those_of_an_uninterrupted_run_after_a_resume_on_two_processes():
    def taken(module, place):
        module.load_state_dict(place)
        module.setup()
        return {
            sample_id: index
            for batch in module.train_dataloader()
            for sample_id, index in zip(batch["sample_id"], batch["index"].tolist(), strict=True)
        }

    options = {"train": config(length=24, bad=range(0, 24, 3)), "num_workers": 0, "max_bad_rate": 1}
    whole = taken(DataModuleFromConfig(4, **options), {"epoch": 1, "samples": 0})
    assert len(whole) == 24
    assert any(sample_id != index for sample_id, index in whole.items())
    rest = {}
    for rank in range(2):
        rest |= taken(Placed(rank, 2, **options), {"epoch": 1, "samples": 8})
    assert len(rest) == 16
    assert rest.items() <= whole.items()
    assert taken(DataModuleFromConfig(4, **options), {"epoch": 2, "samples": 0}) != whole


def test_a_batch_has_no_entry_beside_those_of_its_samples():
    module = DataModuleFromConfig(5, train=config(bad=[3]), num_workers=0, max_bad_rate=1)
    module.setup()
    for batch in module.train_dataloader():
        assert list(batch) == ["index", "draw", "sample_id"]


@pytest.mark.parametrize("split", ["validation", "test", "predict"])
def test_where_results_are_measured_a_bad_sample_is_an_error_that_says_what_to_do(split):
    module = DataModuleFromConfig(5, **{split: config(bad=[3])}, num_workers=0)
    module.setup()
    expected = rf"^data\.params\.{split}: 3\.jpg: broken; nothing takes its place here"
    with pytest.raises(ConfigError, match=expected):
        next(iter(getattr(module, f"{split[:3] if split == 'validation' else split}_dataloader")()))


def test_a_validation_set_of_files_says_so_before_it_is_read(directory):
    root, _ = directory
    module = DataModuleFromConfig(5, validation=listed(root), num_workers=0)
    module.setup()
    with pytest.raises(
        ConfigError, match=r"data\.params\.validation: 5 of its 101 samples"
    ) as said:
        module.val_dataloader()
    assert "empty.jpg (is empty)" in str(said.value)


def test_a_reader_that_compares_gets_the_substitute_and_a_word(caplog_ldm):
    data = Substituted(Numbers(bad=[3]))
    assert [data[index]["index"] == index for index in range(5)] == [True] * 3 + [False, True]
    assert "3.jpg (broken) is left out" in caplog_ldm.text
    assert list(data[3]) == ["index", "draw", "sample_id"]


def test_the_first_that_can_be_read_is_found(directory):
    root, _ = directory
    (root / "other.txt").write_text("empty.jpg\ntext.jpg\n007.jpg\n")
    assert first_readable(ImageList(root / "other.txt", size=16))["relpath"] == "007.jpg"


def test_data_sets_around_others_know_their_files(tmp_path):
    for place in ("celebahq", "ffhq"):
        (tmp_path / place).mkdir()
        for name in "ab":
            picture(tmp_path / place / f"{name}.png")
        (tmp_path / f"{place}train.txt").write_text("a.png\nb.png\n")
    (tmp_path / "ffhq/b.png").write_bytes(b"")
    roots = {f"{place}_root": str(tmp_path / place) for place in ("celebahq", "ffhq")}
    data = SuperResolution(FacesHQTrain(16, **roots), factor=2)
    names = [str(tmp_path / place) for place in ("celebahq/a.png", "celebahq/b.png", "ffhq/a.png")]
    assert [name_of(data, index) for index in range(3)] == names
    assert known_bad(data) == [(str(tmp_path / "ffhq/b.png"), "is empty")]
    assert faults(data) == {3: "is empty"}


def test_a_script_that_reads_a_bad_sample_in_a_process_of_its_own_ends_with_its_name(
    directory, caplog_ldm
):
    root, _ = directory
    (root / "cut.txt").write_text("000.jpg\ntruncated.jpg\n")
    loader = DataLoader(ImageList(root / "cut.txt", size=16), num_workers=1, collate_fn=len)
    assert exit_code(lambda argv: list(loader), []) == 2
    (said,) = [each.getMessage() for each in caplog_ldm.records if each.levelname == "ERROR"]
    assert said.startswith(f"error: {root}/truncated.jpg: image file is truncated")
    assert "Traceback" not in said


def test_a_name_is_one_line_of_what_can_be_printed():
    assert printable("a\nb\x1b[31m\udcff é.jpg") == "a\\nb\\x1b[31m\\udcff é.jpg"
    assert name_of([1, 2], 1) == "sample 1"
    assert str(BadSample("a\n.jpg", "broken")) == "a\\n.jpg: broken"
