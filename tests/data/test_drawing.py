import numpy as np
import pytest

from ldm.data.drawing import CENTROID, Placed, coverage, draw, lay_out
from ldm.data.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Thing, parse

AREA = {
    "circle": np.pi,
    "square": 4 * 0.88**2,
    "triangle": 3 * 3**0.5 / 4 * 1.25**2,
    "cross": 2 * 2 * 0.72 - 0.72**2,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_adds_up_to_the_area_of_the_shape(shape):
    covered = coverage(shape, 64, 64, 31.3, 32.8, 20.0)
    # edges are found to a quarter of a pixel, here 1 / 80 of the radius
    np.testing.assert_allclose(covered.sum() / 20.0**2, AREA[shape], rtol=1e-2)
    assert covered.min() == 0
    assert covered.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_centre_of_mass_is_where_centroid_says(shape):
    covered = coverage(shape, 64, 64, 31.3, 32.8, 20.0)
    middle = (np.arange(64) + 0.5) @ covered.sum(axis=1) / covered.sum()
    np.testing.assert_allclose(middle, 32.8 + 20.0 * CENTROID[shape], atol=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_box_encloses_the_shape_tightly(shape):
    placed = Placed(Thing(shape, "red"), 31.3, 32.8, 20.0)
    left, top, width, height = placed.box
    covered = coverage(shape, 64, 64, placed.x, placed.y, placed.radius)
    rows, columns = covered.sum(axis=1).nonzero()[0], covered.sum(axis=0).nonzero()[0]
    # pixels are whole, the box is not
    np.testing.assert_allclose([columns[0], columns[-1] + 1], [left, left + width], atol=1)
    np.testing.assert_allclose([rows[0], rows[-1] + 1], [top, top + height], atol=1)


@pytest.mark.parametrize("position", [(0.0, 0.0), (-30.0, 5.0), (15.5, 90.0)])
def test_coverage_outside_the_picture_is_cut_off(position):
    assert coverage("circle", 16, 24, *position, 4.0).shape == (16, 24)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (48, 96), (96, 48)])
@pytest.mark.parametrize(
    "text",
    [
        "a large red triangle at the top left on white",
        "a large red cross at the bottom right on white",
        "a large red triangle left of a large blue triangle on navy",
        "a large red circle left of a large blue triangle and right of a large green cross on grey",
        "a red circle above a blue cross and below a green square on black",
    ],
)
def test_layout_keeps_every_thing_inside_and_apart_and_related(text, height, width):
    scene = parse(text)
    for seed in range(5):
        placed = lay_out(scene, height, width, np.random.default_rng(seed))
        boxes = [each.box for each in placed]
        for left, top, box_width, box_height in boxes:
            assert left > 0
            assert top > 0
            assert left + box_width < width
            assert top + box_height < height
        areas = [coverage(p.thing.shape, height, width, p.x, p.y, p.radius) for p in placed]
        assert np.sum([area > 0 for area in areas], axis=0).max() == 1
        for relation, other in zip(scene.relations, placed[1:], strict=True):
            across, along = RELATIONS[relation]
            offset = (placed[0].x - other.x, placed[0].y - other.y)
            assert offset[0] * across + offset[1] * along > max(map(abs, offset)) * 0.99


def test_unsaid_size_and_place_vary():
    scene = parse("a red circle on white")
    placed = [lay_out(scene, 64, 64, np.random.default_rng(seed))[0] for seed in range(64)]
    assert {each.radius > 64 * 0.15 for each in placed} == {True, False}
    assert len({(round(each.x / 15), round(each.y / 15)) for each in placed}) == 9


def test_drawing_uses_the_flat_colours_and_labels_the_pixels():
    placed = [Placed(Thing("square", "blue"), 20.0, 12.0, 8.0)]
    picture, segmentation = draw("grey", placed, 24, 40)
    assert picture.shape == (24, 40, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[12, 20]) == COLOURS["blue"]
    assert tuple(picture[0, 0]) == BACKGROUNDS["grey"]
    assert segmentation[12, 20] == 1 + Thing("square", "blue").class_label
    assert segmentation[0, 0] == 0
