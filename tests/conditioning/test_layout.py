"""Layouts to tokens to vectors."""

import pytest
import torch

from ldm.conditioning.layout import LayoutEmbedder, LayoutTokens
from ldm.conditioning.text import BERTEmbedder
from ldm.config import ConfigError, check, instantiate_from_config, load
from tests.reference import Case, fill
from tests.reference_state_dicts import meta_state
from tests.shipped_configs import ROOT

PUBLISHED = LayoutTokens.published(8192, 92)
SEPARATE = LayoutTokens.separate(num_classes=7, vocab_size=33, max_objects=2)

THINGS = torch.tensor([[5, 0.1, 0.2, 0.3, 0.4], [600, 0, 0, 1, 1]], dtype=torch.float64)


def embedder(**options):
    arguments = {"num_classes": 7, "vocab_size": 33, "max_objects": 2} | options
    return fill(LayoutEmbedder(8, 1, **arguments)).eval()


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


# tokens


def test_published_tokens_of_two_objects_by_hand():
    (tokens,) = PUBLISHED([THINGS]).tolist()
    # 0.1 * 89 = 8.9, 0.2 * 89 = 17.8; 0.4 * 89 = 35.6, 0.6 * 89 = 53.4
    assert tokens[:3] == [5, 9 + 90 * 18, 36 + 90 * 53]
    assert tokens[3:6] == [600, 0, 89 + 90 * 89]
    assert tokens[6:90] == [8191] * 84
    assert tokens[90:] == [0, 8099], "the crop is the whole picture"


def test_tokens_that_are_apart_by_hand():
    layout = boxes([6, 0.25, 0.5, 0.5, 0.25])
    # 25 numbers are left for 5 x 5 cells, after 7 classes and before none; 4 steps to a side
    assert SEPARATE([layout]).tolist() == [[6, 7 + 1 + 5 * 2, 7 + 3 + 5 * 3, 32, 32, 32]]


def test_no_class_is_a_cell_where_they_are_apart():
    corners = boxes([6, 0, 0, 1, 1])
    cells = SEPARATE([corners])[0, 1:3].tolist()
    assert cells == [7, 31]
    assert len({*range(7), *range(cells[0], cells[1] + 1), SEPARATE.none}) == 33


def test_layouts_of_a_batch_are_filled_to_one_length():
    one, two = boxes([1, 0, 0, 1, 1]), boxes([2, 0, 0, 0.5, 0.5], [3, 0.5, 0.5, 0.5, 0.5])
    together = SEPARATE([one, two, one[:0]])
    assert together.shape == (3, 6)
    for row, layout in zip(together, [one, two, one[:0]], strict=True):
        assert torch.equal(row, SEPARATE([layout])[0])
    assert together[2].tolist() == [32] * 6


def test_the_largest_objects_are_kept_in_their_order():
    small, large, middle = [0, 0, 0, 0.1, 0.1], [1, 0, 0, 1, 1], [2, 0, 0, 0.5, 0.5]
    kept = SEPARATE([boxes(middle, small, large)])
    assert torch.equal(kept, SEPARATE([boxes(middle, large)]))


def test_a_box_that_leaves_the_picture_by_less_than_is_tolerated_ends_at_its_edge():
    assert torch.equal(
        PUBLISHED([boxes([1, -0.0009, 0.5, 1.0018, 0.5])]), PUBLISHED([boxes([1, 0, 0.5, 1, 0.5])])
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([7, 0, 0, 1, 1], "object 1: label 7; expected a whole number 0 to 6"),
        ([-1, 0, 0, 1, 1], "object 1: label -1; expected"),
        ([0.5, 0, 0, 1, 1], "object 1: label 0.5; expected"),
        ([1, 0, 0, 0, 1], r"object 1: box \[0, 0, 0, 1\]; expected a width"),
        ([1, 0, 0, 1, -0.5], r"object 1: box \[0, 0, 1, -0.5\]; expected a width"),
        ([1, 0.5, 0, 0.6, 1], r"object 1: box \[0.5, 0, 0.6, 1\]; expected .* inside of it"),
        ([1, 0, -0.1, 1, 1], r"object 1: box \[0, -0.1, 1, 1\]; expected .* inside of it"),
        ([1, float("nan"), 0, 1, 1], r"object 1: box \[nan, 0, 1, 1\]; expected finite numbers"),
    ],
)
def test_an_object_that_is_none_is_named(row, expected):
    with pytest.raises(ValueError, match=f"layout 2 of the batch: {expected}"):
        SEPARATE([boxes([1, 0, 0, 1, 1])[:0], boxes([1, 0, 0, 1, 1]), boxes([1, 0, 0, 1, 1], row)])


@pytest.mark.parametrize(
    ("length", "objects", "with_crop"), [(92, 30, True), (90, 30, False), (5, 1, True)]
)
def test_a_published_length_says_how_many_objects_there_are(length, objects, with_crop):
    tokens = LayoutTokens.published(8192, length)
    assert (tokens.max_objects, tokens.with_crop, tokens.length) == (objects, with_crop, length)


@pytest.mark.parametrize("length", [91, 77 - 1, 2, 1])
def test_a_length_that_no_layout_has_is_refused(length):
    with pytest.raises(ValueError, match=f"max_seq_len: {length}; expected"):
        LayoutTokens.published(8192, length)


# the embedder


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("max_objects", [1, 30])
def test_layouts_become_vectors_on_the_meta_device(published, max_objects):
    with torch.device("meta"):
        tau = LayoutEmbedder(8, 1, 7, 100, max_objects, published)
    layouts = [boxes([1, 0, 0, 1, 1]), torch.empty(0, 5)]
    out = tau.encode(layouts)
    assert out.shape == (2, 3 * max_objects + 2 * published, 8)
    assert out.is_meta


def test_parameters_are_those_of_the_published_layout_model():
    with torch.device("meta"):
        tau = LayoutEmbedder(512, 16, num_classes=8191, published=True)
    prefix = "cond_stage_model."
    weights = {
        key.removeprefix(prefix): value.shape
        for key, value in meta_state("ldm_layout2img-openimages256").items()
        if key.startswith(prefix)
    }
    assert {key: value.shape for key, value in tau.state_dict().items()} == weights


@torch.no_grad()
def test_tokens_of_the_published_form_match_the_reference():
    case = Case("f_encoders", "bert_layout_like")
    params = {"n_embed": 32, "n_layer": 3, "vocab_size": 300, "num_classes": 200, "published": True}
    tau = fill(LayoutEmbedder(**params)).eval()
    case.check("embeddings", tau.encode(case.input("tokens")))


@torch.no_grad()
def test_a_layout_is_its_published_tokens_to_a_published_encoder():
    tau = fill(LayoutEmbedder(8, 1, 50, 100, 3, published=True)).eval()
    bert = BERTEmbedder(8, 1, 100, 11, use_tokenizer=False).eval()
    bert.load_state_dict(tau.state_dict())
    layouts = [boxes([49, 0.1, 0.2, 0.3, 0.4]), boxes([0, 0, 0, 1, 1], [3, 0.5, 0.5, 0.2, 0.1])]
    assert torch.equal(tau.encode(layouts), bert.encode(LayoutTokens.published(100, 11)(layouts)))


@torch.no_grad()
def test_a_dropped_layout_is_one_of_nothing():
    tau, dropped = embedder(drop_rate=0.1), torch.tensor([True, False])
    layouts = [boxes([1, 0, 0, 1, 1]), boxes([2, 0, 0, 1, 1])]
    kept = tau.drop(layouts, dropped)
    assert [len(each) for each in kept] == [0, 1]
    assert len(layouts[0]) == 1
    tokens = tau.drop(tau.tokens(layouts), dropped)
    assert tokens[0].tolist() == [32] * 6
    assert torch.equal(tau.encode(tokens), tau.encode(kept))


@torch.no_grad()
def test_what_does_not_fit_is_told_once(caplog_ldm):
    tau, row = embedder(), [1, 0, 0, 1, 1]
    for _ in range(2):
        tau.encode([boxes(row), boxes(row, row, row)])
    assert caplog_ldm.text.count("a layout has 3 objects, of which the largest 2 are told") == 1


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"vocab_size": 11}, "vocab_size: 11; expected at least 12"),
        ({"vocab_size": 7, "published": True}, "num_classes: 7; expected less than vocab_size, 7"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(params, expected):
    config = {
        "target": "ldm.conditioning.layout.LayoutEmbedder",
        "params": {"n_embed": 8, "n_layer": 1, "num_classes": 7, **params},
    }
    with pytest.raises(ConfigError, match=expected):
        instantiate_from_config(config)


@pytest.mark.parametrize("name", ["max_objects", "num_classes", "vocab_size", "n_layer"])
def test_numbers_out_of_range_are_found_before_anything_is_built(name):
    path = f"model.params.cond_stage_config.params.{name}"
    with pytest.raises(ConfigError, match=f"{path}: .*0"):
        check(load([ROOT / "configs/tiny/ldm-layout.yaml"], [f"{path}=0"]))


def test_the_smallest_vocabulary_has_four_cells():
    assert embedder(vocab_size=12).tokens.sections == 2
