"""A classifier of noisy latents through the command line."""

import math

import numpy as np
import pytest
import torch

from ldm.cli.exits import exit_code
from ldm.cli.train import main, train
from ldm.config import instantiate_model, load, model_block, without_checkpoints
from ldm.io.checkpoint import load_into, load_state
from tests.cli.runs import only_run, script, unconditional, write
from tests.cli.test_interruption import assert_same_training, interrupted_by
from tests.shipped_configs import ROOT, plain

SHAPES = "ldm.data.shapes.ShapesDataset"
NET = "model.params.unet_config.params"


def classifier():
    """A classifier of the latents, 8 x 8, of `second_stage`, with dropout and an average."""
    config = unconditional()
    params = config["model"]["params"]
    for key in ("image_size", "log_every_t"):
        params.pop(key, None)
    params |= {"num_classes": 24, "use_ema": True}
    params["unet_config"] = {
        "target": "ldm.nets.unet_encoder.EncoderUNetModel",
        "params": {
            "image_size": 8,
            "in_channels": 4,
            "out_channels": 24,
            "model_channels": 32,
            "channel_mult": [1, 2],
            "num_res_blocks": 1,
            "attention_resolutions": [2],
            "dropout": 0.1,
        },
    }
    config["model"]["target"] = "ldm.models.classifier.LatentClassifier"
    del config["lightning"]["callbacks"]["image_logger"]["params"]["log_images_kwargs"]
    return config


class Labelled:
    """Images with one label, of which no list of classes is known."""

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"image": np.zeros((16, 16, 3), np.uint8), "class_label": self.label}


@pytest.fixture
def place(tmp_path, monkeypatch, caplog_ldm):
    """A directory to work in; what was logged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_TRUST", "tests")
    return tmp_path


def labelled(label):
    config = classifier()
    target = f"{__name__}.Labelled"
    config["data"]["params"]["train"] = {"target": target, "params": {"label": label}}
    del config["data"]["params"]["validation"]
    return config


# what is refused before anything is trained


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["model.params.label_key=class"],
            "model.params.label_key: 'class' is no entry of data.params.train, which has",
        ),
        (
            ["model.params.label_key=caption"],
            "data.params.train: 'caption', which model.params.label_key names, is of type str; "
            "expected an integer class label",
        ),
        (
            ["model.params.label_key=box_classes"],
            "data.params.train: box_classes: int64 of shape (1, 1); expected integers (B,)",
        ),
        (
            [f"{NET}.out_channels=25"],
            "model.params.unet_config.params.out_channels: 25, but num_classes is 24",
        ),
        (
            [f"{NET}.out_channels=25", "model.params.num_classes=25"],
            "model.params.num_classes: 25, but the data has 24 classes; expected 24",
        ),
        (
            [f"{NET}.in_channels=3"],
            "model.params.unet_config.params.in_channels: 3, but AutoencoderKL has latents of 4",
        ),
        (
            [f"{NET}.pool=attention", f"{NET}.image_size=16", f"{NET}.num_head_channels=32"],
            "data.params.train: what is classified, 4 channels of 8 x 8, does not fit unet_config",
        ),
        (["model.params.num_classes=0"], "model.params.num_classes: expected int >= 1"),
        (["model.params.diffusion_ckpt_path=none.ckpt"], "no such checkpoint"),
        (["model.params.linear_strat=0.1"], "model.params.linear_strat: LatentClassifier() got no"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_is_wrong_is_one_clear_error(place, caplog, words, expected):
    path = write(place / "config.yaml", classifier())
    assert main(["-b", path, "--gpus", "cpu", *words]) == 2
    assert expected in caplog.text


@pytest.mark.parametrize("label", [24, -1])
def test_a_label_beyond_the_classes_is_named(place, caplog, label):
    assert main(["-b", write(place / "config.yaml", labelled(label)), "--gpus", "cpu"]) == 2
    assert f"data.params.train: class_label: {label}; expected 0 to 23" in caplog.text


def test_a_first_stage_without_weights_must_be_meant(place, caplog):
    config = classifier()
    del config["model"]["params"]["first_stage_config"]["params"]["ckpt_path"]
    assert main(["-b", write(place / "config.yaml", config), "--gpus", "cpu"]) == 2
    assert "first_stage_config.params.ckpt_path: not given" in caplog.text


def test_a_network_that_gives_no_logits_is_refused(place, caplog):
    config = labelled(0)
    config["model"]["params"]["unet_config"] = {"target": f"{__name__}.Features"}
    assert main(["-b", write(place / "config.yaml", config), "--gpus", "cpu"]) == 2
    assert "model.params.unet_config: gives (4, 8, 8) for an example; expected logits (24,)" in (
        caplog.text
    )


class Features(torch.nn.Module):
    """A network that gives a map."""

    def forward(self, x, timesteps):
        return x


# what is trained


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_uninterrupted_one_bit_for_bit(place):
    path = write(place / "whole.yaml", classifier())
    whole = train(["-b", path, "-t", "-l", "whole"])
    broken = interrupted_by(classifier(), "RaiseAt", batch=5)
    with pytest.raises(RuntimeError):
        train(["-b", write(place / "broken.yaml", broken), "-t", "-l", "broken"])
    run = only_run(place / "broken")
    train(["-r", str(run), "-t", "lightning.callbacks.interruption=null"])
    states = [
        torch.load(each / "checkpoints/last.ckpt", weights_only=True) for each in (whole.path, run)
    ]
    assert states[0]["global_step"] == 10
    assert_same_training(*states)


@pytest.mark.slow
def test_a_classifier_and_its_diffusion_model_are_trained_loaded_and_belong_together(place, caplog):
    diffusion = train(
        ["-b", write(place / "diffusion.yaml", unconditional()), "-t", "-l", "one", "--max_steps=1"]
    )
    checkpoint = diffusion.path / "checkpoints/last.ckpt"
    ours = train(
        [
            *("-b", write(place / "classifier.yaml", classifier()), "-t", "-l", "two"),
            *("--max_steps", "2", f"model.params.diffusion_ckpt_path={checkpoint}"),
        ]
    )
    models = [loaded(run) for run in (ours, diffusion)]
    models[0].require_same_space(models[1])
    z_t = torch.randn(2, 4, 8, 8)
    log_prob = models[0].log_prob(z_t, torch.tensor([5, 900]), torch.tensor([0, 23]))
    assert ((-2 * math.log(24) < log_prob) & (log_prob < 0)).all()
    # and it is not what draws
    assert exit_code(script("sample"), [str(ours.path), "--n", "1"]) == 2
    assert "holds a LatentClassifier" in caplog.text
    assert "give the run of a diffusion model" in caplog.text


def loaded(run):
    """The model of a run, as any program would load it."""
    model = instantiate_model(without_checkpoints(model_block(load(run.config_files()))))
    load_into(model, load_state(run.path / "checkpoints/last.ckpt"))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "model"), [("classifier", "ldm-vq"), ("classifier-pixel", "ddpm")]
)
def test_a_tiny_classifier_belongs_to_its_tiny_diffusion_model(name, model):
    """Both first stages are drawn from the same seed, as both are built first."""
    pair = []
    for each in (name, model):
        torch.manual_seed(0)
        block = plain(ROOT / f"configs/tiny/{each}.yaml")["model"]
        pair.append(instantiate_model(block))
    pair[0].require_same_space(pair[1])
