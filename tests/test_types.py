"""The condition as a value: what it holds, moved, cut and joined."""

import pytest
import torch

from ldm.types import Conditioning

WHOLE = Conditioning(
    crossattn=torch.arange(24.0).reshape(4, 2, 3),
    concat=torch.arange(16.0).reshape(4, 1, 2, 2),
    vector=torch.arange(4),
)


def same(a, b):
    ours, theirs = a.slots(), b.slots()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_slots_are_those_that_are_filled():
    assert list(WHOLE.slots()) == ["crossattn", "concat", "vector"]
    assert list(Conditioning(concat=WHOLE.concat).slots()) == ["concat"]
    assert Conditioning().slots() == {}


def test_the_batch_size_is_that_of_any_slot():
    assert WHOLE.batch_size == 4
    assert Conditioning(vector=WHOLE.vector[:3]).batch_size == 3
    assert Conditioning().batch_size == 0


def test_cutting_and_joining_are_inverse():
    assert same(Conditioning.cat([WHOLE[:1], WHOLE[1:]]), WHOLE)
    assert same(WHOLE[torch.tensor([1, 3])], Conditioning.cat([WHOLE[1:2], WHOLE[3:]]))


def test_conditions_that_fill_different_slots_are_not_joined():
    with pytest.raises(ValueError, match="cannot join conditions that fill different slots"):
        Conditioning.cat([WHOLE, Conditioning(vector=WHOLE.vector)])


def test_a_cast_leaves_labels_integers():
    half = WHOLE.to(torch.bfloat16)
    assert half.crossattn.dtype == half.concat.dtype == torch.bfloat16
    assert half.vector.dtype == torch.int64


def test_a_condition_moves_to_a_device_with_its_labels():
    moved = WHOLE.to("meta", torch.float16)
    assert {value.device.type for value in moved.slots().values()} == {"meta"}
    assert (moved.concat.dtype, moved.vector.dtype) == (torch.float16, torch.int64)
