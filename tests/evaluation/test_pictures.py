"""Files that a user names, and sheets of them."""

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data.pixels import PixelFormat
from ldm.evaluation.pictures import Pictures, image_files
from ldm.evaluation.sheets import captioned_sheet, heat_map, shown


def saved(path, height=5, width=7, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), level, dtype=np.uint8)).save(path)
    return path


def test_files_and_directories_are_taken_in_order(tmp_path):
    b, a = saved(tmp_path / "d" / "b.png"), saved(tmp_path / "d" / "below" / "a.png")
    lone = saved(tmp_path / "z.png")
    assert image_files([lone, tmp_path / "d"]) == [lone, b, a]


def test_names_of_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.png: there is no such image or directory"):
        image_files([tmp_path / "none.png"])
    with pytest.raises(ConfigError, match="holds no images"):
        image_files([tmp_path])


def test_bad_files_are_left_out_and_named(tmp_path):
    good, bad = saved(tmp_path / "good.png"), tmp_path / "bad.png"
    bad.write_text("no image")
    pictures = Pictures([bad, good])
    ((names, image),) = pictures
    assert names == [str(good)]
    assert tuple(image.shape) == (1, 5, 7, 3)
    assert pictures.bad == {str(bad): "not an image"}
    with pytest.raises(ConfigError, match=r"none of 1 image files .*bad\.png: not an image"):
        list(Pictures([bad]))


def test_images_are_framed_to_a_size_and_grey_where_asked(tmp_path):
    ((_, image),) = Pictures([saved(tmp_path / "a.png", 20, 40)], PixelFormat(1), size=8)
    assert tuple(image.shape) == (1, 8, 8, 1)
    assert image.unique().tolist() == [100]


def test_a_heat_map_goes_from_black_to_white_at_the_largest_error():
    image = np.zeros((1, 4, 3), dtype=np.uint8)
    made = image.copy()
    made[0, :, 1] = [0, 20, 40, 60]
    heat, most = heat_map(image, made)
    assert most == 60
    assert heat[0].tolist() == [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 255]]
    assert heat_map(made, image, most=30)[0][0, 3].tolist() == [255, 255, 255]
    assert heat_map(image, image)[1] == 1


def test_a_heat_map_of_floats_is_in_grey_levels_too():
    image = np.zeros((1, 3, 13), dtype=np.float32)
    made = image.copy()
    made[0, :, 12] = [0, 0.2, -0.4]
    heat, most = heat_map(image, made)
    assert most == pytest.approx(0.4 * 255 / 2)
    assert heat[0, [0, 2]].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(("channels", "visible"), [(1, 1), (2, 1), (3, 3), (4, 3), (13, 3)])
def test_the_first_channels_are_shown_in_8_bits(channels, visible):
    levels = np.arange(channels, dtype=np.uint8) * np.ones((4, 5, 1), dtype=np.uint8)
    assert np.array_equal(shown(levels), levels[..., :visible])
    assert np.array_equal(shown(levels.astype(np.float32) / 127.5 - 1), levels[..., :visible])


def test_a_sheet_shows_every_cell_and_its_text():
    cell = np.full((200, 160, 3), 128, dtype=np.uint8)
    grey = np.full((300, 170, 1), 30, dtype=np.uint8)
    sheet = captioned_sheet([[(cell, "one"), (grey, "two\nlines")], [(cell, "")]])
    assert sheet.shape == (4 + 328 + 4 + 200 + 4, 4 + 160 + 4 + 170 + 4, 3)
    assert np.array_equal(sheet[4:204, 4:164], cell)
    assert (sheet[4:304, 168:338] == 30).all()
    assert (sheet[204:218, 4:164] < 100).any()  # text
    assert np.array_equal(sheet[336:536, 4:164], cell)


def test_small_images_are_enlarged_and_large_ones_shrunk():
    small, large = np.zeros((16, 16, 3), np.uint8), np.zeros((600, 1200, 3), np.uint8)
    sheet = captioned_sheet([[(small, ""), (large, "")]])
    assert (sheet == 0).all(axis=2).sum() == 160 * 160 + 256 * 512
