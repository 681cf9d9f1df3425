import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.cli.exits import EXIT_CONFIG
from ldm.config import ConfigError
from ldm.data.faces import CelebAHQTrain, CelebAHQValidation, FFHQTrain, FFHQValidation
from ldm.data.transforms import resize
from ldm.preparation import faces
from ldm.preparation.faces import CELEBA_HQ, FFHQ, face_records
from ldm.preparation.job import check_names
from ldm.preparation.journal import Plan
from ldm.preparation.pictures import smaller
from tests.preparation.raw import picture, write_tar, write_zip
from tests.preparation.scripts import run

CELEBA_HQ_ZIP = {
    **{f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg": picture(i, kind="JPEG") for i in range(6)},
    "CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_hair.png": picture(99),
    "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt": b"idx orig_idx",
}
FFHQ_ZIP = {
    **{f"images1024x1024/00000/{i:05d}.png": picture(i, (32, 32)) for i in range(6)},
    "LICENSE.txt": b"a license",
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty directory to work in, with what was published beside it."""
    write_zip(tmp_path / "CelebAMask-HQ.zip", CELEBA_HQ_ZIP)
    write_zip(tmp_path / "ffhq.zip", FFHQ_ZIP)
    write_tar(tmp_path / "ffhq.tar", FFHQ_ZIP)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def written(root):
    return {path.name: path.read_bytes() for path in root.iterdir() if path.suffix != ".json"}


def test_celeba_hq_is_written_as_it_is_and_read_by_the_data_sets(work):
    assert run("prepare_celebahq", "../CelebAMask-HQ.zip", "--expect", 6) == 0
    images = {f"{i:05d}.jpg": picture(i, kind="JPEG") for i in range(6)}
    found = written(work / "data" / "celebahq")
    assert {name: found[name] for name in found if not name.startswith(".")} == images
    train, validation = CelebAHQTrain(size=16), CelebAHQValidation(size=16)
    assert sorted([*train.names, *validation.names]) == sorted(images)
    assert train.names
    assert validation.names
    decoded = np.asarray(Image.open(io.BytesIO(images[train.names[0]])))
    np.testing.assert_array_equal(train[0]["image"], decoded)


@pytest.mark.parametrize("source", ["../ffhq.zip", "../ffhq.tar"])
def test_published_lists_of_arrays_name_the_images_by_their_numbers(work, source):
    lists = work / "published"
    lists.mkdir()
    (lists / "ffhqtrain.txt").write_text("ffhq/00005.npy\n00000.npy\n00001.npy\n00003.npy\n")
    (lists / "ffhqvalidation.txt").write_text("imgHQ00002.npy\nimgHQ00004.npy\n")
    assert run("prepare_ffhq", source, "--expect", 6, "--lists", lists) == 0
    assert FFHQTrain(size=16).names == ["00000.png", "00001.png", "00003.png", "00005.png"]
    assert FFHQValidation(size=16).names == ["00002.png", "00004.png"]


@pytest.mark.parametrize("workers", [1, 3])
def test_images_are_made_smaller_once_with_lanczos(work, workers):
    words = ["../ffhq.zip", "--expect", 6, "--size", 16, "--workers", workers]
    assert run("prepare_ffhq", *words) == 0
    for i in range(6):
        path = work / "data" / "ffhq" / f"{i:05d}.png"
        original = np.asarray(Image.open(io.BytesIO(picture(i, (32, 32)))))
        expected = resize(original, 16, 16, "lanczos")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    before = {path: path.stat().st_mtime_ns for path in (work / "data" / "ffhq").glob("*.png")}
    assert run("prepare_ffhq", *words) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_constant_image_stays_constant_and_its_central_square_is_taken():
    pixels = np.full((20, 40, 3), 77, np.uint8)
    pixels[:, :10] = pixels[:, 30:] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    found = np.asarray(Image.open(io.BytesIO(smaller(file.getvalue(), 10))))
    np.testing.assert_array_equal(found, np.full((10, 10, 3), 77))


def test_another_size_in_the_same_directory_is_refused(work, caplog_ldm):
    assert run("prepare_ffhq", "../ffhq.zip", "--expect", 6, "--size", 16) == 0
    assert run("prepare_ffhq", "../ffhq.zip", "--expect", 6) == EXIT_CONFIG
    assert 'begun with settings {"size": 16}' in caplog_ldm.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", 64], r"00000.png: has 32 x 32 pixels; expected 64 or more"),
        (["--size", 0], "--size 0: expected a side of 1 pixel or more"),
        (["--workers", 0], "--workers 0: expected 1 or more"),
        (["--expect", "six"], "--expect six: expected a number of 1 or more, or any"),
        (["--sha256", "0" * 64], f"expected {'0' * 64}"),
        (["--sha256", "abc"], "--sha256 abc: expected 64 hexadecimal digits"),
        (["--lists", "none"], "there is no list none/ffhqtrain.txt"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(work, caplog_ldm, words, message):
    assert run("prepare_ffhq", "../ffhq.zip", "--expect", 6, *words) == EXIT_CONFIG
    assert message in caplog_ldm.text
    assert not list(work.rglob("*.png"))


def test_a_source_that_is_not_there_is_said(work, caplog_ldm):
    assert run("prepare_ffhq", "../fhq.zip", "--expect", 6) == EXIT_CONFIG
    assert "did you mean" in caplog_ldm.text
    assert "expected a zip, tar or directory of the images of FFHQ" in caplog_ldm.text


@pytest.mark.parametrize("source", ["../ffhq.zip", "../ffhq.tar"])
def test_missing_faces_are_named(work, caplog_ldm, monkeypatch, source):
    monkeypatch.setattr(faces, "FFHQ", replace(FFHQ, count=8))
    assert run("prepare_ffhq", source) == EXIT_CONFIG
    assert "6 files of the part 'ffhq', missing are 00006, 00007; expected 8" in caplog_ldm.text
    # a zip's names are known before anything is written
    assert (work / "data").exists() == source.endswith("tar")
    if source.endswith("tar"):
        journal = json.loads((work / "data" / "ffhq" / "prepared.json").read_text())
        assert not journal["parts"]["ffhq"]["is_done"]


def test_of_many_missing_files_some_are_named_and_the_others_counted():
    plan = Plan("ffhq", (), expected=9, stems=tuple(f"{i:05d}" for i in range(9)))
    with pytest.raises(ConfigError, match=r"missing are 00001, .*00005 and 3 more; expected 9"):
        check_names(["00000.png"], plan)


def test_the_published_numbers_are_the_papers():
    assert (CELEBA_HQ.count - CELEBA_HQ.held_out, CELEBA_HQ.held_out) == (25_000, 5_000)
    assert (FFHQ.count - FFHQ.held_out, FFHQ.held_out) == (60_000, 10_000)


def test_only_numbered_images_are_faces(tmp_path):
    names = ["a/imgHQ00007.png", "8.JPG", "0009.png", "00010_hair.png", "11.txt", "mask12.png"]
    write_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x"))
    found = [each.name for each in face_records(tmp_path / "a.zip", as_png=False)]
    assert found == ["00007.png", "00008.jpg", "00009.png"]
    found = [each.name for each in face_records(tmp_path / "a.zip", as_png=True)]
    assert found == ["00007.png", "00008.png", "00009.png"]


def test_what_is_no_image_cannot_be_made_smaller():
    with pytest.raises(ConfigError, match="cannot be read: not an image"):
        smaller(b"no image", 16)
