import time

import numpy as np
import pytest
import torch

from ldm.config import ConfigError
from ldm.data.holes import box, hole, stroke
from ldm.data.masks import Masked, masked
from ldm.data.module import Keyed, collate
from ldm.data.shapes import ShapesDataset
from ldm.tensor import to_image_tensor


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (64, 64)])
def test_a_box_is_one_rectangle_of_at_most_half_of_each_side(size):
    for seed in range(50):
        hidden = box(*size, generator(seed))
        rows, columns = hidden.any(axis=1), hidden.any(axis=0)
        assert hidden.shape == size
        assert np.array_equal(hidden, np.outer(rows, columns))
        for line, side in ((rows, size[0]), (columns, size[1])):
            first, last = np.flatnonzero(line)[[0, -1]]
            assert line[first : last + 1].all()
            assert last - first + 1 <= max(1, round(side / 2))


def test_boxes_lie_anywhere():
    seen = sum(box(16, 16, generator(seed)).astype(int) for seed in range(400))
    assert seen.min() > 0
    assert seen[6:10, 6:10].mean() > seen[:2, :2].mean()


def grown(hidden):
    """The holes and their four neighbours."""
    wide = np.pad(hidden, 1)
    shifted = [wide[1:-1, 1:-1], wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]
    return np.logical_or.reduce(shifted)


def test_a_stroke_is_in_one_piece_and_as_thick_as_it_says():
    for seed in range(50):
        hidden = stroke(64, 64, generator(seed))
        reached = np.zeros_like(hidden)
        reached[tuple(np.argwhere(hidden)[0])] = True
        for _ in range(64 * 64):
            more = grown(reached) & hidden
            if np.array_equal(more, reached):
                break
            reached = more
        assert np.array_equal(reached, hidden)
        # its radius is 2.9 pixels or more, so two rings are not all of it
        assert not grown(grown(~hidden)).all()


@pytest.mark.parametrize("kinds", [("box",), ("stroke",), ("box", "stroke")])
@pytest.mark.parametrize("share", [(0.05, 0.5), (0.3, 0.35), (0.02, 0.02), (0.9, 0.95)])
def test_a_hole_is_of_the_share_that_is_asked_for(kinds, share):
    shares = [hole(64, 64, generator(seed), kinds=kinds, share=share).mean() for seed in range(20)]
    assert min(shares) >= share[0] - 4 / 64**2
    assert max(shares) <= share[1]


def test_the_most_that_may_be_hidden_is_hidden_in_no_time():
    data = Masked(ShapesDataset(128, length=3), share=[0.95, 0.95])
    start = time.process_time()
    shares = [(data[index]["mask"] == 255).mean() for index in range(3)]
    assert time.process_time() - start < 3
    assert min(shares) >= 0.95 - 4 / 128**2
    assert max(shares) <= 0.95


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 40), (3, 7)])
def test_the_smallest_pictures_have_holes(size):
    for seed in range(50):
        assert 1 <= hole(*size, generator(seed)).sum() <= max(1, size[0] * size[1] / 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_hidden_is_what_the_published_arithmetic_makes_of_it(dtype):
    # published: image / 255 in [0, 1], (1 - mask) * image, then all of them * 2 - 1
    levels = generator().integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    hidden = generator(1).random((2, 6, 5)) < 0.4
    unit = torch.from_numpy(levels).permute(0, 3, 1, 2).double() / 255
    expected = (1 - torch.from_numpy(hidden)[:, None].double()) * unit * 2 - 1
    images = levels if dtype is np.uint8 else (levels / 127.5 - 1).astype(np.float32)
    got = masked(images, hidden)
    assert got.dtype == dtype
    seen = to_image_tensor(torch.from_numpy(got))
    torch.testing.assert_close(seen.double(), expected, rtol=0, atol=2e-7)
    assert (seen.permute(0, 2, 3, 1)[torch.from_numpy(hidden)] == -1).all()


def test_an_image_that_something_is_hidden_of_is_not_changed_itself():
    image = generator().integers(1, 256, (6, 5, 3), dtype=np.uint8)
    before = image.copy()
    got = masked(image, np.eye(6, 5, dtype=bool))
    assert np.array_equal(image, before)
    assert np.array_equal(got == 0, np.eye(6, 5, dtype=bool)[..., None].repeat(3, axis=2))


def test_items_have_the_mask_and_the_image_without_what_it_hides():
    source = ShapesDataset(16, length=3)
    batch = collate([Keyed(Masked(source), seed=0)[index] for index in range(3)])
    assert batch["mask"].shape == (3, 16, 16, 1)
    assert batch["mask"].dtype == torch.uint8
    assert set(batch["mask"].unique().tolist()) == {0, 255}
    expected = torch.where(batch["mask"] == 255, 0, batch["image"])
    assert batch["masked_image"].dtype == torch.uint8
    assert torch.equal(batch["masked_image"], expected)
    assert np.array_equal(batch["image"][1], source[1]["image"])


def test_holes_are_new_in_each_epoch_and_the_same_in_every_validation():
    data = Keyed(Masked(ShapesDataset(16, length=4)), seed=0)
    again = Keyed(Masked(ShapesDataset(16, length=4)), seed=0)
    keys = [0, 1, 4, 5, 8]  # samples 0 and 1 of the epochs 0, 1 and 2
    masks = [data[key]["mask"].tobytes() for key in keys]
    assert len(set(masks)) == len(keys)
    assert masks == [again[key]["mask"].tobytes() for key in keys]


def test_kinds_are_drawn_by_their_weights():
    weights = {"half": 3, "outpaint": 1, "thin": 0, "box": 4}
    source = ShapesDataset(32, length=2)
    data = Keyed(Masked(source, kinds=weights, share=[0.1, 0.1]), seed=0)
    shares = np.array([(data[key]["mask"] == 255).mean() for key in range(400)])
    counts = [(shares == 0.5).sum(), (shares < 0.12).sum()]
    # 4 standard errors of 400 draws with probabilities 3/8 and 1/2; outpainting may hide a half
    assert abs(counts[0] - 150) < 42
    assert abs(counts[1] - 200) < 40


@pytest.mark.parametrize("kind", ["thin", "medium", "thick", "half", "outpaint"])
def test_presets_are_new_in_each_epoch_and_the_same_in_every_validation(kind):
    data = [Keyed(Masked(ShapesDataset(32, length=2), kinds=kind), seed=0) for _ in range(2)]
    masks = [[each[key]["mask"].tobytes() for key in range(8)] for each in data]
    assert masks[0] == masks[1]
    assert len(set(masks[0])) == (4 if kind == "half" else 8)


def test_boxes_and_strokes_are_mixed_in_one_image_as_without_presets():
    source = ShapesDataset(32, length=2)
    plain = Masked(source, kinds=["box", "stroke"])[0]["mask"]
    assert np.array_equal(Masked(source)[0]["mask"], plain)
    assert np.array_equal(Masked(source, kinds={"box": 2, "stroke": 2})[0]["mask"], plain)


def test_a_grey_image_without_channels_has_a_hole_too():
    class Grey:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": np.full((8, 8), 255, np.uint8)}

    item = Masked(Grey())[0]
    assert item["masked_image"].shape == (8, 8, 1)
    assert np.array_equal(item["masked_image"] == 0, item["mask"] == 255)


@pytest.mark.parametrize("name", ["mask", "masked_image"])
def test_a_source_with_holes_of_its_own_is_refused(name):
    class Holed:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": np.zeros((8, 8, 3), np.uint8), name: np.zeros((8, 8, 1), np.uint8)}

    with pytest.raises(ConfigError, match=f"source: Holed has a '{name}' of its own"):
        Masked(Holed())[0]


@pytest.mark.parametrize("source", [[{"image": 0}], ("a",), "name"])
def test_what_is_no_data_set_is_refused_as_a_source(source):
    with pytest.raises(ConfigError, match=r"source: .*expected a data set"):
        Masked(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["box", "strok"]}, "kinds: 'strok'; expected box, stroke, thin.*'stroke'"),
        ({"kinds": "tick"}, "kinds: 'tick'; expected box, .*did you mean 'thi"),
        ({"kinds": []}, "kinds: none; expected one or more of box, stroke, thin, medium, thick"),
        ({"kinds": {"thick": 0}}, "kinds: none; expected one or more of"),
        ({"kinds": {"thick": 1, "half": -1}}, "kinds: half: -1; expected a weight, 0 or more"),
        ({"kinds": "thick", "share": [0.1, 0.2]}, "share: .*expected none without box or stroke"),
        ({"share": [0.0, 0.5]}, r"share: \[0\.0, 0\.5\]; expected \[least, most\] of an image, ab"),
        ({"share": [0.5, 0.2]}, "expected .least, most."),
        ({"share": [0.5, 0.96]}, r"share: \[0\.5, 0\.96\]; expected .*, above 0 and up to 0\.95"),
        ({"share": [0.99, 0.99]}, r"up to 0\.95"),
        ({"share": [0.5, float("nan")]}, r"up to 0\.95"),
        ({"share": [0.5]}, "expected .least, most."),
        ({"key": "picture"}, "have no 'picture', only box_classes"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Masked(ShapesDataset(16, length=1), **options)[0]
