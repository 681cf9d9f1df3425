"""First stages of other than RGB in 8 bits, judged by the scripts on what they were trained on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.autoencoders.statistics import LatentStatistics
from ldm.cli.exits import exit_code
from ldm.data.pixels import PixelFormat
from ldm.evaluation.sheets import shown
from ldm.fidelity import psnr, ssim
from ldm.losses.perceptual import LPIPS
from ldm.tensor import to_image_tensor
from tests.cli.runs import first_stage, script
from tests.scripts.judging import pictures, run_directory

SATELLITE = {"dtype": "float32", "value_range": [0, 10000]}


def call(name, *words):
    return exit_code(script(name), [*map(str, words), "--device", "cpu"])


def folder_run(path, channels, *, lpips_channels=None, **data):
    """A narrow first stage that was trained on a folder of such images."""
    config = first_stage()
    params = config["model"]["params"]
    params["ddconfig"] |= {"in_channels": channels, "out_ch": channels, "ch": 32, "ch_mult": [1, 1]}
    params["lossconfig"]["params"] |= {"disc_in_channels": channels}
    if lpips_channels is not None:
        params["lossconfig"]["params"]["lpips_channels"] = lpips_channels
    folder = {"root": "photographs", "size": 16, "channels": channels, **data}
    config["data"]["params"]["train"] = {
        "target": "ldm.data.folder.ImageFolder",
        "params": folder,
    }
    return run_directory(path, config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {
        "rgb": folder_run(place / "rgb", 3),
        "rgba": folder_run(place / "rgba", 4),
        "deep": folder_run(place / "deep", 1, dtype="float32"),
        "satellite": folder_run(place / "satellite", 13, lpips_channels=[3, 2, 1], **SATELLITE),
        "other": folder_run(place / "other", 13, **SATELLITE),
        "levels": folder_run(place / "levels", 13, value_range=[0, 10000]),
    }


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Images of 13 channels with 16 bits, one of them with a number out of range."""
    directory, rng = tmp_path_factory.mktemp("stacks"), np.random.default_rng(0)
    for index in range(3):
        values = rng.integers(0, 10001, (16, 19, 13), dtype=np.uint16)
        values[0, 0, 0] = 10001 if index == 2 else 0
        np.save(directory / f"{index}.npy", values)
    return directory


def as_tensor(pixels):
    return to_image_tensor(torch.from_numpy(np.array(pixels))[None])


def record_of(out):
    return json.loads((out / "record.json").read_text())


def measured(entry, image, made):
    pair = as_tensor(image), as_tensor(made)
    assert entry["psnr"] == pytest.approx(float(psnr(*pair)), rel=1e-4)
    assert entry["ssim"] == pytest.approx(float(ssim(*pair)), rel=1e-3, abs=1e-4)


def test_stacks_of_channels_are_read_and_written_with_the_numbers_of_their_files(
    runs, stacks, tmp_path
):
    assert call("reconstruct", runs["satellite"], stacks, "--out", tmp_path) == 0
    record, pixels = record_of(tmp_path), PixelFormat.of(13, "float32", (0, 10000))
    assert record["pixels"]["dtype"] == "float32"
    assert record["pixels"]["value_range"] == [0, 10000]
    assert record["bad"] == {str(stacks / "2.npy"): "10001 at [0, 0, 0] is outside 0..10000"}
    assert len(record["images"]) == 2
    for index, entry in enumerate(record["images"]):
        assert entry["file"] == f"0000{index}_{index}.npy"
        assert entry["range"] == [0, 10000]
        made = np.load(tmp_path / entry["file"])
        assert made.dtype == np.float32
        assert made.shape == (16, 19, 13)
        measured(entry, pixels.read(stacks / f"{index}.npy"), pixels.read(tmp_path / entry["file"]))
    assert record["summary"]["sharpness"]["value"] > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
        enlarged = np.asarray(sheet)[4 : 4 + 16 * 8 : 8, 4 : 4 + 19 * 8 : 8]
    assert np.array_equal(enlarged, shown(pixels.read(stacks / "0.npy")))


def test_rgba_is_read_with_its_alpha_and_written_as_png(runs, tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    out = tmp_path / "out"
    assert call("reconstruct", runs["rgba"], tmp_path / "images", "--out", out) == 0
    (entry,) = record_of(out)["images"]
    with Image.open(out / entry["file"]) as written:
        assert written.mode == "RGBA"
        measured(entry, image, np.asarray(written))
    left_out = record_of(out)["summary"]["left_out"]
    assert "4 channels" in left_out["lpips"]
    assert "4 channels" in left_out["rfid"]


def test_16_bits_of_grey_are_kept(runs, tmp_path):
    # neighbours differ by less than a 255th
    image = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint16) + 30000
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    out = tmp_path / "out"
    assert call("reconstruct", runs["deep"], tmp_path / "images", "--out", out) == 0
    (entry,) = record_of(out)["images"]
    assert (entry["file"], entry["range"]) == ("00000_a.npy", [0, 65535])
    made = np.load(out / entry["file"])
    measured(entry, image[..., None] / 32767.5 - 1, made / 32767.5 - 1)
    words = [runs["deep"], tmp_path / "images", "--dtype", "uint8", "--out", tmp_path / "8"]
    assert call("reconstruct", *words) == 0
    assert record_of(tmp_path / "8")["images"][0]["file"] == "00000_a.png"


def test_stacks_in_8_bits_have_levels_of_their_range(runs, stacks, tmp_path):
    words = [runs["levels"], stacks / "0.npy", "--out", tmp_path]
    assert call("reconstruct", *words, "--value-range", 0, 25500) == 0
    (entry,) = record_of(tmp_path)["images"]
    made = np.load(tmp_path / entry["file"])
    assert np.array_equal(made, np.rint(made / 100) * 100)
    assert entry["range"] == [0, 25500]


def test_lpips_sees_the_channels_that_training_compared(runs, stacks, tmp_path):
    torch.save(LPIPS().state_dict(), tmp_path / "lpips.pth")
    flags = ["--lpips-weights", tmp_path / "lpips.pth", "--out", tmp_path]
    found = {}
    for name, words in {
        "satellite": [],
        "other": ["--lpips-channels", 3, 2, 1],
        "levels": [],
    }.items():
        assert call("reconstruct", runs[name], stacks / "0.npy", *flags, *words) == 0
        found[name] = record_of(tmp_path)["summary"]
    assert found["satellite"]["lpips"] == found["other"]["lpips"]  # the same weights
    assert found["levels"]["left_out"]["lpips"].startswith("13 channels")


def test_first_stages_of_many_channels_are_compared(runs, stacks, tmp_path, capsys):
    words = [runs["satellite"], runs["other"], "--images", stacks, "--repeats", 1]
    assert call("compare_first_stages", *words, "--out", tmp_path) == 0
    for stage in record_of(tmp_path)["first_stages"]:
        assert stage["pixels"]["dtype"] == "float32"
        assert stage["summary"]["psnr"]["images"] == 2
        assert stage["bad"].keys() == {str(stacks / "2.npy")}
    assert "| satellite | 2 | 16 x 19 | 4 x 8 x 10 |" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()


def test_first_stages_of_other_channels_meet_in_image_files(runs, tmp_path):
    images = pictures(tmp_path / "scenes", (16, 16))
    np.save(images / "c.npy", np.zeros((16, 16, 3), dtype=np.uint8))
    words = [runs["rgb"], runs["rgba"], "--images", images, "--repeats", 1]
    assert call("compare_first_stages", *words, "--out", tmp_path / "out") == 0
    for stage in record_of(tmp_path / "out")["first_stages"]:
        assert stage["summary"]["psnr"]["images"] == 1
        assert stage["bad"] == {}


def test_statistics_are_of_images_as_trained(runs, stacks, tmp_path):
    found = {}
    for name, words in {"satellite": [], "levels": ["--dtype", "float32"]}.items():
        file = tmp_path / f"{name}.json"
        assert call("latent_stats", runs[name], "--data", stacks, *words, "--out", file) == 0
        found[name] = LatentStatistics.read(file).overall.std
    assert found["satellite"] == found["levels"]  # the same weights


@pytest.mark.parametrize(
    ("script_name", "names", "words", "expected"),
    [
        ("reconstruct", ["satellite"], ["{scenes}"], "holds no images; expected files ending in"),
        (
            "reconstruct",
            ["satellite"],
            ["{scenes}/scene0.png"],
            "scene0.png: has 3 channels, expected 13, as .npy",
        ),
        ("reconstruct", ["rgb"], ["{scenes}", "--value-range", 1, 0], "--value-range: value_range"),
        (
            "reconstruct",
            ["rgb"],
            ["{scenes}", "--lpips-channels", "red"],
            "--lpips-channels red: expected three channels",
        ),
        (
            "compare_first_stages",
            ["satellite", "levels"],
            ["--images", "{stacks}"],
            "satellite was trained with dtype: float32, levels with uint8; --dtype says",
        ),
        (
            "compare_first_stages",
            ["rgb", "levels"],
            ["--images", "{stacks}", "--value-range", 0, 1],
            "first stages of 3 and 13 channels: no file is an image for all of them",
        ),
        (
            "latent_stats",
            ["rgb"],
            ["--data", "a.yaml", "--dtype", "float32"],
            "the configuration a.yaml says how images are read",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(
    runs, stacks, tmp_path, caplog_ldm, script_name, names, words, expected
):
    places = {"scenes": pictures(tmp_path / "scenes", (16, 16)), "stacks": stacks}
    given = [str(word).format(**places) for word in words]
    stages = [runs[name] for name in names]
    assert call(script_name, *stages, *given, "--out", tmp_path / "out") == 2
    errors = [r.getMessage() for r in caplog_ldm.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert expected in errors[0]
