"""Images in and out, and small operations on tensors."""

import pytest
import torch
from torch import nn

from ldm.tensor import count_parameters, expand_to, mean_flat, sent_to, to_image_tensor, to_uint8


def test_per_example_numbers_spread_over_an_example():
    x = torch.ones(2, 3, 4, 5)
    assert torch.equal((expand_to(torch.tensor([1.0, 2.0]), x) * x)[1], 2 * x[1])


def test_the_mean_keeps_the_batch():
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert mean_flat(x).tolist() == [2.5, 8.5]


def test_only_trainable_parameters_are_counted_when_asked():
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).requires_grad_(False))
    assert count_parameters(layers) == 13
    assert count_parameters(layers, trainable=True) == 9


def test_bytes_survive_the_way_to_minus_one_and_one_and_back():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(to_uint8(to_image_tensor(images)), images)


def test_grey_images_without_a_channel_axis_get_one():
    assert to_image_tensor(torch.zeros(2, 4, 5)).shape == (2, 1, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floating_point_images_are_taken_as_they_are(dtype):
    images = torch.rand(2, 4, 5, 3).to(dtype)
    got = to_image_tensor(images)
    assert torch.equal(got, images.permute(0, 3, 1, 2))
    assert got.is_contiguous()


def test_double_precision_images_become_single():
    assert to_image_tensor(torch.zeros(1, 2, 2, 3, dtype=torch.float64)).dtype == torch.float32


def test_values_outside_the_range_are_clipped():
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(1, 2, 1, 1)).flatten().tolist() == [0, 255]


def test_a_tensor_on_its_device_is_sent_nowhere():
    value = torch.ones(2)
    assert sent_to(value, "cpu") is value
    assert sent_to(value, "meta").device.type == "meta"


@pytest.mark.gpu
def test_a_tensor_is_sent_to_a_gpu_without_waiting_for_it():
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = sent_to(torch.arange(4.0), "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sent.tolist() == [0, 1, 2, 3]
