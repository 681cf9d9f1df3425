"""The sampling scripts on models that were trained for two steps."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.flags import sampling_parser
from ldm.cli.sampling.loading import checkpoint_and_block, load_model
from ldm.data.scenes import CLASS_NAMES
from tests.cli.runs import first_stage, pixels, script, second_stage, trained, unconditional, write

pytestmark = pytest.mark.slow

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a small large red blue green circle square on white"


def sample(*words):
    return exit_code(script("sample"), [*map(str, words), "--steps", "4", "--device", "cpu"])


def txt2img(*words):
    return exit_code(script("txt2img"), [*map(str, words), "--steps", "4", "--device", "cpu"])


def text_model(directory):
    config = second_stage()
    (directory / "vocab.txt").write_text("\n".join(WORDS.split()))
    tau = {"key": "caption", "n_embed": 16, "n_layer": 1, "max_seq_len": 12, "drop_rate": 0.1}
    tau |= {"vocab_size": 32, "tokenizer": str(directory / "vocab.txt")}
    config["model"]["params"] |= {
        "cond_stage_key": "caption",
        "cond_stage_config": {"target": "ldm.conditioning.text.BERTEmbedder", "params": tau},
    }
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run directory of each kind of model."""
    place = tmp_path_factory.mktemp("runs")
    configs = {
        "first": first_stage(),
        "plain": unconditional(),
        "class": second_stage(),
        "text": text_model(place),
    }
    return trained(place, **configs)


@pytest.mark.parametrize(
    ("name", "draw", "words"),
    [
        ("plain", sample, ["--n", 5]),
        ("class", sample, ["--classes", 3, "--n", 5, "--scale", 2]),
        ("text", txt2img, ["--prompt", "a red circle on white", "--n", 5, "--eta", 1]),
    ],
)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(runs, tmp_path, name, draw, words):
    # to 1e-6 before rounding, as sums are ordered by the size of the batch: one level at most
    for size in (1, 2, 5):
        out = tmp_path / str(size)
        assert draw(runs[name], *words, "--seed", 7, "--batch-size", size, "--out", out) == 0
    together = [pixels(tmp_path / "5" / f"{index:05}.png") for index in range(5)]
    assert len({image.tobytes() for image in together}) == 5
    for size in (1, 2):
        for index, image in enumerate(together):
            again = pixels(tmp_path / str(size) / f"{index:05}.png")
            assert np.abs(again.astype(int) - image).max() <= 1


def test_a_configuration_that_leaves_its_first_stage_open_describes_a_whole_checkpoint(
    runs, tmp_path
):
    config = unconditional("???")
    words = [runs["plain"] / "checkpoints/last.ckpt", "--n", 1]
    words += ["--config", write(tmp_path / "open.yaml", config)]
    assert sample(*words, "--out", tmp_path / "a") == 0
    assert sample(runs["plain"], "--n", 1, "--out", tmp_path / "b") == 0
    assert (pixels(tmp_path / "a/00000.png") == pixels(tmp_path / "b/00000.png")).all()


def test_a_seed_draws_its_image_wherever_the_count_began(runs, tmp_path):
    assert sample(runs["plain"], "--n", 3, "--seed", 4, "--out", tmp_path / "a") == 0
    assert sample(runs["plain"], "--n", 1, "--seed", 6, "--out", tmp_path / "b") == 0
    third = pixels(tmp_path / "a" / "00002.png").astype(int)
    assert np.abs(third - pixels(tmp_path / "b" / "00000.png")).max() <= 1


def test_images_of_a_seed_agree_to_rounding_in_any_batch(runs):
    args = sampling_parser("").parse_args([str(runs["class"]), "--device", "cpu"])
    model = load_model(args, *checkpoint_and_block(args))
    labels = {"class_label": torch.full((5,), 3)}
    together = model.sample(range(5), labels, steps=10, scale=2.0)
    for index in range(5):
        alone = model.sample(
            [index], {"class_label": labels["class_label"][:1]}, steps=10, scale=2.0
        )
        assert (alone[0] - together[index]).abs().max() < 1e-5


def test_single_images_and_a_grid_are_written_with_what_they_were_drawn_from(runs, tmp_path):
    words = ["--prompt", "a red circle", "--prompt", "a blue square", "--n", 2, "--seed", 3]
    assert txt2img(runs["text"], *words, "--scale", 2.5, "--out", tmp_path) == 0
    names = ["00000.png", "00001.png", "00002.png", "00003.png", "grid.png", "job.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with Image.open(tmp_path / "00002.png") as image:
        assert image.size == (16, 16)
        assert image.text["caption"] == "a blue square"
        assert (image.text["seed"], image.text["steps"], image.text["scale"]) == ("5", "4", "2.5")
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (38, 38, 3)  # 2 x 2 with a margin of 2 pixels around each
    assert np.array_equal(grid[2:18, 20:36], pixels(tmp_path / "00001.png"))


def test_a_caption_that_is_cut_is_told(runs, tmp_path, caplog_ldm):
    long = " ".join(["red"] * 20)
    words = ["--prompt", long, "--prompt", "a red circle", "--n", 1, "--out", tmp_path / "a"]
    assert txt2img(runs["text"], *words) == 0
    assert caplog_ldm.text.count("tokens, of which BERTEmbedder reads the first 12") == 1
    assert f"{long!r} has 22 tokens" in caplog_ldm.text
    # [CLS], ten words and [SEP] are twelve tokens
    cut = " ".join(["red"] * 10)
    assert txt2img(runs["text"], "--prompt", cut, "--n", 1, "--out", tmp_path / "b") == 0
    drawn = (pixels(tmp_path / out / "00000.png").astype(int) for out in "ab")
    assert np.abs(np.subtract(*drawn)).max() <= 1


def test_captions_come_from_a_file_as_well(runs, tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle\n\na green square\n")
    words = ["--from-file", tmp_path / "captions.txt", "--prompt", "a large circle", "--n", 1]
    assert txt2img(runs["text"], *words, "--out", tmp_path / "out") == 0
    texts = []
    for index in range(3):
        with Image.open(tmp_path / "out" / f"{index:05}.png") as image:
            texts.append(image.text["caption"])
    assert texts == ["a large circle", "a red circle", "a green square"]


def test_each_class_is_drawn_as_often_as_asked(runs, tmp_path):
    assert sample(runs["class"], "--classes", 3, 17, "--n", 2, "--out", tmp_path) == 0
    labels = []
    for index in range(4):
        with Image.open(tmp_path / f"{index:05}.png") as image:
            labels.append(image.text["class_label"])
    assert labels == ["3", "3", "17", "17"]


def test_guidance_and_weights_change_what_is_drawn(runs, tmp_path):
    words = [runs["class"], "--classes", 3, "--n", 1, "--out"]
    assert sample(*words, tmp_path / "a") == 0
    assert sample(*words, tmp_path / "b", "--scale", 1000) == 0
    assert sample(*words, tmp_path / "c", "--weights", "raw") == 0
    images = {pixels(tmp_path / name / "00000.png").tobytes() for name in "abc"}
    assert len(images) == 3


def test_another_size_may_be_drawn(runs, tmp_path):
    assert sample(runs["plain"], "--n", 1, "--size", 16, 24, "--out", tmp_path) == 0
    assert pixels(tmp_path / "00000.png").shape == (16, 24, 3)


def test_a_checkpoint_outside_its_run_needs_the_configuration(runs, tmp_path, caplog_ldm):
    lone = shutil.copy(runs["plain"] / "checkpoints" / "last.ckpt", tmp_path / "model.ckpt")
    assert sample(lone, "--out", tmp_path / "out") == 2
    assert "--config" in caplog_ldm.text
    (config,) = runs["plain"].glob("configs/*-project.yaml")
    words = (lone, "--config", config, "--n", 1, "--out", tmp_path / "out")
    assert sample(*words) == 2
    (stage,) = runs["plain"].glob("checkpoints/first_stage-*")
    assert f"{stage.name}, which is not beside it; copy that" in caplog_ldm.text
    shutil.copy(stage, tmp_path)
    assert sample(*words) == 0


@pytest.mark.parametrize(
    ("draw", "name", "words", "expected"),
    [
        (sample, "none", [], ["none", "no such run directory or checkpoint"]),
        (sample, "first", [], ["AutoencoderKL", "draws nothing", "diffusion model"]),
        (txt2img, "first", ["--prompt", "a"], ["AutoencoderKL", "draws nothing"]),
        (txt2img, "plain", ["--prompt", "a"], ["draws from nothing", "with scripts/sample.py"]),
        (txt2img, "class", ["--prompt", "a"], ["from class_label", "with scripts/sample.py"]),
        (txt2img, "text", [], ["no captions", "--prompt"]),
        (txt2img, "text", ["--from-file", "none.txt"], ["--from-file none.txt: no such file"]),
        (sample, "text", [], ["from caption (BERTEmbedder)", "with scripts/txt2img.py"]),
        (sample, "class", [], ["--classes is needed", "0 to 24"]),
        (sample, "class", ["--classes", 99], ["--classes 99", "0 to 24"]),
        (sample, "class", ["--classes", 1, -1], ["--classes 1 -1", "0 to 24"]),
        (sample, "plain", ["--classes", 1], ["--classes 1", "without classes"]),
        (sample, "plain", ["--scale", 2], ["--scale 2", "unconditional"]),
        (sample, "plain", ["--n", 0], ["--n 0", "1 or more"]),
        (sample, "plain", ["--batch-size", 0], ["--batch-size 0", "1 or more"]),
        (sample, "plain", ["--seed", -3], ["--seed -3", "0 or more"]),
        (sample, "plain", ["--size", 15, 16], ["--size 15 16", "multiples of 4"]),
        (sample, "plain", ["--device", "abacus"], ["--device abacus"]),
    ],
)
def test_what_cannot_be_drawn_is_explained(runs, tmp_path, caplog_ldm, draw, name, words, expected):
    words = [*words, "--out", tmp_path / "out"]
    script_words = [runs.get(name, tmp_path / name), *words]
    if "--device" in words:
        code = exit_code(script("sample"), [str(word) for word in script_words])
    else:
        code = draw(*script_words)
    assert code == 2
    assert [text for text in expected if text not in caplog_ldm.text] == [], caplog_ldm.text
    assert not (tmp_path / "out").exists()


def test_drawing_is_no_start_of_a_run(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_RUN", "as it was")
    assert sample(runs["plain"], "--n", 1, "--out", tmp_path / "out") == 0
    assert os.environ["LDM_RUN"] == "as it was"


def test_pictures_do_not_replace_a_file(runs, tmp_path, caplog_ldm):
    file = tmp_path / "out"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert sample(runs["plain"], "--n", 1, "--out", out) == 2
        assert f"--out {out}: expected a directory" in caplog_ldm.text
    assert file.read_text() == "mine"


def test_steps_beyond_the_schedule_are_refused(runs, tmp_path, caplog_ldm):
    words = [str(runs["plain"]), "--steps", "1001", "--out", str(tmp_path / "out")]
    assert exit_code(script("sample"), words) == 2
    assert "--steps 1001: expected 1 to 1000" in caplog_ldm.text


def test_a_checkpoint_of_another_model_is_reported(runs, tmp_path, caplog_ldm):
    run = tmp_path / "run"
    shutil.copytree(runs["plain"], run)
    for file in ("last.ckpt", *runs["class"].glob("checkpoints/first_stage-*")):
        shutil.copy(runs["class"] / "checkpoints" / file, run / "checkpoints")
    assert sample(run, "--out", tmp_path / "out") == 2
    assert "unexpected in the file" in caplog_ldm.text
    torch.save({"state_dict": {"x": torch.zeros(1)}}, run / "checkpoints" / "last.ckpt")
    assert sample(run, "--out", tmp_path / "out") == 2
    assert "missing in the file" in caplog_ldm.text


def test_the_classes_of_the_fixture_are_those_of_the_scenes():
    assert (
        len(CLASS_NAMES)
        == second_stage()["model"]["params"]["cond_stage_config"]["params"]["n_classes"] - 1
    )
