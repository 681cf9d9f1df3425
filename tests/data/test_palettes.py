"""Maps of labels that are painted in colours."""

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data.pairs import ImageMapFolder
from ldm.data.palettes import Palette

COLOURS = {"sky": [70, 130, 180], "tree": [107, 142, 35], "road": [128, 64, 128]}


def painted(labels):
    return np.array(list(COLOURS.values()), dtype=np.uint8)[labels]


def save(root, labels, **changes):
    for part in ("images", "maps"):
        (root / part).mkdir(exist_ok=True)
    pixels = painted(labels)
    for place, colour in changes.get("pixels", {}).items():
        pixels[place] = colour
    Image.fromarray(pixels).save(root / "images/a.png")
    image = Image.fromarray(pixels)
    if changes.get("mode"):
        image = image.quantize(8) if changes["mode"] == "P" else image.convert(changes["mode"])
    image.save(root / "maps/a.png")


def stripes(height=12, width=20):
    return np.add.outer(np.arange(height) // 2, np.arange(width) // 3) % 3


def folder(root, **options):
    given = {"num_labels": 3, "split": "all", "palette": COLOURS, **options}
    return ImageMapFolder(root, [12, 20], **given)


@pytest.mark.parametrize("mode", [None, "P"])
def test_colours_are_labels_in_the_order_of_the_palette(tmp_path, mode):
    save(tmp_path, stripes(), mode=mode)
    item = folder(tmp_path)[0]
    assert item["segmentation"].dtype == np.int64
    assert np.array_equal(item["segmentation"], stripes())


def test_the_first_and_the_last_colour_of_all_are_told_apart(tmp_path):
    extremes = {"white": [255, 255, 255], "black": [0, 0, 0], "red": [255, 0, 0]}
    pixels = np.array([[[0, 0, 0], [255, 255, 255]], [[255, 0, 0], [255, 255, 255]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert Palette.of(extremes).read(tmp_path / "a.png").tolist() == [[1, 0], [2, 0]]


def test_a_label_of_a_palette_may_stand_for_none(tmp_path):
    save(tmp_path, stripes())
    got = folder(tmp_path, num_labels=2, void=2)[0]["segmentation"]
    assert np.array_equal(got, np.where(stripes() == 2, -1, stripes()))


def test_a_colour_outside_of_the_palette_names_file_pixel_and_nearest(tmp_path):
    save(tmp_path, stripes(), pixels={(3, 7): (127, 66, 128), (5, 1): (0, 0, 0)})
    message = (
        r"maps/a\.png: the pixel in row 3, column 7 is \[127, 66, 128\], none of the 3 colours of "
        r"the palette; the nearest is road \(label 2\), \[128, 64, 128\]"
    )
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path)


def test_alpha_is_no_colour(tmp_path):
    save(tmp_path, stripes(), mode="RGBA")
    with pytest.raises(ConfigError, match="its map: is an image of mode RGBA, expected colours"):
        folder(tmp_path)


GIMP = """GIMP Palette
Name: streets
Columns: 2
# the rest is labels
 70 130 180\tsky
107 142  35 tree of any kind

128  64 128
"""


def test_a_file_has_a_label_on_each_line(tmp_path):
    (tmp_path / "streets.gpl").write_text(GIMP)
    palette = Palette.of(tmp_path / "streets.gpl")
    assert palette.colours == tuple(tuple(each) for each in COLOURS.values())
    assert palette.names == ("sky", "tree of any kind", "line 8")
    save(tmp_path, stripes())
    data = folder(tmp_path, palette=str(tmp_path / "streets.gpl"))
    assert np.array_equal(data[0]["segmentation"], stripes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 x name", r"line 1 of .*bad\.gpl is '1 2 x name'; expected 'red green blue name'"),
        ("1 2 3 a\n1 2 300 b", r"palette: b: \[1, 2, 300\]; expected .red, green, blue., whole"),
        ("1 2 3 a\n1 2 3 b", r"palette: b and a are both \[1, 2, 3\]"),
        ("# nothing", "palette: holds no colours"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, text, message):
    (tmp_path / "bad.gpl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Palette.of(tmp_path / "bad.gpl")


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ({"a": [1, 2]}, r"palette: a: \[1, 2\]; expected \[red, green, blue\]"),
        ({"a": [1, 2, -1]}, r"palette: a: \[1, 2, -1\]"),
        ({}, "palette: holds no colours"),
        ("none.gpl", r"palette: there is no file none\.gpl"),
    ],
)
def test_what_is_no_palette_is_named(palette, message):
    with pytest.raises(ConfigError, match=message):
        Palette.of(palette)


def test_a_palette_of_more_labels_than_there_are_is_an_error_at_the_start(tmp_path):
    save(tmp_path, stripes())
    message = "num_labels: 2; expected 3 or more: the palette has 3 colours, road is label 2"
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path, num_labels=2)


def test_a_palette_may_be_written_in_a_configuration(tmp_path):
    save(tmp_path, stripes())
    params = {"root": str(tmp_path), "split": "all", "num_labels": 3, "palette": COLOURS}
    train = {"target": "ldm.data.pairs.ImageMapFolder", "params": {**params, "size": [12, 20]}}
    config = {"data": {"target": "ldm.data.module.DataModuleFromConfig",
                       "params": {"batch_size": 1, "train": train}}}  # fmt: skip
    check(config)
    assert np.array_equal(instantiate_from_config(train)[0]["segmentation"], stripes())
    train["params"]["palette"] = {"sky": ["blue"]}
    with pytest.raises(ConfigError, match=r"palette: sky: \['blue'\]; expected \[red, green"):
        instantiate_from_config(train)
