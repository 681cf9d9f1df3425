"""Networks as denoisers: routes of the condition, time and scale, the published wrapper."""

import math

import pytest
import torch
from torch import nn

from ldm.diffusion.denoiser import CONDITIONING_KEYS, DiffusionWrapper, NetDenoiser
from ldm.diffusion.schedule import PublishedSchedule, RectifiedFlow, VarianceExploding
from ldm.types import Conditioning
from tests.reference import Case, cases, fill, key_crc32

COND = {
    "concat": torch.randn(2, 1, 4, 4),
    "crossattn": torch.randn(2, 5, 6),
    "vector": torch.tensor([1, 2]),
}


class Recorder(nn.Module):
    """Returns its input, and keeps all it was given."""

    def forward(self, x, timesteps, context=None, y=None):
        self.given = {"x": x, "t": timesteps, "context": context, "y": y}
        return x[:, :3]


@pytest.mark.parametrize("key", CONDITIONING_KEYS)
def test_every_slot_arrives_where_its_key_says(key):
    slots = CONDITIONING_KEYS[key]
    net = Recorder()
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 7])
    cond = Conditioning(**{name: COND[name] for name in slots}) if slots else None
    out = DiffusionWrapper(net, key)(x, t, cond)
    assert torch.equal(out, x)
    assert net.given["t"] is t
    joined = torch.cat([x, COND["concat"]], dim=1) if "concat" in slots else x
    assert torch.equal(net.given["x"], joined)
    assert net.given["context"] is (COND["crossattn"] if "crossattn" in slots else None)
    assert net.given["y"] is (COND["vector"] if "vector" in slots else None)


@pytest.mark.parametrize("key", CONDITIONING_KEYS)
def test_a_missing_or_unused_slot_is_one_clear_error(key):
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 7])
    wrapper = DiffusionWrapper(Recorder(), key)
    for name in COND:
        changed = set(CONDITIONING_KEYS[key]) ^ {name}
        cond = Conditioning(**{slot: COND[slot] for slot in changed})
        with pytest.raises(ValueError, match="takes the slots"):
            wrapper(x, t, cond)


@pytest.mark.parametrize(("wrong", "right"), [("cross_attn", "crossattn"), ("hybrd", "hybrid")])
def test_a_misspelt_conditioning_key_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        DiffusionWrapper(Recorder(), wrong)


def test_the_wrapper_adds_the_published_prefix_to_keys():
    wrapper = DiffusionWrapper(nn.Linear(2, 2))
    assert list(wrapper.state_dict()) == ["diffusion_model.weight", "diffusion_model.bias"]


def test_the_wrapper_compiles_without_graph_breaks():
    wrapper = DiffusionWrapper(Recorder(), "concat")
    compiled = torch.compile(wrapper, fullgraph=True, backend="eager")
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 7])
    assert torch.equal(compiled(x, t, Conditioning(concat=COND["concat"])), x)


@pytest.mark.parametrize(
    ("schedule", "t", "told", "scale"),
    [
        (PublishedSchedule(), [5, 900], [5, 900], 1),
        (PublishedSchedule(), [5.25, 900.5], [5.25, 900.5], 1),
        (RectifiedFlow(), [0.005, 0.9], [5.0, 900.0], 1),
        (VarianceExploding(), [1.0, 1.0], [0.0, 0.0], 0.5**0.5),
        (VarianceExploding(), [math.e, math.e], [250.0, 250.0], (1 + math.e**2) ** -0.5),
    ],
)
@pytest.mark.parametrize("parameterization", ["x0", "v", "flow"])
def test_the_network_is_told_the_schedules_time_and_scaled_input(
    schedule, t, told, scale, parameterization
):
    net = Recorder()
    x = torch.randn(2, 3, 4, 4)
    prediction = NetDenoiser(DiffusionWrapper(net), schedule, parameterization)(
        x, torch.tensor(t), None
    )
    torch.testing.assert_close(net.given["t"], torch.tensor(told))
    torch.testing.assert_close(net.given["x"], x * scale)
    alpha, sigma = (level[:, None, None, None] for level in schedule.coefficients(torch.tensor(t)))
    # x0 is divided by det, about 0.02 for v-free predictions at t = 900
    again = alpha * prediction.x0 + sigma * prediction.eps
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), PublishedSchedule(zero_terminal_snr=True)])
def test_eps_is_refused_where_a_schedule_ends_in_pure_noise(schedule):
    with pytest.raises(ValueError, match="predict v, x0 or flow"):
        NetDenoiser(DiffusionWrapper(Recorder()), schedule, "eps")


def test_a_misspelt_parameterization_is_refused():
    with pytest.raises(ValueError, match="did you mean 'eps'"):
        NetDenoiser(DiffusionWrapper(Recorder()), PublishedSchedule(), "epsilon")


def test_a_denoiser_adds_no_keys():
    model = nn.Module()
    model.model = DiffusionWrapper(nn.Linear(2, 2))
    model.schedule = PublishedSchedule()
    model.denoiser = NetDenoiser(model.model, model.schedule)
    assert list(model.state_dict()) == [
        "model.diffusion_model.weight",
        "model.diffusion_model.bias",
    ]


WRAPPERS = [name for name in cases("i_ldm_specifics") if name.startswith("wrapper_")]


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapper_matches_the_reference(name):
    from ldm.nets.unet import UNetModel

    case = Case("i_ldm_specifics", name)
    unet = UNetModel(**case.params["diff_model_config"]["params"])
    wrapper = fill(DiffusionWrapper(unet, case.params["conditioning_key"])).eval()
    assert key_crc32(wrapper) == case.spec["rule_filled"][0]["key_crc32"]

    def joined(prefix, dim):
        parts = [case.input(key) for key in case.spec["inputs"] if key.startswith(prefix)]
        return torch.cat(parts, dim=dim) if parts else None

    cond = Conditioning(
        concat=joined("concat_", 1),
        crossattn=joined("context_", 1),
        vector=case.input("y") if "y" in case.spec["inputs"] else None,
    )
    assert set(case.want) == {"out"}
    with torch.no_grad():
        case.check("out", wrapper(case.input("x"), case.input("t"), cond))


def test_concat_condition_matches_the_reference():
    from tests.reference_models import ReferenceModel

    case = Case("i_ldm_specifics", "apply_model_cond_forms")
    model = ReferenceModel(case)
    cond = Conditioning(concat=case.input("c"))
    assert set(case.want) == {"out"}
    with torch.no_grad():
        case.check("out", model.model(case.input("x"), case.input("t"), cond))
