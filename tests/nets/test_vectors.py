"""Every network against its reference vectors."""

import pytest
import torch

from ldm.nets.embeddings import sine_first_timestep_embedding, timestep_embedding
from tests.nets.published_case import build, inputs
from tests.reference import Case, cases

NETS = [
    *(("c_unet", name) for name in cases("c_unet") if name != "timestep_embeddings"),
    *(("m_modules", name) for name in cases("m_modules")),
]
WITH_GRADIENTS = [
    (category, name) for category, name in NETS if "grad_x" in Case(category, name).want
]


@pytest.mark.parametrize(("category", "name"), NETS)
def test_a_net_gives_the_published_output(category, name):
    case = Case(category, name)
    assert {key for key in case.want if "grad" not in key} == {"out"}
    with torch.no_grad():
        given = inputs(case)
        y = {"y": given.pop("y")} if "y" in given else {}
        net = build(case)
        case.check("out", net(given.pop("x"), *given.values(), **y))


@pytest.mark.parametrize(("category", "name"), WITH_GRADIENTS)
def test_a_net_gives_the_published_gradients(category, name):
    case = Case(category, name)
    net, given = build(case), inputs(case)
    x = given.pop("x").requires_grad_()
    (net(x, *given.values()) * case.input("g")).sum().backward()
    parameters = dict(net.named_parameters())
    assert list(parameters) == case.spec["parameter_order"]
    norms = [parameter.grad.double().norm().item() for parameter in parameters.values()]
    got = {"grad_x": x.grad, "grad_norms": norms}
    got |= {f"grad__{name}": parameter.grad for name, parameter in parameters.items()}
    for name in set(case.want) - {"out"}:
        case.check(name, got[name], "gradients")


def test_time_embeddings_are_the_published_ones():
    case = Case("c_unet", "timestep_embeddings")
    t = case.input("t")
    case.check("repeat_only", timestep_embedding(t, 6, repeat_only=True))
    for name in set(case.want) - {"repeat_only"}:
        kind, _, dim, *period = name.split("_")
        if kind == "legacy":
            got = sine_first_timestep_embedding(t, int(dim))
        else:
            got = timestep_embedding(t, int(dim), max_period=100 if period else 10000)
        case.check(name, got)
