"""The paper's models: their size, their published twins, their data, and a step of each, narrow."""

import math
import re
from functools import cache

import pytest
import torch
from omegaconf import OmegaConf

from ldm.cli.preflight import preflight
from ldm.config import check, instantiate_from_config, instantiate_model, load, to_plain
from ldm.data.module import collate
from ldm.io.checkpoint import compare
from ldm.io.compvis import from_published
from tests.full_size import (
    DIRECTORY,
    FIRST,
    PAPER,
    STUDIED,
    STUDIED_MILLIONS,
    STUDY,
    TAU,
    UNET,
    first_stage_of,
    miniature,
    narrowed,
    on_miniature,
)
from tests.reference_configs import published_config
from tests.reference_state_dicts import listing, meta_state
from tests.shipped_configs import FULL_SIZE, ROOT, entries, plain
from tests.test_configs import meta_model

PAGE = ROOT / "docs" / "models.md"
EVERY = pytest.mark.parametrize("name", PAPER)
PUBLISHED = pytest.mark.parametrize("name", [name for name in PAPER if PAPER[name].published])

# name -> parameters in millions, where the layers that the paper names do not come to its number
OTHERWISE = {"cin-study-vq-f4": 401.433}
# what a file changes in the parameters that were published, and why its header says so
CHANGED = {
    "inpaint-big-vq-f4-noattn": {"scheduler_config"},
    "retrieval-kl-f16": {"first_stage_key"},  # published: jpg
}
PROCESS = {
    "timesteps": 1000,
    "linear_start": 1e-4,
    "linear_end": 2e-2,
    "loss_type": "l2",
    "scale_factor": 1.0,
    "scale_by_std": False,
    "image_size": 256,
    "channels": 3,
    "first_stage_key": "image",
    "parameterization": "eps",
    "scheduler_config": None,
}


def path_of(name):
    return DIRECTORY / f"{name}.yaml"


@cache
def model_of(name):
    return meta_model(plain(path_of(name)))


def numbers(module, learned=False):
    parameters = [] if module is None else module.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not learned)


def counts(model):
    """Parameters of each part, in millions; a condition that is the first stage is no part."""
    parts = dict(model.named_children())
    tau, first = parts.get("cond_stage_model"), model.first_stage_model
    return {
        UNET: numbers(model.model) / 1e6,
        TAU: numbers(tau if tau is not first else None) / 1e6,
        FIRST: numbers(first) / 1e6,
    }


def header(name):
    """The comment that a file begins with, as one text."""
    text = path_of(name).read_text().split("model:\n")[0]
    return " ".join(line.removeprefix("#").strip() for line in text.splitlines())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return miniature(tmp_path_factory.mktemp("miniature") / "data")


def test_every_task_of_the_paper_has_a_file():
    assert {path.stem for path in FULL_SIZE} == set(PAPER)
    assert {path.stem for path in STUDY.glob("*.yaml")} == set(STUDIED)


# size


@EVERY
def test_a_model_has_as_many_parameters_as_the_paper_counts(name):
    row, parts = PAPER[name], counts(model_of(name))
    found = sum(parts[part] for part in row.counted)
    if name in OTHERWISE:
        assert found == pytest.approx(OTHERWISE[name], abs=1e-3)
        assert found != pytest.approx(row.millions, rel=0.01), "then it needs no exception"
    elif row.millions is not None:
        assert found == pytest.approx(row.millions, rel=0.01)


def test_the_study_of_classes_has_the_published_network_where_table_13_counts_another():
    published = listing("train_cin256-v2")["state_dict"]
    prefix = "model.diffusion_model."
    found = model_of("cin-study-vq-f4").model.diffusion_model.state_dict()
    assert {prefix + key: list(value.shape) for key, value in found.items()} == {
        key: shape for key, (shape, _) in published.items() if key.startswith(prefix)
    }


@EVERY
def test_the_header_counts_what_a_model_takes(name):
    model, text = model_of(name), header(name)
    parts = counts(model)
    told = f"encoder of the condition {parts[TAU]:.1f} M, " if parts[TAU] > 0.01 else ""
    first = f"{parts[FIRST]:.1f} M" if parts[FIRST] else "none"
    assert f"parameters: UNet {parts[UNET]:.1f} M, {told}frozen first stage {first} " in text
    learned = sum(p.numel() for p in model.learned_parameters() if p.requires_grad)
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    # fp32: two averages of each number in Adam; a checkpoint has no gradients
    assert f"each checkpoint takes {(state + 8 * learned) / 1e9:.1f} GB" in text
    assert f"memory: {(state + 12 * learned) / 1e9:.1f} GB of weights" in text


@EVERY
def test_the_header_has_a_command_with_all_that_the_file_asks_for(name):
    text = header(name).replace("\\ ", "")
    command = re.search(r"python main\.py -t -b (\S+) (.+?)  ", text)
    assert command[1] == f"configs/latent-diffusion/{name}.yaml"
    asked = {path for path, _, value in entries(plain(path_of(name))) if value == "???"}
    assert {word.split("=")[0] for word in command[2].split()} == asked


# training


@EVERY
def test_rate_batch_and_steps_are_those_of_the_paper(name):
    row, config = PAPER[name], plain(path_of(name))
    trainer = config["lightning"]["trainer"]
    assert config["model"]["learning_rate"] == pytest.approx(row.rate)
    batch = config["data"]["params"]["batch_size"] * trainer["accumulate_grad_batches"]
    assert (batch, trainer["max_steps"]) == (row.batch, row.steps)


@EVERY
def test_a_model_describes_the_first_stage_that_its_name_ends_with(name):
    first = plain(ROOT / f"configs/autoencoder/{first_stage_of(name)}.yaml")["model"]["params"]
    inner = plain(path_of(name))["model"]["params"]["first_stage_config"]
    if first_stage_of(name) == "identity-f1":
        assert inner == first["first_stage_config"]
        return
    if name == "cin-study-vq-f32":  # table 13 has 32 channels, table 8 has 16
        first["embed_dim"] = first["ddconfig"]["z_channels"] = 32
    for key in ("ddconfig", "embed_dim", "n_embed"):
        assert inner["params"].get(key) == first.get(key), key


# published twins


@PUBLISHED
def test_names_and_shapes_are_the_published_ones(name):
    wanted = model_of(name).state_dict()
    report = compare(from_published(meta_state(PAPER[name].published), wanted), wanted)
    assert report.is_exact
    assert report.matched == len(wanted)


@PUBLISHED
def test_network_and_process_are_the_published_ones(name):
    ours = plain(path_of(name))["model"]
    published = published_config(PAPER[name].published)["model"]
    mine, theirs = ours["params"], published["params"]
    network = mine["unet_config"]["params"]
    spelt_out = {key: False for key, value in theirs["unet_config"]["params"].items() if not value}
    assert spelt_out | network == theirs["unet_config"]["params"]
    for key in ("ddconfig", "embed_dim", "n_embed"):
        first = [each["first_stage_config"]["params"].get(key) for each in (mine, theirs)]
        assert first[0] == first[1], key
    for key, default in PROCESS.items():
        is_same = mine.get(key, default) == theirs.get(key, default)
        assert is_same == (key not in CHANGED.get(name, ())), key


@PUBLISHED
def test_the_rate_of_a_step_is_the_published_one_of_an_image_times_the_batch(name):
    published = published_config(PAPER[name].published)["model"]["base_learning_rate"]
    factor = {
        "lsun-churches-kl-f8": 1,  # published for a step, by `--scale_lr False`
        "cin-vq-f4": 1,  # published for sampling; as table 15
        "txt2img-kl-f8": 2,  # likewise; table 15 has twice as much
        "retrieval-kl-f16": 1,  # likewise
    }.get(name, PAPER[name].batch)
    rate = plain(path_of(name))["model"]["learning_rate"]
    assert rate == pytest.approx(factor * published)


# data, and a step


@pytest.mark.slow
@EVERY
def test_a_model_of_full_size_passes_every_check_before_a_training(name, data, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load([path_of(name)], on_miniature(plain(path_of(name)), data))
    check(config)
    config = to_plain(config)
    module = instantiate_from_config(config["data"])
    module.setup()
    preflight(config["model"], module, callbacks=config["lightning"]["callbacks"])


@pytest.mark.slow
@EVERY
def test_a_narrow_model_begins_at_the_error_of_zero_and_takes_a_step(name, data, monkeypatch):
    """The network gives zero at first, so its error is that of noise: E eps^2 = 1, or E |eps|."""
    monkeypatch.chdir(ROOT)
    config = plain(path_of(name))
    overrides = [*narrowed(config), *on_miniature(config, data)]
    config = to_plain(load([path_of(name)], overrides))
    torch.manual_seed(0)
    model = instantiate_model(config["model"])
    module = instantiate_from_config(config["data"])
    module.setup()
    train = module.datasets["train"]
    batch = collate([{**train[index], "sample_id": index} for index in range(2)])
    model.log = model.log_dict = lambda *_, **__: None  # there is no trainer that would listen
    if model.scale_by_std:
        model.measure_scale([batch])
    z = model.encode(model.get_input(batch), model.draws(batch))
    assert z.shape[1:] == (model.channels, *model.latent_size)
    loss = model.training_step(batch, 0)
    is_l1 = config["model"]["params"].get("loss_type") == "l1"
    mean = math.sqrt(2 / math.pi) if is_l1 else 1
    deviation = math.sqrt((1 - 2 / math.pi if is_l1 else 2) / z.numel())
    assert loss.item() == pytest.approx(mean, abs=4 * deviation)
    step(model, loss)


def step(model, loss):
    """One step of the optimizer, by which something of every part that learns moves."""
    learned = [p for p in model.learned_parameters() if p.requires_grad]
    loss.backward()
    assert all(p.grad is not None for p in learned)
    made = model.configure_optimizers()
    optimizer = made[0][0] if isinstance(made, tuple) else made
    before = [p.detach().clone() for p in learned]
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(learned, before, strict=True))
    assert all(bool(p.isfinite().all()) for p in learned)


# the study on CelebA-HQ, whose files are parts


def studied(stage, overrides=()):
    config = load([path_of("celebahq-vq-f4"), STUDY / f"{stage}.yaml"], overrides)
    return OmegaConf.to_container(config, resolve=False)


@cache
def studied_model(stage):
    return meta_model(studied(stage))


def test_the_models_of_the_study_have_as_many_parameters_as_table_14_counts():
    millions = [counts(studied_model(stage))[UNET] for stage in STUDIED]
    assert (min(millions), max(millions)) == pytest.approx(STUDIED_MILLIONS, rel=0.01)


@pytest.mark.parametrize("stage", STUDIED)
def test_a_part_of_the_study_makes_a_model_of_its_first_stage(stage, data):
    (rate, batch), config, model = STUDIED[stage], studied(stage), studied_model(stage)
    check(OmegaConf.create(studied(stage, on_miniature(config, data))))
    assert config["model"]["learning_rate"] == pytest.approx(rate)
    assert config["data"]["params"]["batch_size"] == batch
    image = torch.empty(1, 3, 256, 256, device="meta")
    assert model.encode(image).shape[1:] == (model.channels, *model.latent_size)
    assert model.model.diffusion_model.in_channels == model.channels
    if stage != "identity-f1":
        inner = config["model"]["params"]["first_stage_config"]["params"]
        first = plain(ROOT / f"configs/autoencoder/{stage}.yaml")["model"]["params"]
        if stage == "vq-f32":  # table 13 has 32 channels, table 8 has 16
            first["embed_dim"] = first["ddconfig"]["z_channels"] = 32
        for key in ("ddconfig", "embed_dim", "n_embed"):
            assert inner[key] == first[key], key


# the page


def rows():
    """The rows of the page's tables by the name that each begins with, header by header."""
    tables: dict[str, dict[str, list[str]]] = {}
    title = ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            tables[title][cells[0].strip("`")] = cells[1:]
        elif line.startswith("| ") and not line.startswith("| ---"):
            title = cells[0] + cells[1]
            tables[title] = {}
    return list(tables.values())


def test_the_page_lists_every_configuration_and_its_size():
    sizes, results, parts = rows()
    assert list(sizes) == list(results) == list(PAPER)
    assert list(parts) == list(STUDIED)
    for name, (_, f, unet, tau, millions, memory) in sizes.items():
        model = model_of(name)
        part = counts(model)
        assert int(f) == model.first_stage_model.downsample_factor
        assert unet == f"{part[UNET]:.1f}"
        assert tau == (f"{part[TAU]:.1f}" if part[TAU] > 0.01 else "-")
        assert millions == str(PAPER[name].millions or "-")
        assert f"memory: {memory} GB of weights" in header(name)


def test_the_page_says_what_the_parts_of_the_study_are():
    for stage, (millions, rate, batch) in rows()[2].items():
        assert millions == f"{counts(studied_model(stage))[UNET]:.1f}"
        assert (float(rate), int(batch)) == pytest.approx(STUDIED[stage])
