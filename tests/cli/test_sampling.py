"""What the sampling scripts draw, and with which sampler."""

import argparse
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.entries import batch_of, captioned, labelled, read_captions, require_script
from ldm.cli.sampling.flags import check_flags, sampling_parser
from ldm.cli.sampling.told import add_told, told
from ldm.conditioning.base import Embedder
from ldm.conditioning.labels import ClassEmbedder
from ldm.conditioning.layout import LayoutEmbedder
from ldm.conditioning.spatial import SpatialRescaler
from ldm.conditioning.text import BERTEmbedder
from ldm.config import ConfigError
from ldm.samplers.ancestral import Ancestral
from ldm.samplers.ddim import DDIM
from ldm.tensor import to_uint8
from tests.cli.jobs import built, draw
from tests.cli.runs import second_stage, unconditional


def conditioned(*encoders):
    """A model with these encoders, each of which says what it reads."""
    config = second_stage()
    params = config["model"]["params"]
    for key in ("cond_stage_key", "conditioning_key"):
        del params[key]
    params["cond_stage_config"] = list(encoders)
    if all(each.slot == "concat" for each in encoders):
        params["unet_config"]["params"] |= {"use_spatial_transformer": False, "context_dim": None}
    widths = [each.embed_dim for each in encoders if each.slot == "concat"]
    params["unet_config"]["params"]["in_channels"] += sum(widths)
    return built(config)


class Letters(Embedder):
    """An encoder of captions that nobody has listed: how long each is."""

    reads = "text"
    embed_dim = 16

    def encode(self, value):
        return torch.tensor([[[float(len(text))] * 16] for text in value])


def tokens(key="ids"):
    return BERTEmbedder(16, 1, 32, 12, use_tokenizer=False, key=key)


def spatial(key):
    return SpatialRescaler(in_channels=3, out_channels=3, key=key)


def labels(key, classes=25):
    return ClassEmbedder(16, classes, key=key)


def test_an_encoder_of_captions_is_known_by_what_it_says_that_it_reads():
    model = conditioned(Letters(key="caption"), Letters(key="title"))
    items = captioned(model, ["a", "b"])
    assert batch_of(model, items) == {"caption": ["a", "b"], "title": ["a", "b"]}


def test_encoders_that_share_their_labels_are_drawn_from_the_labels_of_both():
    model = conditioned(labels("class_label"), labels("class_label", 20))
    given = batch_of(model, labelled(model, [19, 0], 2))
    assert given["class_label"].tolist() == [19, 19, 0, 0]
    with pytest.raises(ConfigError, match="--classes 20: expected labels 0 to 19"):
        labelled(model, [20], 1)


@pytest.mark.parametrize(
    ("encoders", "named"),
    [
        ([tokens()], "ids (BERTEmbedder)"),
        ([labels("a"), labels("b")], "a (ClassEmbedder) and b (ClassEmbedder)"),
        ([labels("a"), Letters(key="b")], "a (ClassEmbedder) and b (Letters)"),
    ],
)
def test_what_no_script_draws_is_drawn_from_python(encoders, named):
    model = conditioned(*encoders)
    for script in ("sample", "txt2img", "img2img", "inpaint", "semantic"):
        with pytest.raises(ConfigError) as error:
            require_script(f"scripts/{script}.py", model)
        assert f"draws from {named}; draw it with `model.sample`" in str(error.value)
        assert "docs/sampling.md" in str(error.value)


@pytest.mark.parametrize(
    ("encoders", "script"),
    [
        ([labels("class_label"), labels("class_label")], "sample"),
        ([Letters(key="a"), Letters(key="b")], "txt2img"),
        ([spatial("segmentation")], "semantic"),
        ([Letters(key="a"), labels("b"), spatial("segmentation")], "semantic"),
        ([spatial("LR_image")], "superres"),
        ([spatial("masked_image"), spatial("mask")], "inpaint"),
        ([tokens("coordinates_bbox")], "layout2img"),
        ([LayoutEmbedder(16, 1, 5, key="boxes")], "layout2img"),
    ],
)
def test_a_model_is_drawn_by_the_script_that_gives_what_it_reads(encoders, script):
    model = conditioned(*encoders)
    require_script(f"scripts/{script}.py", model)
    is_told = script in ("sample", "txt2img")
    for other in ("sample", "txt2img", "img2img", "inpaint", "superres", "layout2img", "semantic"):
        if other != script and not (is_told and other in ("img2img", "inpaint", "superres")):
            with pytest.raises(ConfigError, match=f"draw it with scripts/{script}.py"):
                require_script(f"scripts/{other}.py", model)


def test_a_model_of_a_map_is_told_captions_and_classes_too():
    model = conditioned(Letters(key="a"), labels("b"), spatial("segmentation"))
    parser = argparse.ArgumentParser()
    add_told(parser)
    assert told(model, parser.parse_args(["--prompt", "x", "--class", "3"])) == {"a": "x", "b": 3}
    for words, expected in (
        (["--class", "3"], "--prompt is needed"),
        (["--prompt", "x"], "--class is needed"),
    ):
        with pytest.raises(ConfigError, match=expected):
            told(model, parser.parse_args(words))


@dataclass
class Drawn:
    """A picture, and what its file says of the sampler."""

    pixels: np.ndarray
    sampler: str


@pytest.fixture(scope="module")
def ancestral():
    """An untrained model whose own sampler is DDPM's."""
    config = unconditional()
    sampler = {"target": "ldm.samplers.ancestral.Ancestral"}
    config["model"]["params"]["sampler_config"] = sampler
    return built(config).eval()


def drawn(model, out, *words):
    draw(model, out, "--steps", 4, "--n", 1, *words, seed=7)
    with Image.open(out / "00000.png") as image:
        return Drawn(np.asarray(image), image.text["solver"])


def test_pictures_are_drawn_with_the_models_own_sampler(ancestral, tmp_path):
    picture = drawn(ancestral, tmp_path)
    assert np.array_equal(picture.pixels, to_uint8(ancestral.sample([7], steps=4))[0])
    assert picture.sampler == repr(Ancestral())


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_eta_asks_for_ddim(ancestral, tmp_path, eta):
    picture = drawn(ancestral, tmp_path, "--eta", str(eta))
    by_ddim = to_uint8(ancestral.sample([7], steps=4, sampler=DDIM(eta=eta)))[0]
    assert np.array_equal(picture.pixels, by_ddim)
    assert picture.sampler == repr(DDIM(eta=eta))
    own = drawn(ancestral, tmp_path / "own")
    assert not np.array_equal(picture.pixels, own.pixels)


def test_eta_is_checked_where_it_is_given():
    parser = sampling_parser("")
    parser.set_defaults(n=1)
    check_flags(parser.parse_args(["run"]))
    with pytest.raises(ConfigError, match=r"--eta -1\.0: expected 0 or more"):
        check_flags(parser.parse_args(["run", "--eta", "-1"]))
    with pytest.raises(ConfigError, match=r"--eta 2\.0: expected 0 to 1"):
        check_flags(parser.parse_args(["run", "--eta", "2"]))


def test_captions_of_a_file_are_utf8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa red circle\n\n a caf\xc3\xa9 \n")
    assert read_captions(["first"], str(path)) == ["first", "a red circle", "a café"]
    path.write_bytes("a café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"captions\.txt: is not UTF-8 text"):
        read_captions([], str(path))


def test_an_interrupted_script_ends_as_training_does():
    def interrupted(argv):
        raise KeyboardInterrupt

    assert exit_code(interrupted, []) == 130


def test_help_shows_the_defaults_that_there_are(capsys):
    with pytest.raises(SystemExit):
        sampling_parser("").parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "seed + i (default: 0)" in " ".join(shown.split())
    assert "None" not in shown
