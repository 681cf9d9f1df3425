"""The scripts that judge first stages, on small models that were not trained."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from ldm.autoencoders.scaling import LatentMoments
from ldm.autoencoders.statistics import LatentStatistics
from ldm.cli.exits import exit_code
from ldm.cli.first_stages import load_first_stage
from ldm.config import instantiate_model
from ldm.data.shapes import ShapesDataset
from ldm.diffusion.draws import KeyedDraws
from ldm.evaluation.first_stage import diffused_latents
from ldm.fidelity import psnr
from ldm.io.checkpoint import load_state
from ldm.io.digest import sha256_of
from ldm.losses.perceptual import LPIPS
from ldm.tensor import to_image_tensor
from tests.cli.runs import first_stage, script, second_stage, unconditional, write
from tests.scripts.judging import louder, pictures, run_directory


def call(name, *words):
    return exit_code(script(name), [*map(str, words), "--device", "cpu"])


def reconstruct(*words):
    return call("reconstruct", *words)


def stats(*words):
    return call("latent_stats", *words)


def compare(*words):
    return call("compare_first_stages", *words)


def changed(config, **network):
    config["model"]["params"]["ddconfig"] |= network
    return config


def vq():
    """The same networks with a codebook."""
    config = changed(first_stage(), double_z=False)
    config["model"]["target"] = "ldm.models.autoencoder.VQModel"
    config["model"]["params"]["n_embed"] = 16
    config["model"]["params"]["lossconfig"]["target"] = (
        "ldm.losses.autoencoder.VQLPIPSWithDiscriminator"
    )
    return config


def averaged():
    config = first_stage()
    config["model"]["params"]["use_ema"] = True
    return config


def pixels_only():
    """A diffusion model without a first stage."""
    config = unconditional()
    del config["model"]["params"]["first_stage_config"], config["model"]["params"]["scale_by_std"]
    config["model"]["target"] = "ldm.models.diffusion.ddpm.DDPM"
    config["model"]["params"] |= {"channels": 4}
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    deep = changed(first_stage(), ch_mult=[1, 1, 2])
    return {
        "kl": run_directory(place / "kl", first_stage()),
        "f4": run_directory(place / "f4", deep),
        "vq": run_directory(place / "vq", vq()),
        "ema": run_directory(place / "ema", averaged(), louder),
        "second": run_directory(place / "second", second_stage()),
        "pixels": run_directory(place / "pixels", pixels_only()),
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("scenes"), (16, 16), (19, 23), (32, 16))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def as_tensor(image):
    return to_image_tensor(torch.from_numpy(image)[None])


# reconstruct


@pytest.mark.parametrize("name", ["kl", "vq", "second"])
def test_every_image_is_reconstructed_at_its_size_and_measured(runs, scenes, tmp_path, name):
    assert reconstruct(runs[name], scenes, "--out", tmp_path) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    files = [f"0000{index}_scene{index}.png" for index in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*files, "record.json", "sheet.png"]
    assert [entry["size"] for entry in record["images"]] == [[16, 16], [19, 23], [32, 16]]
    assert [entry["latent"][1:] for entry in record["images"]] == [[8, 8], [10, 12], [16, 8]]
    for index, entry in enumerate(record["images"]):
        image, made = pixels(scenes / f"scene{index}.png"), pixels(tmp_path / entry["file"])
        assert made.shape == image.shape
        expected = psnr(as_tensor(image), as_tensor(made))
        assert entry["psnr"] == pytest.approx(float(expected), rel=1e-5)
    mean = np.mean([entry["psnr"] for entry in record["images"]])
    assert record["summary"]["psnr"]["mean"] == pytest.approx(mean)
    checkpoint = runs[name] / "checkpoints" / "last.ckpt"
    assert record["first_stage"]["sha256"] == sha256_of(checkpoint)
    assert record["first_stage"]["downsample_factor"] == 2
    assert record["summary"]["left_out"].keys() == {"lpips", "rfid", "r_is"}
    assert record["versions"]["torch"] == torch.__version__


def test_the_first_stage_inside_a_diffusion_model_is_the_one_it_was_built_of(runs):
    cpu = torch.device("cpu")
    inside = load_first_stage(str(runs["second"]), None, device=cpu).module
    saved = load_state(runs["second"] / "checkpoints" / "last.ckpt")
    for name, value in inside.state_dict().items():
        assert torch.equal(value, saved[f"first_stage_model.{name}"])


def test_averaged_weights_are_taken_where_there_are_some(runs):
    cpu = torch.device("cpu")
    raw, average = (
        load_first_stage(str(runs["ema"]), None, device=cpu, weights=which)
        for which in ("raw", "ema")
    )
    assert (raw.weights, average.weights) == ("raw", "ema")
    difference = raw.module.decoder.conv_out.bias - average.module.decoder.conv_out.bias
    torch.testing.assert_close(difference, torch.full((3,), 0.5))
    assert load_first_stage(str(runs["ema"]), None, device=cpu).weights == "ema"
    assert load_first_stage(str(runs["kl"]), None, device=cpu).weights == "raw"


def test_samples_of_the_posterior_follow_the_seed(runs, scenes, tmp_path):
    made = []
    for name, words in {
        "mode": [],
        "a": ["--sample"],
        "again": ["--sample"],
        "b": ["--sample", "--seed", 1],
    }.items():
        assert reconstruct(runs["kl"], scenes, *words, "--out", tmp_path / name) == 0
        made.append(pixels(tmp_path / name / "00000_scene0.png").tobytes())
    assert made[1] == made[2]
    assert len(set(made)) == 3
    assert "samples, seed 1" in (tmp_path / "b" / "record.json").read_text()


def test_images_are_cut_to_a_size(runs, scenes, tmp_path):
    assert reconstruct(runs["kl"], scenes / "scene1.png", "--size", 12, "--out", tmp_path) == 0
    assert pixels(tmp_path / "00000_scene1.png").shape == (12, 12, 3)


def test_bad_files_are_counted_and_named(runs, scenes, tmp_path, caplog_ldm):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    assert reconstruct(runs["kl"], bad, scenes, "--out", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["bad"] == {str(bad): "not an image"}
    assert len(record["images"]) == 3
    assert f"1 files were left out: {bad}" in caplog_ldm.text


def test_lpips_is_measured_with_weights_of_a_file(runs, scenes, tmp_path):
    torch.save(LPIPS().state_dict(), tmp_path / "lpips.pth")
    words = [runs["kl"], scenes, "--out", tmp_path / "out"]
    assert reconstruct(*words, "--lpips-weights", tmp_path / "lpips.pth") == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["summary"]["lpips"]["images"] == 3
    assert all(entry["lpips"] > 0 for entry in record["images"])


def test_sets_are_compared_by_a_network_of_a_file(runs, scenes, tmp_path):
    features = tmp_path / "features.yaml"
    features.write_text("target: torch.nn.Flatten\n")
    words = [runs["kl"], scenes, "--size", 16, "--out", tmp_path / "out"]
    assert reconstruct(*words, "--features", features) == 0
    found = json.loads((tmp_path / "out" / "record.json").read_text())["summary"]
    assert found["frechet_distance"]["features"] == "torch.nn.Flatten"
    assert found["frechet_distance"]["images"] == 3
    assert "rfid" not in found


# latent_stats


def test_statistics_are_those_of_the_latents(runs, tmp_path):
    directory = pictures(tmp_path / "scenes", *[(16, 16)] * 6)
    run = tmp_path / "kl"
    shutil.copytree(runs["kl"], run)
    assert stats(run, "--data", directory, "--batch-size", 4) == 0
    found = LatentStatistics.read(run / "latent_stats.json")
    first = load_first_stage(str(run), None, device=torch.device("cpu"))
    moments = LatentMoments()
    for index in range(6):
        image = as_tensor(pixels(directory / f"scene{index}.png"))
        with torch.no_grad():
            moments.update(diffused_latents(first.module, image, [index]))
    assert (found.images, found.latent) == (6, (4, 8, 8))
    assert found.sha256 == sha256_of(run / "checkpoints" / "last.ckpt")
    assert found.overall.std == pytest.approx(float(moments.std()), rel=1e-5)
    assert found.overall.skew == pytest.approx(float(moments.skew()), abs=1e-4)
    means = [channel.mean for channel in found.channels]
    assert means == pytest.approx(moments.mean(per_channel=True).tolist(), abs=1e-5)


def test_statistics_do_not_depend_on_batches_or_a_bar(runs, tmp_path, monkeypatch):
    directory, found = pictures(tmp_path / "scenes", *[(16, 16)] * 6), []
    for size, bar in ((6, tqdm), (2, partial(tqdm, disable=True))):
        monkeypatch.setattr("ldm.cli.latents.tqdm", bar)  # as with TQDM_DISABLE=1
        file = tmp_path / "stats.json"
        words = [runs["kl"], "--data", directory, "--batch-size", size, "--out", file]
        assert stats(*words) == 0
        found.append(LatentStatistics.read(file).overall.skew)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_second_stage_takes_the_scale_of_the_file(runs, tmp_path):
    file, checkpoint = tmp_path / "stats.json", runs["kl"] / "checkpoints" / "last.ckpt"
    data = write(tmp_path / "data.yaml", second_stage())
    assert stats(runs["kl"], "--data", data, "--n", 8, "--out", file) == 0
    found = LatentStatistics.read(file)
    assert found.images == 8
    block = second_stage(str(checkpoint))["model"]
    del block["params"]["scale_by_std"]
    block["params"]["latent_stats"] = str(file)
    model = instantiate_model(block)
    assert float(model.scale_factor) == pytest.approx(1 / found.overall.std)
    images = [as_tensor(ShapesDataset(size=16, length=24)[i]["image"]) for i in range(24)]
    z = model.encode(torch.cat(images), KeyedDraws(range(24), seed=5))
    assert float(z.std()) == pytest.approx(1, rel=0.05)


def test_statistics_of_raw_weights_are_recorded_as_such(runs, tmp_path):
    directory, file = pictures(tmp_path / "scenes", (16, 16), (16, 16)), tmp_path / "s.json"
    assert stats(runs["ema"], "--data", directory, "--out", file) == 0
    assert LatentStatistics.read(file).details["first_stage"]["weights"] == "raw"


# compare_first_stages


def test_first_stages_are_compared_in_a_table_and_a_picture(runs, scenes, tmp_path, capsys):
    lone = shutil.copy(runs["vq"] / "checkpoints" / "last.ckpt", tmp_path / "lone.ckpt")
    (config,) = runs["vq"].glob("configs/*")
    unet = write(tmp_path / "unet.yaml", second_stage())
    words = [runs["kl"], runs["f4"], f"{lone}={config}", "--images", scenes, "--unet", unet]
    assert compare(*words, "--size", 16, "--repeats", 1, "--out", tmp_path / "out") == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert capsys.readouterr().out == table
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
    header, _, kl, f4, vq_row = cells
    columns = ["first stage", "f", "image", "latent", "numbers", "PSNR dB", "SSIM", "sharpness"]
    columns += ["encode ms (processor)", "decode ms (processor)", "UNet GFLOP/step"]
    assert header == columns
    assert kl[:5] == ["kl", "2", "16 x 16", "4 x 8 x 8", "256"]
    assert f4[:5] == ["f4", "4", "16 x 16", "4 x 4 x 4", "64"]
    assert vq_row[0] == "lone"
    assert float(f4[-1]) < float(kl[-1])  # a quarter of the cells
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    for stage in record["first_stages"]:
        assert stage["encode_ms"]["wall"] > 0
        assert stage["decode_ms"]["processor"] > 0
        assert stage["unet"]["latent"] == stage["latent"]
    assert pixels(tmp_path / "out" / "sheet.png").shape[1] > 4 * 150


# faults


@pytest.mark.parametrize(
    ("command", "name", "words", "expected"),
    [
        (reconstruct, "none", ["{scenes}"], "none: there is no such run directory or checkpoint"),
        (reconstruct, "kl", ["{tmp}/none.png"], "none.png: there is no such image or directory"),
        (reconstruct, "kl", ["{tmp}"], "holds no images"),
        (reconstruct, "kl", ["{bad}"], "none of 1 image files can be read"),
        (reconstruct, "kl", ["{scenes}", "--size", 0], "--size 0: expected 1 or more"),
        (reconstruct, "kl", ["{scenes}", "--lpips-weights", "no.pth"], "no.pth: no such file"),
        (reconstruct, "kl", ["{scenes}", "--inception-weights", "no.pth"], "no.pth: no such file"),
        (
            reconstruct,
            "kl",
            ["{scenes}", "--features", "a.yaml", "--inception-weights", "b"],
            "one network at a time",
        ),
        (reconstruct, "kl", ["{scenes}", "--out", "{bad}"], "expected a directory"),
        (reconstruct, "vq", ["{scenes}", "--sample"], "--sample: VQModel gives one latent"),
        (reconstruct, "pixels", ["{scenes}"], "a diffusion model without a first stage"),
        (reconstruct, "kl", ["{scenes}", "--weights", "ema"], "has no averaged weights"),
        (reconstruct, "second", ["{scenes}", "--weights", "ema"], "inside the diffusion model"),
        (compare, "kl", ["--images", "{scenes}", "--weights", "ema"], "has no averaged weights"),
        (stats, "kl", ["--data", "{tmp}/none"], "none"),
        (stats, "kl", ["--data", "{tmp}"], "holds no images"),
        (stats, "kl", ["--data", "{scenes}", "--n", 1], "--n 1: expected 2 or more"),
        (stats, "kl", ["--data", "{scenes}", "--size", 15], "15"),
        (stats, "pixels", ["--data", "{scenes}"], "a diffusion model without a first stage"),
        (compare, "kl", ["--images", "{tmp}/none"], "there is no such image or directory"),
        (compare, "kl", ["{tmp}/none.ckpt=a.yaml", "--images", "{scenes}"], "a.yaml"),
        (compare, "pixels", ["--images", "{scenes}"], "a diffusion model without a first stage"),
        (compare, "kl", ["--images", "{scenes}", "--unet", "{first}"], "of a diffusion model"),
    ],
)
def test_what_is_wrong_is_one_line(
    runs, scenes, tmp_path, caplog_ldm, command, name, words, expected
):
    bad = tmp_path / "bad" / "bad.png"
    bad.parent.mkdir()
    bad.write_text("no image")
    empty = tmp_path / "empty"
    empty.mkdir()
    (config,) = runs["kl"].glob("configs/*")
    places = {"scenes": scenes, "tmp": empty, "bad": bad, "first": config}
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    given = [str(word).format(**places) for word in words]
    assert command(runs.get(name, tmp_path / name), *given, *out) == 2
    errors = [r.getMessage() for r in caplog_ldm.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert "\n" not in errors[0]
    assert expected in errors[0]


def test_a_checkpoint_of_another_model_is_reported(runs, scenes, tmp_path, caplog_ldm):
    (config,) = runs["vq"].glob("configs/*")
    words = [runs["kl"] / "checkpoints" / "last.ckpt", scenes, "--out", tmp_path / "out"]
    assert reconstruct(*words, "--config", config) == 2
    assert "does not fit VQModel" in caplog_ldm.text
