"""Windows of pictures: image, map and boxes are cut alike."""

import numpy as np
import pytest
from torch.utils.data import Dataset

from ldm.config import ConfigError
from ldm.data.layouts import Layouts
from ldm.data.masks import Masked
from ldm.data.shapes import ShapesDataset
from ldm.data.superres import SuperResolution
from ldm.data.windows import Windows


class OneBox(Dataset):
    """A picture of which a rectangle is white, and its box."""

    class_names = ("thing",)

    def __init__(self, rectangle, sides=(12, 20)):
        self.rectangle, self.sides = rectangle, sides

    def __len__(self):
        return 1

    def __getitem__(self, index):
        left, top, width, height = self.rectangle
        segmentation = np.zeros(self.sides, np.int64)
        segmentation[top : top + height, left : left + width] = 1
        frame = np.array([self.sides[1], self.sides[0]] * 2)
        return {
            "image": np.repeat(segmentation[..., None] * 255, 3, axis=2).astype(np.uint8),
            "segmentation": segmentation,
            "boxes": np.array([self.rectangle], np.float32) / frame,
            "box_classes": np.zeros(1, np.int64),
            "caption": "a thing",
        }


@pytest.mark.parametrize("seed", range(20))
def test_the_box_is_that_of_the_pixels_that_are_seen(seed):
    windows = Windows(OneBox((5, 3, 8, 6)), [8, 10])
    item = windows.item(0, np.random.default_rng(seed))
    assert item["image"].shape == (8, 10, 3)
    assert np.array_equal(item["image"][..., 0] > 0, item["segmentation"] == 1)
    rows, columns = item["segmentation"].nonzero()
    left, top, width, height = item["boxes"][0] * [10, 8, 10, 8]
    assert np.allclose([left, top], [columns.min(), rows.min()], atol=1e-5)
    assert np.allclose([width, height], [np.ptp(columns) + 1, np.ptp(rows) + 1], atol=1e-5)


def test_every_window_may_be_drawn():
    windows = Windows(OneBox((5, 3, 8, 6)), 12)
    rngs = (np.random.default_rng(seed) for seed in range(200))
    lefts = {round(float(windows.item(0, rng)["boxes"][0, 0]) * 12) for rng in rngs}
    assert lefts == set(range(6))  # 5 pixels, less what was cut off: 0 to 8, at least 0


def test_a_box_outside_of_the_window_is_left_out_with_its_class():
    windows = Windows(OneBox((0, 0, 2, 2)), 4)
    found = [windows.item(0, np.random.default_rng(seed)) for seed in range(50)]
    assert {len(item["boxes"]) for item in found} == {0, 1}
    for item in found:
        assert len(item["boxes"]) == len(item["box_classes"]) == item["segmentation"].any()


def test_what_is_of_no_pixels_stays_as_it_is():
    source = ShapesDataset(48, length=3)
    windows = Windows(source, 32)
    assert windows[1]["caption"] == source[1]["caption"]
    assert len(windows) == 3
    assert windows.class_names == source.class_names
    assert np.array_equal(windows[2]["image"], windows[2]["image"])


def test_a_picture_smaller_than_the_window_is_refused():
    with pytest.raises(ConfigError, match="size: 16 x 16 pixels; item 0 of the source has 12 x 20"):
        Windows(OneBox((0, 0, 2, 2)), 16)[0]


def test_a_hole_stays_on_its_pixels():
    windows = Windows(Masked(ShapesDataset(48, length=3)), 32)
    for index in range(3):
        item = windows.item(index, np.random.default_rng(index))
        seen = np.where(item["mask"] == 255, 0, item["image"])
        assert np.array_equal(item["masked_image"], seen)


@pytest.mark.parametrize(
    ("around", "key"), [(Layouts, "layout"), (lambda data: SuperResolution(data, 4), "LR_image")]
)
def test_what_was_made_of_the_whole_picture_is_refused(around, key):
    source = around(OneBox((5, 3, 8, 6)))
    message = f"a '{key}' of the whole picture; expected {type(source).__name__} around Windows"
    with pytest.raises(ConfigError, match=message):
        Windows(source, 8)[0]
