"""What every sampler costs with every denoiser around a denoiser."""

import pytest
import torch
from torch import nn

from ldm.diffusion.denoiser import NetDenoiser
from ldm.diffusion.draws import KeyedDraws
from ldm.diffusion.moment import Memory, moment_of_run
from ldm.diffusion.schedule import PublishedSchedule
from ldm.guidance.classifier_free import ClassifierFree
from ldm.guidance.gradient import ClassifierGuided
from ldm.samplers.ddim import DDIM
from ldm.types import Conditioning
from tests.guidance.wrappers import SIZE, WRAPPERS, Net, image_guided, net
from tests.samplers.solvers import SOLVERS
from tests.samplers.solvers import name as name_of

B = 3
COND = Conditioning(vector=torch.tensor([0.1, 0.5, -0.3], dtype=torch.float64))
NULL = Conditioning(vector=torch.tensor([-1.0], dtype=torch.float64))


@pytest.mark.slow  # all together: the meta device traces every operation in Python
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("sampler", SOLVERS, ids=name_of)
def test_a_run_never_reads_from_the_device(sampler, name):
    # tensors of the meta device have no values: to read one raises
    schedule = PublishedSchedule().double().to("meta")
    denoiser = WRAPPERS[name](net(schedule, device="meta"), schedule, "meta")
    end = sampler.sample(
        denoiser,
        torch.empty(B, *SIZE, dtype=torch.float64, device="meta"),
        schedule=schedule,
        steps=4,
        cond=Conditioning(vector=torch.empty(B, dtype=torch.float64, device="meta")),
        draws=KeyedDraws(range(B), seed=0),
    )
    assert end.is_meta


class Recorded(nn.Module):
    """A network that remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.rows, self.conditions = [], []

    def forward(self, x, t, cond):
        self.rows.append((len(x), len(t)))
        self.conditions.append(cond)
        return self.net(x, t, cond)


@pytest.mark.parametrize("sampler", SOLVERS, ids=name_of)
def test_guidance_is_one_call_of_twice_the_batch_and_joins_its_condition_once(sampler):
    schedule, recorded = PublishedSchedule().double(), Recorded()
    denoiser = ClassifierFree(NetDenoiser(recorded, schedule, "v"), 3.0, NULL)
    x = torch.randn(B, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for runs in (1, 2):
        recorded.rows.clear()
        draws = KeyedDraws(range(B), seed=0)
        sampler.sample(denoiser, x, schedule=schedule, steps=5, cond=COND, draws=draws)
        assert recorded.rows == [(2 * B, 2 * B)] * sampler.evaluations(5)
        assert len({id(cond) for cond in recorded.conditions}) == runs


@pytest.mark.parametrize("through", ["denoiser", "x0"])
def test_around_guidance_by_gradients_the_condition_is_joined_once_as_well(through):
    schedule, recorded = PublishedSchedule().double(), Recorded()
    free = ClassifierFree(NetDenoiser(recorded, schedule, "v"), 3.0, NULL)
    denoiser = image_guided(free, schedule, "cpu", through)
    x = torch.randn(B, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    DDIM().sample(denoiser, x, schedule=schedule, steps=5, cond=COND)
    assert len(recorded.conditions) == 5
    assert len({id(cond) for cond in recorded.conditions}) == 1


def test_a_classifier_is_given_the_condition_itself():
    schedule, given = PublishedSchedule().double(), []

    def log_prob(x_t, t, cond):
        given.append(cond)
        return -x_t.square().sum(dim=(1, 2, 3))

    denoiser = ClassifierGuided(net(schedule), schedule, log_prob)
    x = torch.zeros(B, *SIZE, dtype=torch.float64)
    DDIM().sample(denoiser, x, schedule=schedule, steps=2, cond=COND)
    assert [cond is COND for cond in given] == [True, True]


def test_another_condition_in_a_run_is_joined_anew():
    schedule, recorded = PublishedSchedule().double(), Recorded()
    denoiser = ClassifierFree(NetDenoiser(recorded, schedule, "v"), 3.0, NULL)
    x, t = torch.zeros(B, *SIZE, dtype=torch.float64), torch.full((B,), 500)
    with moment_of_run(500.0, Memory()):
        for cond in (COND, Conditioning(vector=COND.vector + 1), COND):
            denoiser(x, t, cond)
    for cond, added in zip(recorded.conditions, (0, 1, 0), strict=True):
        assert torch.equal(cond.vector, torch.cat([NULL.vector.expand(B), COND.vector + added]))
