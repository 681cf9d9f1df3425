"""The running average against published values and the geometric series."""

import zlib

import numpy as np
import pytest
import torch
from torch import nn

from ldm.models.ema import EMA
from tests.reference import Case


class Toy(nn.Module):
    """The module of the published cases."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.block = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self.norm = nn.LayerNorm(4)

    def at_step(self, step):
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                seed = zlib.crc32(f"ema:{name}:{step}".encode())
                draw = np.random.RandomState(seed).standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(draw))
        return self


def published_state(ema):
    """The average under its published, dot-less names."""
    state = {"decay": ema.decay, "num_updates": ema.num_updates}
    for name, value in ema.module.named_parameters():
        if name != "frozen":
            state[name.replace(".", "")] = value
    return state


@pytest.mark.parametrize("name", ["ema_default", "ema_fixed_decay"])
def test_average_equals_published_values(name):
    case = Case("h_ema_lr_dist", name)
    model = Toy().at_step(0)
    ema = EMA(model, **case.params)
    got = {"init_num_updates": ema.num_updates.clone()}
    last = max(int(key[5:].split("__")[0]) for key in case.want if key.startswith("after"))
    for step in range(1, last + 1):
        ema.update(model.at_step(step))
        state = {f"after{step}__{k}": v.clone() for k, v in published_state(ema).items()}
        got |= {key: value for key, value in state.items() if key in case.want}
    assert published_state(ema).keys() == set(case.spec["state_dict_names"])
    ema.copy_to(model)
    got |= {f"copied__{key}": value for key, value in model.named_parameters()}
    assert got.keys() == case.want.keys()
    for key, value in got.items():
        case.check(key, value)


def test_average_of_a_constant_is_a_geometric_series():
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9, use_num_updates=False)
    nn.init.ones_(model.weight)
    for _ in range(20):
        ema.update(model)
    torch.testing.assert_close(ema.module.weight, torch.full((2, 2), 1 - 0.9**20))


def test_warm_up_goes_on_after_loading_a_checkpoint():
    live = [nn.Linear(3, 3) for _ in range(7)]
    ema = EMA(live[0], decay=0.99)
    for model in live[1:4]:
        ema.update(model)
    restored = EMA(nn.Linear(3, 3), decay=0.5)
    restored.load_state_dict(ema.state_dict())
    for model in live[4:]:
        ema.update(model)
        restored.update(model)
    for name, value in ema.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_average_is_float32_and_frozen_for_a_half_precision_network():
    ema = EMA(nn.Linear(2, 2).bfloat16())
    ema.update(nn.Linear(2, 2).bfloat16())
    assert {p.dtype for p in ema.module.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in ema.parameters())


def test_average_is_a_network_of_its_own():
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.5, use_num_updates=False)
    before = ema.module(torch.ones(1, 2))
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(ema.module(torch.ones(1, 2)), before)


def test_buffers_follow_the_live_ones():
    model = nn.BatchNorm1d(3)
    ema = EMA(model)
    model(torch.randn(8, 3))
    ema.update(model)
    assert torch.equal(ema.module.running_mean, model.running_mean)
    assert ema.module.num_batches_tracked == 1


def fail_with_average(ema, model):
    with ema.applied_to(model):
        assert torch.equal(model.weight, ema.module.weight)
        raise RuntimeError("inside")


def test_applied_average_is_taken_back_even_after_an_error():
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.5, use_num_updates=False)
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.clone()
    assert not torch.equal(own, ema.module.weight)
    with pytest.raises(RuntimeError, match="inside"):
        fail_with_average(ema, model)
    assert torch.equal(model.weight, own)


def test_average_stays_in_eval_mode():
    ema = EMA(nn.Sequential(nn.Dropout(0.5)))
    ema.train()
    assert not ema.module.training
    assert not ema.module[0].training


def test_decay_outside_zero_to_one_is_an_error():
    with pytest.raises(ValueError, match=r"decay=1\.5"):
        EMA(nn.Linear(1, 1), decay=1.5)
