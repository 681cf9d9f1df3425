"""Boxes as maps: by hand, and nothing where there is nothing."""

import pytest
import torch

from ldm.conditioning.boxes import BoxMap
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.config import ConfigError
from ldm.diffusion.draws import KeyedDraws

LEFT_HALF = torch.tensor([[1, 0, 0, 0.5, 1]])
MIDDLE = torch.tensor([[2, 0.375, 0.25, 0.25, 0.5]])
NONE = torch.empty(0, 5)


@pytest.fixture
def boxes():
    """A map of 2 x 4 cells, in which class k has the vector (k, 10 k)."""
    embedder = BoxMap(2, num_classes=3, size=[2, 4], key="layout", drop_rate=0.5)
    with torch.no_grad():
        embedder.classes.weight.copy_(torch.tensor([[0.0, 0], [1, 10], [2, 20]]))
    return embedder


def test_a_box_paints_its_class_over_its_cells(boxes):
    (encoded,) = boxes.encode([LEFT_HALF]).detach()
    expected = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    torch.testing.assert_close(encoded, torch.stack([expected, 10 * expected]))


def test_a_cell_has_as_much_of_a_box_as_it_is_covered(boxes):
    (encoded,) = boxes.encode([MIDDLE]).detach()
    # of the two cells in the middle half the width, of both rows half the height
    expected = 2 * 0.25 * torch.tensor([[0.0, 1, 1, 0], [0, 1, 1, 0]])
    torch.testing.assert_close(encoded[0], expected)


def test_boxes_that_overlap_are_added_in_any_order(boxes):
    both = torch.cat([LEFT_HALF, MIDDLE])
    encoded = boxes.encode([both, both.flip(0), LEFT_HALF, MIDDLE, NONE])
    torch.testing.assert_close(encoded[0], encoded[2] + encoded[3])
    torch.testing.assert_close(encoded[1], encoded[0])
    assert (encoded[4] == 0).all()


def test_of_empty_layouts_alone_there_are_maps_too(boxes):
    assert boxes.encode([NONE, NONE]).shape == (2, 2, 2, 4)


def test_the_null_condition_is_that_of_dropped_training_examples(boxes):
    conditioner = Conditioner((Part(boxes, "layout", "concat"),))
    batch = {"layout": [LEFT_HALF]}
    null = conditioner.null(batch).concat
    assert (null == 0).all()
    found = {
        torch.equal(conditioner(batch, draws=KeyedDraws([0], seed=0, step=step)).concat, null)
        for step in range(30)
    }
    assert found == {True, False}


def test_its_vectors_are_trained(boxes):
    boxes.encode([LEFT_HALF, MIDDLE]).sum().backward()
    # cells covered by each class, of 8
    expected = torch.tensor([0.0, 4, 1])[:, None].expand(3, 2)
    torch.testing.assert_close(boxes.classes.weight.grad, expected)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([[3, 0, 0, 0.5, 0.5]], "layout 1 of the batch: object 0: label 3; expected .* 0 to 2"),
        ([[0, 0.8, 0, 0.5, 0.5]], r"box \[0.8, 0, 0.5, 0.5\].*inside of it"),
        ([[0, 0, 0, 0, 0.5]], "a width and a height of more than 0"),
    ],
)
def test_an_object_that_is_none_is_refused(boxes, layout, message):
    with pytest.raises(ValueError, match=message):
        boxes.encode([LEFT_HALF, torch.tensor(layout)])


def test_fewer_classes_than_the_data_has_are_refused(boxes):
    boxes.require_classes(3)
    with pytest.raises(ConfigError, match=r"here.params.num_classes: 3, .* has 5 classes"):
        boxes.require_classes(5, "here")
