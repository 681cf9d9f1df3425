import itertools
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from ldm.data.scenes import (
    BACKGROUNDS,
    CLASS_NAMES,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPECIAL_TOKENS,
    Scene,
    Thing,
    caption,
    is_held_out,
    parse,
    single_scenes,
    vocabulary,
)
from ldm.data.shapes import ShapesDataset

VOCABULARY_FILE = Path("configs/quickstart/vocab.txt")


def captions_of_several(count, *, length=150):
    data = ShapesDataset(16, count, length=length)
    return [data[i]["caption"] for i in range(length)]


def test_caption_of_a_single_thing_says_everything_about_it():
    scene = Scene((Thing("circle", "red", "small"),), "white", "at the top left")
    assert caption(scene) == "a small red circle at the top left on white"


def test_caption_of_two_things_tells_how_they_lie():
    scene = Scene(
        (Thing("circle", "red", "small"), Thing("square", "blue")), "white", None, ("left of",)
    )
    assert caption(scene) == "a small red circle left of a blue square on white"


def test_article_of_orange_is_an():
    assert caption(Scene((Thing("cross", "orange"),), "navy")) == "an orange cross on navy"


def test_parse_inverts_caption_for_every_single_scene():
    scenes = single_scenes()
    assert len(scenes) == 4 * 6 * 2 * 9 * 4
    assert [parse(caption(scene)) for scene in scenes] == scenes


@pytest.mark.parametrize("size", [None, *SIZES])
@pytest.mark.parametrize("relation", RELATIONS)
def test_parse_inverts_caption_for_three_things(size, relation):
    things = (Thing("circle", "red", size), Thing("cross", "orange"), Thing("square", "blue", size))
    scene = Scene(things, "black", relations=(relation, "below"))
    assert parse(caption(scene)) == scene


@pytest.mark.parametrize("count", [2, 3])
def test_caption_inverts_parse_for_drawn_scenes(count):
    for text in captions_of_several(count):
        assert caption(parse(text)) == text
        assert len(parse(text).things) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle on red",
        "a tiny red circle on white",
        "an red circle on white",
        "a orange circle on white",
        "a red circle at the top left of a blue square on white",
        "a red circle left of a blue square at the top on white",
        "a red circle and above a blue square on white",
        "a red circle on white.",
    ],
)
def test_parse_refuses_what_caption_would_not_write(text):
    with pytest.raises(ValueError, match="not a caption"):
        parse(text)


def test_parse_refuses_two_things_of_one_colour():
    with pytest.raises(ValueError, match="one colour"):
        parse("a red circle above a red square on white")


def test_class_label_counts_every_combination_of_shape_and_colour_once():
    labels = [Thing(shape, colour).class_label for shape in SHAPES for colour in COLOURS]
    assert labels == list(range(len(CLASS_NAMES)))
    assert CLASS_NAMES[Thing("square", "blue").class_label] == "blue square"


def test_palette_is_well_separated():
    colours = [*COLOURS.values(), *BACKGROUNDS.values()]
    distances = [np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(colours, 2)]
    assert min(distances) > 89


def test_held_out_captions_are_about_a_sixth_and_cover_every_attribute():
    scenes = [scene for scene in single_scenes() if is_held_out(caption(scene))]
    assert 256 <= len(scenes) <= 320
    for values in (
        {scene.things[0].shape for scene in scenes},
        {scene.background for scene in scenes},
    ):
        assert len(values) == 4
    assert len({scene.things[0].colour for scene in scenes}) == len(COLOURS)
    assert len({scene.place for scene in scenes}) == 9


def test_held_out_captions_stay_the_same_on_every_machine():
    assert is_held_out("a small red circle at the top on white") is False
    assert is_held_out("a small red circle at the top on grey") is True


def test_vocabulary_file_lists_the_special_tokens_and_every_word():
    assert VOCABULARY_FILE.read_text().split("\n") == [*SPECIAL_TOKENS, *vocabulary(), ""]


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_every_caption_is_tokenized_without_an_unknown_word(objects):
    tokenizer = BertTokenizer(str(VOCABULARY_FILE))
    captions = (
        [caption(scene) for scene in single_scenes()]
        if objects == 1
        else captions_of_several(objects)
    )
    for ids, text in zip(tokenizer(captions)["input_ids"], captions, strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
