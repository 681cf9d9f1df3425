"""Any mix of conditions from a configuration: classes, maps, vectors, several at once."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from ldm.conditioning.labels import ClassLabels
from ldm.config import check, instantiate_model
from tests.models.diffusion_models import (
    ATTENDING,
    filled,
    identity,
    labels,
    parameters,
    parts,
    refused,
    unet,
)
from tests.models.test_joint_training import examples, map_of_labels

LABELS = "ldm.conditioning.labels"
RATE = {"drop_rate": 0.5}


def table(**options):
    """Class labels for the network's own table."""
    params = {"n_classes": 5, "key": "class"} | RATE | options
    return {"target": f"{LABELS}.ClassLabels", "params": params}


def vector(**options):
    return labels(n_classes=5, embed_dim=6, **RATE, **options)


def numbers(**options):
    params = {"in_dim": 3, "key": "numbers"} | options
    return {"target": "ldm.conditioning.vectors.VectorEmbedder", "params": params}


def pair():
    params = {
        "c_concat_config": map_of_labels(**RATE),
        "c_crossattn_config": labels(n_classes=5, **RATE),
    }
    target = "ldm.modules.diffusionmodules.util.HybridConditioner"
    return {"target": target, "params": params}


# name -> conditioning key, parameters, and what the network is made to take
FORMS = {
    "labels": ("adm", {"cond_stage_config": table()}, {"num_classes": 5}),
    "published labels": (
        "adm",
        {
            "cond_stage_config": {"target": "torch.nn.Identity"},
            "conditioning_key": "adm",
            "cond_stage_key": "class",
        },
        {"num_classes": 5},
    ),
    "a class as a vector": (
        "adm",
        {"cond_stage_config": vector(), "conditioning_key": "adm"},
        {"adm_in_channels": 6},
    ),
    "vectors of two kinds": (
        "adm",
        {"cond_stage_config": [vector(slot="vector"), numbers(drop_rate=0.1)]},
        {"adm_in_channels": 9},
    ),
    "a published pair": (
        "hybrid",
        {"cond_stage_config": pair(), "conditioning_key": "hybrid"},
        {**ATTENDING, "in_channels": 5},
    ),
    "the same as a list": (
        "hybrid",
        {"cond_stage_config": [map_of_labels(**RATE), labels(n_classes=5, **RATE)]},
        {**ATTENDING, "in_channels": 5},
    ),
    "a map and a class": (
        "concat-adm",
        {"cond_stage_config": [map_of_labels(), table()]},
        {"in_channels": 5, "num_classes": 5},
    ),
    "everything": (
        "hybrid-adm",
        {
            "cond_stage_config": [
                labels(n_classes=5, **RATE),
                labels(key="other"),
                map_of_labels(),
                map_of_labels(key="image", out_channels=1),
                numbers(embed_dim=4, **RATE),
            ]
        },
        {**ATTENDING, "in_channels": 6, "adm_in_channels": 4},
    ),
}


def told():
    numbers = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return examples() | {"numbers": numbers}


def built(form):
    """The model of a form, from the block of a configuration."""
    key, cond, network = FORMS[form]
    params = parameters(**cond, unet_config=unet(**network), cond_stage_trainable=True)
    block = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    check({"model": block})
    model = filled(instantiate_model(block))
    assert model.model.conditioning_key == key
    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_mix_from_a_configuration_trains_and_is_guided(form):
    model, batch = built(form), told()
    draws = model.draws(batch)
    z = model.encode(model.get_input(batch), draws)
    terms = model.objective(model.denoiser, z, model.conditioner(batch, draws=draws), draws=draws)
    terms.total.mean().backward()
    learned = model.learned_parameters()
    assert all(p.grad is not None for p in learned if p.requires_grad)
    seen = []

    def guide(denoiser, null):
        seen.append(null)
        return denoiser

    model.sample([0, 1, 2, 3], batch, steps=1, guide=guide)
    for slot, value in model.conditioner.null(batch).slots().items():
        assert torch.equal(getattr(seen[0], slot), value)
    images = model.sample([0, 1, 2, 3], batch, steps=2, scale=2.0)
    plain = model.sample([0, 1, 2, 3], batch, steps=2)
    assert images.isfinite().all()
    assert not torch.equal(images, plain)


@pytest.mark.parametrize("form", ["labels", "published labels"])
def test_the_network_learns_the_rows_of_the_classes_it_is_told(form):
    """And that of no class, which is the last one, of examples whose label is dropped."""
    model, batch = built(form), told()
    (part,) = model.conditioner.parts
    assert isinstance(part.embedder, ClassLabels)
    assert part.embedder.null_label == 4
    assert not list(part.embedder.parameters())
    rate = part.embedder.drop_rate
    draws = model.draws(batch)
    dropped = draws.uniform("drop class") < rate
    assert bool(dropped.any()) is bool(rate)
    want = set(torch.where(dropped, 4, batch["class"]).tolist())
    z, cond = model.encode(model.get_input(batch)), model.conditioner(batch, draws=draws)
    model.objective(model.denoiser, z, cond, draws=draws).total.mean().backward()
    rows = model.model.diffusion_model.label_emb.weight.grad.abs().sum(dim=1)
    assert set(rows.nonzero().flatten().tolist()) == want


PAGE = (Path(__file__).parents[2] / "docs" / "conditioning.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["labels", "several", "t5"])
def test_what_the_page_of_conditions_shows_assembles(example):
    shown = yaml.safe_load(example.replace(", ...}", "}"))
    network = {"in_channels": 4, "out_channels": 4} | shown.pop("unet_config")["params"]
    first_stage = identity() | {"params": {"latent_channels": 4}}
    made = parts(first_stage_config=first_stage, unet_config=unet(**network), **shown)
    assert made.conditioning_key is not None
    assert all(part.embedder.drop_rate or part.slot == "concat" for part in made.conditioner.parts)


# what does not fit


@pytest.mark.parametrize(
    ("tau", "network", "message"),
    [
        (
            [labels(), labels(embed_dim=6, key="other")],
            ATTENDING,
            r"cond_stage_config: tokens of several encoders have different widths: 8 "
            r"\(ClassEmbedder, cond_stage_config\.0\) \+ 6 \(ClassEmbedder, cond_stage_config\.1\)",
        ),
        (
            [labels(), labels(key="other")],
            ATTENDING | {"context_dim": 6},
            r"unet_config\.params\.context_dim: 6, but .* 8 \(cond_stage_config\.0\); expected 8",
        ),
        (
            [map_of_labels(), map_of_labels(out_channels=4)],
            {"in_channels": 5},
            r"in_channels: 5, but .*; expected 9: 3 \+ 2 \(SpatialRescaler, cond_stage_config\.0\) "
            r"\+ 4 \(SpatialRescaler, cond_stage_config\.1\)",
        ),
        (
            [vector(slot="vector"), numbers()],
            {"adm_in_channels": 6},
            r"adm_in_channels: 6, but .* of width 6 \+ 3; expected 6 \(ClassEmbedder, "
            r"cond_stage_config\.0\) \+ 3 \(VectorEmbedder, cond_stage_config\.1\)",
        ),
        (
            table(),
            {"num_classes": 4},
            r"unet_config\.params\.num_classes: 4, but labels are those of 5 classes "
            r"\(cond_stage_config\.params\.n_classes\); expected 5",
        ),
        (
            [table(), numbers()],
            {"num_classes": 5},
            r"cond_stage_config\.0: ClassLabels gives labels, which cannot be joined",
        ),
    ],
)
def test_widths_that_disagree_are_named_by_their_places(tau, network, message):
    refused(message, parameters(cond_stage_config=tau, unet_config=unet(**network)))


@pytest.mark.parametrize(
    ("tau", "key", "message"),
    [
        (map_of_labels(), "adm", "slot 'vector', but SpatialRescaler gives what enters concat"),
        (labels(), "concat", "'concat', but ClassEmbedder gives what enters crossattn or vector"),
        (numbers(), "crossattn", "'crossattn', but VectorEmbedder gives what enters vector"),
        (
            {
                "target": "ldm.conditioning.retrieval.NeighbourEmbedder",
                "params": {"embed_dim": 8},
            },
            "adm",
            "'vector', but NeighbourEmbedder gives what enters crossattn",
        ),
    ],
)
def test_a_conditioning_key_that_leads_elsewhere_is_refused(tau, key, message):
    refused(message, parameters(cond_stage_config=tau, conditioning_key=key))


def test_an_encoder_alone_may_be_a_list_of_one():
    (part,) = parts(
        cond_stage_config=[vector(slot="vector")], unet_config=unet(adm_in_channels=6)
    ).conditioner.parts
    assert (part.slot, part.key) == ("vector", "class")
