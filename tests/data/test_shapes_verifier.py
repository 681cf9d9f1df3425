import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ldm.data.drawing import draw, lay_out
from ldm.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    caption,
    parse,
    single_scenes,
)
from ldm.data.shapes import ShapesDataset
from ldm.data.shapes_verifier import read_scene, score, verdict


def render(scene, side=64, seed=0):
    placed = lay_out(scene, side, side, np.random.default_rng(seed))
    return draw(scene.background, placed, side, side)[0]


def drawn(side, objects, count):
    items = list(ShapesDataset(side, objects, length=count))
    return [item["image"] for item in items], [item["caption"] for item in items]


def jpeg(image, rng):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))


def noisy(image, rng):
    return (image + rng.normal(0, 10, image.shape)).clip(0, 255).round().astype(np.uint8)


def blurred(image, rng):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1)))


def colour_shifted(image, rng):
    return (image + rng.uniform(-15, 15, 3)).clip(0, 255).round().astype(np.uint8)


DAMAGES = [jpeg, noisy, blurred, colour_shifted]


@pytest.mark.parametrize("side", [32, 48, 64])
def test_every_single_scene_is_read_back_exactly(side):
    scenes = single_scenes()
    scenes = scenes if side == 64 else scenes[side % 5 :: 5]
    report = score(
        [render(scene, side, seed=i) for i, scene in enumerate(scenes)],
        [caption(scene) for scene in scenes],
    )
    assert report.accuracy == 1
    assert set(report.attributes.values()) == {1}
    assert report.count == len(scenes)


@pytest.mark.parametrize("objects", [2, 3])
@pytest.mark.parametrize("side", [32, 48, 64, 256, [40, 72]])
def test_several_things_are_read_back_exactly(side, objects):
    assert score(*drawn(side, objects, 50)).accuracy == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_of_one_thing_is_still_read(damage):
    rng = np.random.default_rng(0)
    images, captions = drawn(64, 1, 200)
    assert score([damage(image, rng) for image in images], captions).accuracy >= 0.99


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_of_several_things_is_mostly_read(damage):
    rng = np.random.default_rng(0)
    images, captions = drawn(64, [2, 3], 100)
    # chroma of a JPEG is stored at half the resolution: 5 pixels for the smallest of three things
    least = 0.97 if damage is jpeg else 0.99
    assert score([damage(image, rng) for image in images], captions).accuracy >= least


def one_change_each(scene):
    """The scene with another value of each attribute: (attribute, changed scene)."""
    thing = scene.things[0]
    for attribute, values in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)):
        for value in set(values) - {getattr(thing, attribute)}:
            changed = dataclasses.replace(thing, **{attribute: value})
            yield attribute, dataclasses.replace(scene, things=(changed,))
    for attribute, values in (("background", BACKGROUNDS), ("place", PLACES)):
        for value in set(values) - {getattr(scene, attribute)}:
            yield attribute, dataclasses.replace(scene, **{attribute: value})


@pytest.mark.parametrize("scene", single_scenes()[7::191], ids=caption)
def test_a_wrong_attribute_is_rejected_and_named(scene):
    for seed, (attribute, changed) in enumerate(one_change_each(scene)):
        right = verdict(render(changed, seed=seed), caption(scene))
        assert [name for name, is_right in right.items() if not is_right] == [attribute]


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_wrong_relation_is_rejected_and_named(relation):
    things = (Thing("circle", "red", "small"), Thing("circle", "blue"))
    for other in set(RELATIONS) - {relation}:
        image = render(Scene(things, "white", relations=(other,)))
        right = verdict(image, caption(Scene(things, "white", relations=(relation,))))
        assert [name for name, is_right in right.items() if not is_right] == ["relation"]


def test_a_missing_or_additional_thing_is_rejected():
    one, two = "a small red circle on white", "a small red circle left of a blue square on white"
    assert verdict(render(parse(one)), two)["count"] is False
    assert verdict(render(parse(two)), one)["count"] is False


@pytest.mark.parametrize(
    "text", ["a red circle on white", "a red circle above a blue cross on navy"]
)
def test_what_a_caption_leaves_unsaid_is_free(text):
    for seed in range(10):
        assert all(verdict(render(parse(text), seed=seed), text).values())


@pytest.mark.parametrize("objects", [1, 2])
def test_shuffled_captions_score_below_one_percent(objects):
    images, captions = drawn(32, objects, 200)
    assert score(images, captions[1:] + captions[:1]).accuracy < 0.01


@pytest.mark.parametrize("kind", ["noise", "smooth noise", "plain", "stripes", "other colour"])
def test_what_is_not_a_scene_is_not_read(kind):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stripes = np.where(np.arange(64)[:, None, None] % 16 < 8, 252, 12)
    ring = np.full((64, 64, 3), 252, dtype=np.uint8)
    ring[20:40, 20:40] = (110, 110, 20)
    pictures = {
        "noise": noise,
        "smooth noise": np.asarray(Image.fromarray(noise[:8, :8]).resize((64, 64))),
        "plain": np.full((64, 64, 3), 252, dtype=np.uint8),
        "stripes": np.broadcast_to(stripes, (64, 64, 3)).astype(np.uint8),
        "other colour": ring,
    }
    assert read_scene(pictures[kind]) is None
    assert not any(verdict(pictures[kind], "a red circle on white").values())


@pytest.mark.parametrize("kind", ["ring", "bar", "flat ellipse", "frame"])
def test_another_shape_is_no_shape(kind):
    image = Image.new("RGB", (64, 64), BACKGROUNDS["white"])
    pen, red = ImageDraw.Draw(image), COLOURS["red"]
    if kind == "ring":
        pen.ellipse((20, 20, 44, 44), outline=red, width=4)
    elif kind == "frame":
        pen.rectangle((20, 20, 44, 44), outline=red, width=4)
    elif kind == "bar":
        pen.rectangle((20, 28, 44, 36), fill=red)
    else:
        pen.ellipse((16, 25, 48, 39), fill=red)
    assert read_scene(np.asarray(image)) is None


def test_a_speck_of_dirt_is_overlooked():
    text = "a large green cross in the centre on black"
    image = render(parse(text))
    image[3:5, 3:5] = 255
    assert all(verdict(image, text).values())


def test_score_counts_each_attribute_only_where_the_caption_says_it():
    images, captions = drawn(48, [1, 2], 20)
    assert set(score(images[::2], captions[::2]).attributes) == {
        "count",
        "shape",
        "colour",
        "size",
        "place",
        "background",
    }
    assert "relation" in score(images[1::2], captions[1::2]).attributes


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((3, 64, 64), np.uint8)]
)
def test_a_picture_in_another_layout_is_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        read_scene(image)


def test_score_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="1 pictures for 2 captions"):
        score(np.zeros((1, 64, 64, 3), np.uint8), ["a red circle on white"] * 2)
