"""Times learned by two ranks together."""

import pytest
import torch
import torch.distributed as dist

from ldm.diffusion.times import LossAware
from tests.models.processes import in_two_processes


def learn_times(rank, world, path):
    dist.init_process_group("gloo")
    times = LossAware(4, history=2)
    times.update(torch.tensor([rank, 2]), torch.tensor([1.0 + rank, 5.0 + rank]))
    torch.save(times.state_dict(), f"{path}{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_times_are_learned_from_the_losses_of_all_ranks(tmp_path):
    in_two_processes(learn_times, str(tmp_path / "rank"))
    first, second = (torch.load(path, weights_only=True) for path in sorted(tmp_path.iterdir()))
    assert torch.equal(first["counts"], second["counts"])
    assert first["counts"].tolist() == [1, 1, 2, 0]
    for times in (first, second):
        assert times["history"][:4].tolist() == [[1, 0], [2, 0], [5, 6], [0, 0]]
