import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, check, instantiate_from_config
from ldm.data.module import Keyed
from ldm.data.pairs import ImageMapFolder
from tests.data.reading import faults, read_whole


def save(root, name="a", height=24, width=40, ending=".png", labels=None):
    """An image whose red is 5 times its label, and the map of its labels, in stripes and rows."""
    if labels is None:
        labels = np.add.outer(np.arange(height) // 4, np.arange(width) // 4 * 2) % 50
    image = np.zeros((*labels.shape, 3), np.uint8)
    image[..., 0] = labels * 5
    for part in ("images", "maps"):
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / f"images/{name}.png")
    if ending == ".npy":
        np.save(root / f"maps/{name}.npy", labels)
    else:
        Image.fromarray(labels.astype(np.uint8)).save(root / f"maps/{name}.png")


def folder(root, size=24, **options):
    return ImageMapFolder(root, size, **{"num_labels": 50, "split": "all", **options})


@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_an_image_and_its_map_are_found_by_their_name(tmp_path, ending):
    save(tmp_path, "street/a", ending=ending)
    item = folder(tmp_path, [24, 40])[0]
    assert item.keys() == {"image", "segmentation", "relpath"}
    assert item["relpath"] == "street/a.png"
    assert item["segmentation"].dtype == np.int64
    assert np.array_equal(item["image"][..., 0], item["segmentation"] * 5)


def test_an_image_and_its_map_are_cut_and_mirrored_alike(tmp_path):
    save(tmp_path)
    options = {"random_crop": True, "flip_p": 0.5, "interpolation": "nearest"}
    data = Keyed(folder(tmp_path, **options), seed=0)
    seen = set()
    for epoch in range(40):
        item = data[epoch]
        assert item["segmentation"].shape == (24, 24)
        assert np.array_equal(item["image"][..., 0], item["segmentation"] * 5)
        seen.add(item["segmentation"].tobytes())
    assert len(seen) > 12


@pytest.mark.parametrize("size", [12, 20, 36, [15, 30]])
def test_a_map_of_another_size_has_no_labels_of_its_own(tmp_path, size):
    save(tmp_path)
    item = folder(tmp_path, size, interpolation="nearest", random_crop=True)[0]
    labels = item["segmentation"]
    assert item["image"].shape[:2] == labels.shape
    whole = folder(tmp_path, [24, 40])[0]["segmentation"]
    assert set(labels.flat) <= set(whole.flat)


def test_void_is_no_label(tmp_path):
    labels = np.full((24, 24), 3)
    labels[:5] = 50
    save(tmp_path, labels=labels)
    got = folder(tmp_path, num_labels=4, void=50)[0]["segmentation"]
    assert np.array_equal(got, np.where(labels == 50, -1, labels))


def test_a_label_out_of_range_names_the_file(tmp_path):
    save(tmp_path, labels=np.full((24, 24), 7))
    with pytest.raises(ConfigError, match=r"maps/a\.png: has the label 7, expected 0 to 6"):
        folder(tmp_path, num_labels=7)[0]


def test_images_without_maps_are_named(tmp_path):
    for name in "abcdef":
        save(tmp_path, name)
    for name in "bcdf":
        (tmp_path / f"maps/{name}.png").unlink()
    with pytest.raises(ConfigError) as error:
        folder(tmp_path)
    assert "4 of 6 images have no map in" in str(error.value)
    assert "b.png, c.png, d.png, and 1 more; expected .png or .npy files" in str(error.value)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no directory .*none.*images/ and maps/"):
        folder(tmp_path / "none")
    save(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no directory .*labels"):
        folder(tmp_path, maps="labels")


@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_a_map_of_another_size_is_an_error_at_the_start(tmp_path, ending):
    for name in "abcd":
        save(tmp_path, name)
    (tmp_path / "maps/b.png").unlink()
    if ending == ".png":
        Image.new("L", (12, 24)).save(tmp_path / "maps/b.png")
    else:
        np.save(tmp_path / "maps/b.npy", np.zeros((24, 12), np.int64))
    message = (
        rf"maps/b\{ending}: this map has 24 x 12 pixels \(height x width\), its image "
        r".*images/b\.png has 24 x 40; expected the same"
    )
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path)


def turned(root, map_size):
    """A photograph of 24 x 40 pixels that is stored on its side, and its map."""
    save(root)
    (root / "images/a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 40)).save(root / "images/a.jpg", exif=exif)
    Image.new("L", map_size[::-1], 3).save(root / "maps/a.png")


def test_an_image_that_is_stored_on_its_side_has_its_upright_size(tmp_path):
    turned(tmp_path, (24, 40))
    assert (folder(tmp_path)[0]["segmentation"] == 3).all()


def test_a_map_of_another_size_than_the_header_shows_is_an_error_when_it_is_used(tmp_path):
    turned(tmp_path, (40, 24))
    # the first pair is read when the data set is made
    with pytest.raises(ConfigError, match=r"this map has 40 x 24 pixels .* has 24 x 40"):
        folder(tmp_path)
    save(tmp_path, "b")
    (tmp_path / "images/b.png").rename(tmp_path / "images/0.png")
    (tmp_path / "maps/b.png").rename(tmp_path / "maps/0.png")
    data = folder(tmp_path)
    with pytest.raises(
        ConfigError, match=r"maps/a\.png: this map has 40 x 24 .*a\.jpg has 24 x 40"
    ):
        data[1]


def test_a_pair_that_cannot_be_read_is_bad(tmp_path, caplog_ldm):
    for name in "abcd":
        save(tmp_path, name)
    (tmp_path / "maps/b.png").write_text("this is no map")
    (tmp_path / "maps/c.png").write_bytes((tmp_path / "maps/d.png").read_bytes()[:50])
    data = folder(tmp_path)
    assert "b.png (its map: not an image)" in caplog_ldm.text
    found = faults(data)
    assert list(found) == [1, 2]
    assert all(why.startswith("its map: ") for why in found.values())
    items, _ = read_whole(data)
    for item in items[1:3]:
        own = data[data.names.index(item["relpath"])]
        assert np.array_equal(item["segmentation"], own["segmentation"])


def test_windows_of_256_of_384_pixels_are_cut_of_both_alike(tmp_path):
    # here 16 of 24: nearest pixels of a window that is not resized are those of the file
    save(tmp_path)
    options = {"random_crop": True, "flip_p": 0.5, "min_crop": 2 / 3, "max_crop": 2 / 3}
    data = Keyed(folder(tmp_path, 16, **options), seed=0)
    whole = folder(tmp_path, [24, 40])[0]["segmentation"]
    windows = {
        window.tobytes()
        for top in range(9)
        for left in range(25)
        for window in (whole[top : top + 16, left : left + 16],)
        for window in (window, window[:, ::-1])
    }
    seen = set()
    for epoch in range(40):
        item = data[epoch]
        assert np.array_equal(item["image"][..., 0], item["segmentation"] * 5)
        assert item["segmentation"].tobytes() in windows
        seen.add(item["segmentation"].tobytes())
    assert len(seen) > 20
    with pytest.raises(ConfigError, match=r"crops of 0\.9 to 0\.5"):
        folder(tmp_path, min_crop=0.9, max_crop=0.5)


def built(**params):
    """A data set from its configuration, which is checked as one of a training is."""
    train = {"target": "ldm.data.pairs.ImageMapFolder", "params": params}
    module = {"target": "ldm.data.module.DataModuleFromConfig",
              "params": {"batch_size": 1, "train": train}}  # fmt: skip
    check({"data": module})
    return instantiate_from_config(train)


def test_ade20k_is_read_by_its_parameters(tmp_path):
    for part in ("images/training", "annotations/training"):
        (tmp_path / part).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "images/training/ADE_train_00000001.jpg")
    labels = np.arange(600, dtype=np.uint8).reshape(20, 30) % 151
    Image.fromarray(labels).save(tmp_path / "annotations/training/ADE_train_00000001.png")
    data = built(root=str(tmp_path), size=[20, 30], split="all", num_labels=151, void=0,
                 images="images/training", maps="annotations/training")  # fmt: skip
    expected = np.where(labels == 0, -1, labels.astype(int))
    assert np.array_equal(data[0]["segmentation"], expected)


def test_coco_stuff_is_read_by_its_parameters(tmp_path):
    for part in ("train2017", "stuffthingmaps/train2017"):
        (tmp_path / part).mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "train2017/000000000009.jpg")
    labels = np.arange(600).reshape(20, 30) % 183
    labels[labels == 182] = 255
    place = tmp_path / "stuffthingmaps/train2017/000000000009.png"
    Image.fromarray(labels.astype(np.uint8)).save(place)
    params = {"root": str(tmp_path), "size": [20, 30], "split": "all", "images": "train2017",
              "maps": "stuffthingmaps/train2017"}  # fmt: skip
    data = built(num_labels=182, void=255, **params)
    assert np.array_equal(data[0]["segmentation"], np.where(labels == 255, -1, labels))
    with pytest.raises(ConfigError, match=r"009\.png: has the label 255, expected 0 to 181"):
        built(num_labels=182, **params)[0]


def test_splits_share_no_pair(tmp_path):
    for number in range(12):
        save(tmp_path, f"{number}", 16, 16)
    names = []
    for split in ("train", "validation"):
        data = folder(tmp_path, 16, split=split, val_fraction=0.3)
        names.append({data[index]["relpath"] for index in range(len(data))})
    assert names[0].isdisjoint(names[1])
    assert len(names[0] | names[1]) == 12
