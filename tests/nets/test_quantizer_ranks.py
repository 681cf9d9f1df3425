"""Two processes end with the same codebook."""

import pytest
import torch
import torch.distributed as dist

from ldm.nets.codebook_window import CodebookCounts, CodebookWindow
from ldm.nets.quantizer_cures import KMeansInit, Restart
from ldm.nets.quantizer_ema import EMAVectorQuantizer
from ldm.ranks import alone, gathered, own_part
from tests.models.processes import in_two_processes
from tests.nets.quantizers import QUANTIZERS, latents, made, train

pytestmark = pytest.mark.slow


def averaged(parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)


class AveragedSGD(torch.optim.SGD):
    """SGD on gradients summed over ranks, as a training would average them."""

    def step(self):
        averaged(p for group in self.param_groups for p in group["params"])
        super().step()


def learn(rank, world, path):
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    states = {}
    for name in QUANTIZERS:
        quantizer = made(name)
        if getattr(quantizer, "restart", None):
            quantizer.restart = Restart(threshold=0.5, memory=5)
        parameters = list(quantizer.parameters())
        optimizer = AveragedSGD(parameters, lr=0.1) if parameters else None
        torch.manual_seed(100 + rank)  # as each rank has dropout of its own, not drawn from here
        for step in range(4):
            train(quantizer, [latents(10 * step + rank, batch=1 + rank)], optimizer, step)
        states[name] = quantizer.state_dict()
    torch.save({"states": states, "use": measured(rank), "kept": kept(rank)}, f"{path}{rank}")
    together(rank, path)
    dist.destroy_process_group()


def measured(rank):
    found = []
    for codes in ([[0, 1, 1], [3, 2, 2]], [[0, 1], None]):
        for measure in (CodebookCounts(4), CodebookWindow(4, length=4)):
            if codes[rank]:
                measure.add(torch.tensor(codes[rank]))
            found.append([value.item() for value in measure.use()])
    return found


def kept(rank):
    """What a checkpoint has of both ranks' windows, what a rank takes up, and rank 0's alone."""
    window, other = CodebookWindow(4, length=6), CodebookWindow(4, length=6)
    window.add(torch.tensor([[0, 1, 1, 0], [3, 2]][rank]))
    parts = gathered(window.codes())
    other.restore(own_part(parts))
    saved = None
    if rank == 0:
        with alone():  # or it would wait for the other, which does not come
            saved = gathered(window.codes())
    return {"parts": parts, "taken": other.codes(), "alone": saved, "none": own_part(parts[:1])}


def together(rank, path):
    """Averages of two ranks, each with half of a batch."""
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(6, 3)
    train(quantizer, [latents(batch=4)[2 * rank : 2 * rank + 2]])
    if rank == 0:
        torch.save(quantizer.state_dict(), f"{path}-together")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    in_two_processes(learn, str(directory / "rank"))
    return directory


@pytest.fixture(scope="module")
def ranks(directory):
    return [torch.load(directory / f"rank{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codebooks_are_the_same_on_both_ranks(ranks, name):
    start = made(name).state_dict()
    first, second = (rank["states"][name] for rank in ranks)
    assert first.keys() == second.keys() == start.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    if name != "fsq":
        assert any(not torch.equal(value, start[key]) for key, value in first.items())


def test_averages_are_those_of_one_process_with_the_whole_batch(directory):
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(6, 3)
    train(quantizer, [latents(batch=4)])
    two = torch.load(directory / "rank-together", weights_only=True)
    for key, value in quantizer.state_dict().items():
        torch.testing.assert_close(two[key], value)


def test_use_is_that_of_the_codes_of_both_ranks(ranks):
    # all: 0, 1, 1, 3, 2, 2; the window's last two of each: 1, 1, 2, 2
    entropy = 2 * (1 / 6) * torch.tensor(6.0).log() + 2 * (1 / 3) * torch.tensor(3.0).log()
    for rank in ranks:
        counts, window, *_ = rank["use"]
        assert counts == pytest.approx([1.0, entropy.exp().item(), 6])
        assert window == pytest.approx([0.5, 2.0, 4])


def test_a_rank_that_saw_no_codes_is_waited_for(ranks):
    for rank in ranks:
        assert rank["use"][2:] == [pytest.approx([0.5, 2.0, 2])] * 2


def test_each_rank_goes_on_from_its_own_part_of_a_checkpoint(ranks):
    want = [[1, 1, 0], [-1, 3, 2]]
    for rank, kept in enumerate(each["kept"] for each in ranks):
        assert [part.tolist() for part in kept["parts"]] == want
        assert kept["taken"].tolist() == want[rank]
    assert [part.tolist() for part in ranks[0]["kept"]["alone"]] == want[:1]


def test_the_part_of_another_number_of_ranks_is_shared(ranks):
    assert [each["kept"]["none"].tolist() for each in ranks] == [[1, 0], [1]]
    parts = [torch.tensor([0, 1]), torch.tensor([2])]
    assert own_part(parts).tolist() == [0, 1, 2]


def find_clusters(rank, world, path):
    """Each rank sees half of the clusters."""
    dist.init_process_group("gloo")
    torch.manual_seed(rank)
    quantizer = EMAVectorQuantizer(6, 3, kmeans_init=KMeansInit(latents_per_code=10))
    centres = torch.arange(18.0).view(6, 3)[rank::2]
    z = centres.repeat(10, 1)[:, :, None, None].requires_grad_()
    train(quantizer, [z])
    torch.save(quantizer.codes(), f"{path}{rank}")
    dist.destroy_process_group()


def test_k_means_finds_the_clusters_of_all_ranks(tmp_path):
    in_two_processes(find_clusters, str(tmp_path / "rank"))
    for path in tmp_path.iterdir():
        codes = torch.load(path, weights_only=True)
        torch.testing.assert_close(codes[codes[:, 0].argsort()], torch.arange(18.0).view(6, 3))
