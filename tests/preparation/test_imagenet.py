import io
import sys

import numpy as np
import pytest
from scipy.io import savemat

from ldm.cli.exits import EXIT_CONFIG
from ldm.data.folder import ImageList
from ldm.data.imagenet import ImageNetTrain, ImageNetValidation
from ldm.preparation import imagenet
from tests.preparation.raw import picture, write_tar
from tests.preparation.scripts import run
from tests.preparation.stopping import Stopped, stopping, times

SYNSETS = ["n01440764", "n01443537", "n02084071"]
WORDS = ["tench, Tinca tinca", "goldfish, Carassius auratus", "dog"]
IMAGES = {
    f"{synset}/{synset}_{i}.JPEG": picture(10 * number + i, (20, 12 + 4 * i), "JPEG")
    for number, synset in enumerate(SYNSETS)
    for i in range(2)
}
TRUTH = [2, 3, 1, 3]  # numbers of the kit, which counts in an order of its own
NUMBERS = {1: 2, 2: 0, 3: 1}  # of the kit -> place in SYNSETS
HELD_OUT = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 5)]
EXPECTED = {name: SYNSETS[NUMBERS[n]] for name, n in zip(HELD_OUT, TRUTH, strict=True)}


@pytest.fixture
def raw(tmp_path):
    """Both tars and the development kit, as their owner publishes them."""
    write_inner(tmp_path)
    tars = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("n*.tar"))}
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", tars)
    held_out = {name: picture(100 + i, (16, 16), "JPEG") for i, name in enumerate(HELD_OUT)}
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", held_out)
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{number}\n" for number in TRUTH
        ).encode(),
    }
    write_tar(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", kit)
    return tmp_path


def write_inner(directory):
    """A tar of each synset, its images without directory."""
    for synset in SYNSETS:
        names = [name for name in IMAGES if name.startswith(synset)]
        inner = {name.partition("/")[2]: IMAGES[name] for name in names}
        write_tar(directory / f"{synset}.tar", inner)


def meta():
    """The kit's table of synsets: of images, and one of their ancestors."""
    kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    rows = [(number, SYNSETS[at], WORDS[at], 0) for number, at in NUMBERS.items()]
    table = np.array([*rows, (1001, "n00001740", "entity", 3)], dtype=kind)
    file = io.BytesIO()
    savemat(file, {"synsets": table[:, None]})
    return file.getvalue()


def prepare(raw, part, *words, expect, **sources):
    source = sources.get("source", raw / f"ILSVRC2012_img_{part}.tar")
    words = ("--out", raw / "data", "--part", part, "--expect", expect, *words)
    return run("prepare_imagenet", source, *words)


def files(raw, part):
    root = raw / "data" / part
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.JPEG")}


def kit(raw):
    return "--labels", raw / "ILSVRC2012_devkit_t12.tar.gz"


def test_the_tar_of_tars_becomes_what_the_data_set_reads(raw):
    assert prepare(raw, "train", expect=6) == 0
    assert files(raw, "train") == IMAGES
    data = ImageNetTrain({"size": 12, "random_crop": False}, data_root=str(raw / "data"))
    assert [item["class_label"] for item in data] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["tars", "images"])
def test_a_directory_of_what_was_in_the_tar_does_as_well(raw, kind):
    source = raw / "unpacked"
    if kind == "images":
        for name, content in IMAGES.items():
            (source / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            (source / "train" / name).write_bytes(content)
    else:
        source.mkdir()
        write_inner(source)
    assert prepare(raw, "train", expect=6, source=source) == 0
    assert files(raw, "train") == IMAGES


def test_the_kit_says_what_the_validation_images_are_and_what_it_is_called(raw):
    assert prepare(raw, "train", expect=6) == 0
    assert prepare(raw, "val", *kit(raw), expect=4) == 0
    assert set(files(raw, "val")) == {f"{EXPECTED[name]}/{name}" for name in HELD_OUT}
    data = ImageNetValidation({"size": 16}, data_root=str(raw / "data"))
    for item in data:
        synset = EXPECTED[item["relpath"].rpartition("/")[2]]
        assert item["synset"] == synset
        assert item["human_label"] == WORDS[SYNSETS.index(synset)]
        assert item["class_label"] == SYNSETS.index(synset)


@pytest.mark.parametrize("named", [True, False])
def test_a_text_file_of_synsets_does_as_well(raw, named):
    lines = [f"{name} {EXPECTED[name]}" if named else EXPECTED[name] for name in HELD_OUT]
    # with names, the order does not count
    (raw / "labels.txt").write_text("\n".join(sorted(lines, reverse=True) if named else lines))
    assert prepare(raw, "val", "--labels", raw / "labels.txt", expect=4) == 0
    assert set(files(raw, "val")) == {f"{EXPECTED[name]}/{name}" for name in HELD_OUT}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("490\n361\n", "line 1: '490'; expected a synset"),
        ("a.JPEG n01440764 tench\n", "line 1: 'a.JPEG n01440764 tench'; expected a synset"),
        ("n01440764\nn01440764\n", "says nothing about ILSVRC2012_val_00000003.JPEG"),
    ],
)
def test_labels_that_are_none_are_said(raw, caplog_ldm, lines, problem):
    (raw / "labels.txt").write_text(lines)
    assert prepare(raw, "val", "--labels", raw / "labels.txt", expect=4) == EXIT_CONFIG
    assert problem in caplog_ldm.text


def test_a_kit_that_is_none_is_said(raw, caplog_ldm):
    write_tar(raw / "empty.tar.gz", {"a.txt": b""})
    assert prepare(raw, "val", "--labels", raw / "empty.tar.gz", expect=4) == EXIT_CONFIG
    assert "holds no ILSVRC2012_validation_ground_truth.txt and no meta.mat" in caplog_ldm.text
    for content, problem in ((b"1\n7\n", "line 2: '7'"), (b"1\n1001\n", "line 2: '1001'")):
        truth = {"meta.mat": meta(), "ILSVRC2012_validation_ground_truth.txt": content}
        write_tar(raw / "kit.tar.gz", truth)
        assert prepare(raw, "val", "--labels", raw / "kit.tar.gz", expect=4) == EXIT_CONFIG
        assert problem in caplog_ldm.text
    write_tar(raw / "kit.tar.gz", truth | {"meta.mat": b"no table" * 40})
    assert prepare(raw, "val", "--labels", raw / "kit.tar.gz", expect=4) == EXIT_CONFIG
    assert "meta.mat has no table of synsets" in caplog_ldm.text


def test_validation_images_without_labels_are_said(raw, caplog_ldm):
    assert prepare(raw, "val", expect=4) == EXIT_CONFIG
    assert "lies in no directory of a synset" in caplog_ldm.text


def test_without_scipy_the_kit_is_refused_with_the_command_that_installs_it(
    raw, caplog_ldm, monkeypatch
):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert prepare(raw, "val", *kit(raw), expect=4) == EXIT_CONFIG
    assert "pip install scipy" in caplog_ldm.text


def test_a_job_that_was_killed_goes_on_without_writing_anything_twice(raw, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "records", stopping(imagenet.records, 3))
        with pytest.raises(Stopped):
            prepare(raw, "train", expect=6)
    out = raw / "data"
    (out / ".prepared-0").write_bytes(IMAGES[f"{SYNSETS[1]}/{SYNSETS[1]}_1.JPEG"][:50])
    before = times(out, "*.JPEG")
    assert len(before) == 3
    assert prepare(raw, "train", expect=6) == 0
    assert files(raw, "train") == IMAGES
    assert before.items() <= times(out, "*").items()


def test_another_number_of_images_or_synsets_is_refused(raw, caplog_ldm, monkeypatch):
    monkeypatch.setitem(imagenet.COUNTS, "train", 6)
    source = raw / "ILSVRC2012_img_train.tar"
    assert run("prepare_imagenet", source, "--out", raw / "data") == EXIT_CONFIG
    assert "images of 3 synsets; expected 1000" in caplog_ldm.text
    assert prepare(raw, "train", expect=7) == EXIT_CONFIG
    assert "6 files of the part 'train', 1 missing; expected 7" in caplog_ldm.text


def test_a_missing_validation_image_is_named(raw, caplog_ldm):
    lines = [f"ILSVRC2012_val_{i:08}.JPEG n01440764" for i in range(1, 6)]
    (raw / "labels.txt").write_text("\n".join(lines))
    assert prepare(raw, "val", "--labels", raw / "labels.txt", expect=5) == EXIT_CONFIG
    assert "missing are ILSVRC2012_val_00000005" in caplog_ldm.text


def test_a_tar_that_ends_early_is_refused(raw, caplog_ldm):
    source = raw / "ILSVRC2012_img_train.tar"
    source.write_bytes(source.read_bytes()[:7000])
    assert prepare(raw, "train", expect=6) == EXIT_CONFIG
    assert "cannot be read from the archive" in caplog_ldm.text


def test_the_list_of_large_images_is_read_by_a_data_set(raw):
    assert prepare(raw, "train", "--drop-below", 14, expect=6) == 0
    data = ImageList(raw / "data" / "train_from_14.txt", size=16)
    large = [name for name in IMAGES if name.endswith("_1.JPEG")]  # 20 x 16, the others 20 x 12
    assert [item["relpath"] for item in data] == [f"train/{name}" for name in large]
    # no file of the job's own is left
    assert {path.name for path in (raw / "data").glob(".*")} == {".prepared.lock"}
