import numpy as np
import pytest
import torch

from ldm.config import ConfigError
from ldm.data.masks import Masked, box, hole, masked, stroke
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


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 40), (3, 7)])
def test_the_smallest_pictures_have_holes(size):
    for seed in range(50):
        assert 1 <= hole(*size, generator(seed)).sum() <= max(1, size[0] * size[1] / 2)


def test_a_hole_is_mid_grey_and_the_rest_is_what_networks_see():
    image = generator().integers(0, 256, (6, 5, 3), dtype=np.uint8)
    hidden = np.zeros((6, 5), bool)
    hidden[1, 2:4] = True
    got = masked(image, hidden)
    assert got.dtype == np.float32
    assert (got[hidden] == 0).all()
    seen = to_image_tensor(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(got[~hidden], seen[~hidden])
    deep = np.linspace(-1, 1, 90, dtype=np.float32).reshape(6, 5, 3)
    assert np.array_equal(masked(deep, hidden)[~hidden], deep[~hidden])
    assert np.array_equal(image, generator().integers(0, 256, (6, 5, 3), dtype=np.uint8))


def test_items_have_the_mask_and_the_image_without_what_it_hides():
    source = ShapesDataset(16, length=3)
    batch = collate([Keyed(Masked(source), seed=0)[index] for index in range(3)])
    assert batch["mask"].shape == (3, 16, 16, 1)
    assert batch["mask"].dtype == torch.uint8
    assert set(batch["mask"].unique().tolist()) == {0, 255}
    mask = (batch["mask"] == 255).float()
    expected = (1 - mask) * to_image_tensor(batch["image"]).permute(0, 2, 3, 1)
    assert torch.equal(batch["masked_image"], expected)
    assert np.array_equal(batch["image"][1], source[1]["image"])


def test_holes_are_new_in_each_epoch_and_the_same_in_every_validation():
    data = Keyed(Masked(ShapesDataset(16, length=4)), seed=0)
    again = Keyed(Masked(ShapesDataset(16, length=4)), seed=0)
    keys = [0, 1, 4, 5, 8]  # samples 0 and 1 of the epochs 0, 1 and 2
    masks = [data[key]["mask"].tobytes() for key in keys]
    assert len(set(masks)) == len(keys)
    assert masks == [again[key]["mask"].tobytes() for key in keys]


def test_a_grey_image_without_channels_has_a_hole_too():
    class Grey:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": np.full((8, 8), 255, np.uint8)}

    item = Masked(Grey())[0]
    assert item["masked_image"].shape == (8, 8, 1)
    assert np.array_equal(item["masked_image"] == 0, item["mask"] == 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["box", "strok"]}, "kinds: 'strok'; expected box or stroke.*stroke"),
        ({"kinds": []}, "kinds: none; expected box, stroke or both"),
        ({"share": [0.0, 0.5]}, r"share: \[0\.0, 0\.5\]; expected \[least, most\], above 0"),
        ({"share": [0.5, 0.2]}, "expected .least, most."),
        ({"share": [0.5, 1.0]}, "below 1, of an image"),
        ({"share": [0.5]}, "expected .least, most."),
        ({"key": "picture"}, "have no 'picture', only box_classes"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Masked(ShapesDataset(16, length=1), **options)[0]
