import itertools

import pytest
from torch.utils.data import BatchSampler

from ldm.data.order import EpochSampler, permutation


def batches(sampler, epoch=0):
    """What each whole or partial batch of an epoch takes, the epoch taken off."""
    sampler.set_epoch(epoch)
    span = sampler.size * sampler.rounds * epoch * sampler.shuffle
    batches = BatchSampler(sampler, sampler.batch_size, drop_last=False)
    return [[key - span for key in batch] for batch in batches]


def test_permutation_is_a_function_of_seed_and_epoch():
    assert sorted(permutation(20, 1, 2)) == list(range(20))
    assert permutation(20, 1, 2) == permutation(20, 1, 2)
    assert len({tuple(permutation(20, seed, epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


def test_keys_hold_epoch_and_index_as_python_int():
    sampler = EpochSampler(10, 5, seed=1)
    sampler.set_epoch(3)
    assert [divmod(key, 10) for key in sampler] == [(3, i) for i in permutation(10, 1, 3)]
    assert {type(key) for key in sampler} == {int}


@pytest.mark.parametrize(("size", "batch"), [(24, 8), (29, 8), (5, 8), (8, 8)])
def test_one_process_two_processes_and_accumulation_see_the_same_samples_in_each_step(size, batch):
    for epoch in range(3):
        whole = batches(EpochSampler(size, batch), epoch)
        ranks = [
            batches(EpochSampler(size, batch // 2, rank=rank, world_size=2), epoch)
            for rank in range(2)
        ]
        halves = batches(EpochSampler(size, batch // 2, accumulate=2), epoch)
        parallel = [sorted(one + two) for one, two in zip(*ranks, strict=True)]
        in_turn = [sorted(one + two) for one, two in zip(halves[::2], halves[1::2], strict=True)]
        assert parallel == in_turn == [sorted(step) for step in whole]


def test_training_leaves_out_what_fills_no_batch_and_another_part_each_epoch():
    left_out = set()
    for epoch in range(20):
        seen = [index for batch in batches(EpochSampler(10, 4), epoch) for index in batch]
        assert len(seen) == len(set(seen)) == 8
        left_out |= set(range(10)) - set(seen)
    assert left_out == set(range(10))


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_set_smaller_than_a_batch_goes_round_with_other_numbers(epoch):
    (batch,) = batches(EpochSampler(3, 8), epoch)
    assert sorted(batch[:3]) == [0, 1, 2]
    assert batch[3:6] == [3 + index for index in batch[:3]]
    assert batch[6:] == [6 + index for index in batch[:2]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7, 8, 12])
def test_validation_takes_every_sample_exactly_once_and_in_order(size, world_size):
    parts = [
        list(EpochSampler(size, 2, rank=r, world_size=world_size, shuffle=False, drop_last=False))
        for r in range(world_size)
    ]
    assert sorted(itertools.chain(*parts)) == list(range(size))
    assert all(part == sorted(part) for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_unshuffled_epochs_are_all_the_first():
    sampler = EpochSampler(5, 2, shuffle=False, drop_last=False)
    sampler.set_epoch(4)
    assert list(sampler) == list(range(5))


@pytest.mark.parametrize("done", range(4))
def test_a_start_leaves_out_the_batches_before_it(done):
    whole = batches(EpochSampler(29, 4, rank=1, world_size=2), 2)
    resumed = EpochSampler(29, 4, rank=1, world_size=2)
    resumed.set_epoch(2)
    resumed.set_start(done)
    assert batches(resumed, 2) == whole[done:]
    assert len(resumed) == 4 * len(whole)


def test_a_start_holds_for_its_epoch_only():
    sampler = EpochSampler(12, 4)
    sampler.set_epoch(1)
    sampler.set_start(2)
    assert len(batches(sampler, 1)) == 1
    assert len(batches(sampler, 2)) == 3
    assert len(batches(sampler, 1)) == 3
