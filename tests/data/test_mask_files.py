"""Masks that are files, cut and mirrored as their images are."""

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data.folder import ImageFolder, ImageList
from ldm.data.masks import Masked
from ldm.data.module import Keyed
from ldm.data.shapes import ShapesDataset
from ldm.data.superres import SuperResolution
from tests.data.test_coco_windows import with_rectangle


def save(root, name="a", height=24, width=40, level=255):
    """An image whose red is 255 where its mask is white, and the mask, of stripes and rows."""
    hidden = np.add.outer(np.arange(height) // 4, np.arange(width) // 4 * 2) % 3 == 0
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = hidden * 255
    image[..., 1] = 100
    for part in ("images", "masks"):
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / f"images/{name}.png")
    Image.fromarray((hidden * level).astype(np.uint8)).save(root / f"masks/{name}.png")


def folder(root, size=24, **options):
    return ImageFolder(root / "images", size, split="all", **options)


def test_a_mask_is_that_of_the_image_of_its_name(tmp_path):
    save(tmp_path, "x/a")
    save(tmp_path, "y/b", 30, 24, level=128)
    data = Masked(folder(tmp_path, [24, 24]), masks=tmp_path / "masks")
    for index in range(2):
        item = data[index]
        assert item["mask"].dtype == np.uint8
        assert item["mask"].shape == (24, 24, 1)
        assert set(item["mask"].flat) == {0, 255}
        assert "beside" not in item
        assert np.array_equal(item["masked_image"][..., 1] == 0, item["mask"][..., 0] == 255)
    assert np.array_equal(data[0]["image"][..., 0], data[0]["mask"][..., 0])


@pytest.mark.parametrize("kind", [ImageFolder, ImageList])
def test_a_mask_is_cut_and_mirrored_as_its_image_is(tmp_path, kind):
    save(tmp_path)
    options = {"random_crop": True, "flip_p": 0.5, "interpolation": "nearest"}
    if kind is ImageFolder:
        (tmp_path / "images/a.txt").write_text("a stripe\nanother stripe")  # one is drawn
        source = folder(tmp_path, **options)
    else:
        (tmp_path / "list.txt").write_text("images/a.png")
        source = ImageList(tmp_path / "list.txt", size=24, **options)
        (tmp_path / "masks/images").mkdir()
        (tmp_path / "masks/a.png").rename(tmp_path / "masks/images/a.png")
    data, plain = Keyed(Masked(source, masks=tmp_path / "masks"), 0), Keyed(source, 0)
    seen = set()
    for epoch in range(40):
        item = data[epoch]
        assert np.array_equal(item["image"][..., 0], item["mask"][..., 0])
        assert np.array_equal(item["image"], plain[epoch]["image"])
        seen.add(item["mask"].tobytes())
    assert len(seen) > 12
    assert "beside" not in plain[0], "the source is what it was"


def test_an_image_that_may_not_be_mirrored_keeps_its_mask(tmp_path):
    save(tmp_path)
    (tmp_path / "images/a.txt").write_text("a stripe on the left")
    data = Masked(folder(tmp_path, [24, 40], flip_p=1.0), masks=tmp_path / "masks")
    assert np.array_equal(data[0]["image"][..., 0], data[0]["mask"][..., 0])


def test_other_data_sets_go_around_it(tmp_path):
    save(tmp_path)
    item = SuperResolution(Masked(folder(tmp_path), masks=tmp_path / "masks"), 4)[0]
    assert item.keys() == {"image", "relpath", "mask", "masked_image", "LR_image"}


def test_a_mask_of_another_size_is_found_at_the_start_and_names_both_files(tmp_path):
    save(tmp_path, "a")
    save(tmp_path, "b")
    Image.new("L", (40, 20)).save(tmp_path / "masks/b.png")
    message = (
        r"masks/b\.png: this mask has 20 x 40 pixels \(height x width\), its image "
        r".*images/b\.png has 24 x 40; expected the same"
    )
    with pytest.raises(ConfigError, match=message):
        Masked(folder(tmp_path), masks=tmp_path / "masks")


def turned(root, mask_size):
    """A photograph of 24 x 40 pixels that is stored on its side, and its mask."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("images", "masks"):
        (root / part).mkdir()
    Image.new("RGB", (24, 40)).save(root / "images/a.jpg", exif=exif)
    Image.new("L", mask_size[::-1], 255).save(root / "masks/a.png")


def test_an_image_that_is_stored_on_its_side_has_its_upright_size(tmp_path):
    turned(tmp_path, (24, 40))
    assert Masked(folder(tmp_path), masks=tmp_path / "masks")[0]["mask"].all()


def test_a_mask_of_the_stored_size_is_found_when_it_is_used(tmp_path):
    turned(tmp_path, (40, 24))
    data = Masked(folder(tmp_path), masks=tmp_path / "masks")
    with pytest.raises(ConfigError, match=r"this mask has 40 x 24 pixels .* has 24 x 40"):
        data[0]


def test_a_damaged_mask_is_named(tmp_path):
    save(tmp_path)
    (tmp_path / "masks/a.png").write_text("this is no mask")
    data = Masked(folder(tmp_path), masks=tmp_path / "masks")
    with pytest.raises(ConfigError, match=r"masks/a\.png: cannot be read as a mask: not an image"):
        data[0]


@pytest.mark.parametrize(("level", "is_refused"), [(1, True), (127, True), (0, False)])
def test_a_mask_of_dark_levels_alone_is_refused_and_a_black_one_hides_nothing(
    tmp_path, level, is_refused
):
    save(tmp_path, level=level)
    data = Masked(folder(tmp_path), masks=tmp_path / "masks")
    if is_refused:
        with pytest.raises(ConfigError, match=rf"masks/a\.png: the lightest level .* is {level}"):
            data[0]
    else:
        assert not data[0]["mask"].any()


def test_images_without_masks_are_named(tmp_path):
    for name in "abc":
        save(tmp_path, name)
    (tmp_path / "masks/b.png").unlink()
    message = r"masks: 1 of 3 images have no mask in .*: b\.png; expected \.png files"
    with pytest.raises(ConfigError, match=message):
        Masked(folder(tmp_path), masks=tmp_path / "masks")
    with pytest.raises(ConfigError, match=r"masks: there is no directory .*none"):
        Masked(folder(tmp_path), masks=tmp_path / "none")


class Turned(ImageFolder):
    def item(self, index, rng):
        found = super().item(index, rng)
        return {**found, "image": found["image"][::-1]}


def test_sources_whose_files_cannot_be_told_are_refused(tmp_path):
    save(tmp_path)
    message = "masks: ShapesDataset does not tell which file an image is of"
    with pytest.raises(ConfigError, match=message):
        Masked(ShapesDataset(16, length=1), masks=tmp_path / "masks")
    with pytest.raises(ConfigError, match=r"masks: Turned does not tell .* or changes it"):
        Masked(Turned(tmp_path / "images", 24, split="all"), masks=tmp_path / "masks")
    with pytest.raises(ConfigError, match="expected fast_decode: false"):
        Masked(folder(tmp_path, fast_decode=True), masks=tmp_path / "masks")


def test_masks_move_with_images_and_their_boxes(tmp_path):
    make = with_rectangle(tmp_path, (20, 6, 18, 11), 32)
    (tmp_path / "masks").mkdir()
    with Image.open(tmp_path / "0.png") as image:
        image.convert("L").save(tmp_path / "masks/0.png")
    data = Masked(make(random_crop=True, flip_p=0.5), masks=tmp_path / "masks")
    for seed in range(10):
        item = data.item(0, np.random.default_rng(seed))
        left, top, width, height = (32 * item["boxes"][0]).round().astype(int)
        expected = np.zeros((32, 32, 1), np.uint8)
        expected[top : top + height, left : left + width] = 255
        np.testing.assert_array_equal(item["mask"], expected)


@pytest.mark.parametrize("options", [{"kinds": "thick"}, {"share": [0.1, 0.2]}])
def test_what_files_leave_without_effect_is_refused(tmp_path, options):
    save(tmp_path)
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: .*; expected none"):
        Masked(folder(tmp_path), masks=tmp_path / "masks", **options)


@pytest.mark.parametrize("kinds", ["thin", ["thin", "box"], {"thick": 2, "half": 0.5}])
def test_kinds_may_be_one_several_or_weighted_in_a_configuration(tmp_path, kinds):
    source = {"target": "ldm.data.shapes.ShapesDataset", "params": {"size": 16, "length": 2}}
    train = {"target": "ldm.data.masks.Masked", "params": {"source": source, "kinds": kinds}}
    check({"data": {"target": "ldm.data.module.DataModuleFromConfig",
                    "params": {"batch_size": 1, "train": train}}})  # fmt: skip
    assert instantiate_from_config(train)[0]["mask"].any()
