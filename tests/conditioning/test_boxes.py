"""Boxes as vectors: one for each, or their sum; nothing where there is nothing."""

import pytest
import torch

from ldm.conditioning.boxes import BagOfBoxes, BoxEmbedder
from ldm.conditioning.conditioner import Conditioner, Part
from ldm.config import ConfigError
from ldm.diffusion.draws import KeyedDraws

ONE = torch.tensor([[3, 0.1, 0.2, 0.3, 0.4]])
TWO = torch.tensor([[3, 0.1, 0.2, 0.3, 0.4], [1, 0.5, 0.5, 0.25, 0.5]])
NONE = torch.empty(0, 5)


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return BoxEmbedder(8, num_classes=4, max_objects=3, key="layout", drop_rate=0.5)


@pytest.fixture
def bag():
    torch.manual_seed(0)
    return BagOfBoxes(8, num_classes=4, key="layout", drop_rate=0.5)


def test_each_object_is_a_token_and_the_rest_is_nothing(tokens):
    encoded = tokens.encode([ONE, TWO, NONE])
    assert encoded.shape == (3, 3, 8)
    torch.testing.assert_close(encoded[0, 0], encoded[1, 0])
    for row, count in enumerate((1, 2, 0)):
        assert (encoded[row, count:] == tokens.nothing).all()
        assert not (encoded[row, :count] == tokens.nothing).any()


def test_the_bag_is_the_sum_of_its_objects(tokens, bag):
    bag.things.load_state_dict(tokens.things.state_dict())
    alone = tokens.encode([TWO])[0, :2]
    encoded = bag.encode([TWO, TWO.flip(0), NONE])
    torch.testing.assert_close(encoded[0], alone.sum(dim=0))
    torch.testing.assert_close(encoded[1], encoded[0])
    assert (encoded[2] == 0).all()


def test_of_empty_layouts_alone_there_are_vectors_too(tokens, bag):
    assert tokens.encode([NONE, NONE]).shape == (2, 3, 8)
    assert bag.encode([NONE, NONE]).shape == (2, 8)


def test_near_boxes_have_nearer_vectors_than_far_ones(tokens):
    def moved(by):
        layout = ONE.clone()
        layout[:, 1] += by
        return tokens.encode([layout])[0, 0].detach()

    steps = [float((moved(by) - moved(0)).norm()) for by in (0.001, 0.01, 0.05)]
    assert 0 < steps[0] < steps[1] < steps[2]


@pytest.mark.parametrize("kind", ["tokens", "bag"])
def test_a_dropped_layout_is_an_empty_one(kind, request):
    embedder = request.getfixturevalue(kind)
    kept, dropped = embedder.drop([ONE, TWO], torch.tensor([False, True]))
    assert torch.equal(kept, ONE)
    assert dropped.shape == (0, 5)


def test_the_null_condition_is_that_of_dropped_training_examples(tokens, bag):
    conditioner = Conditioner((Part(tokens, "layout", "crossattn"), Part(bag, "layout", "vector")))
    batch = {"layout": [TWO]}
    null = conditioner.null(batch)
    found = {
        bool((cond.crossattn == null.crossattn).all()) and bool((cond.vector == null.vector).all())
        for step in range(30)
        for cond in [conditioner(batch, draws=KeyedDraws([0], seed=0, step=step))]
    }
    assert found == {True, False}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([[4, 0, 0, 0.5, 0.5]], "layout 0 of the batch: object 0: label 4; expected .* 0 to 3"),
        ([[0, 0.8, 0, 0.5, 0.5]], r"box \[0.8, 0, 0.5, 0.5\].*inside of it"),
        ([[0, 0, 0, 0, 0.5]], "a width and a height of more than 0"),
    ],
)
def test_an_object_that_is_none_is_refused(tokens, layout, message):
    with pytest.raises(ValueError, match=message):
        tokens.encode([torch.tensor(layout)])


def test_of_more_objects_than_tokens_the_largest_are_told(tokens, caplog_ldm):
    small = torch.tensor([[0, 0, 0, 0.01, 0.01]])
    encoded = tokens.encode([torch.cat([small, TWO, ONE])])
    torch.testing.assert_close(encoded, tokens.encode([torch.cat([TWO, ONE])]))
    tokens.encode([TWO.repeat(2, 1)])
    assert caplog_ldm.text.count("of which the largest 3 are told") == 1


def test_fewer_classes_than_the_data_has_are_refused(tokens, bag):
    for embedder in (tokens, bag):
        embedder.require_classes(4)
        with pytest.raises(ConfigError, match=r"here.params.num_classes: 4, .* has 5 classes"):
            embedder.require_classes(5, "here")
