import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data.module import Keyed
from ldm.data.pairs import ImageMapFolder


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


def test_a_pair_that_does_not_fit_is_replaced_by_its_neighbour(tmp_path, caplog_ldm):
    for name in "abcd":
        save(tmp_path, name)
    Image.new("L", (12, 24)).save(tmp_path / "maps/b.png")
    (tmp_path / "maps/c.png").write_bytes((tmp_path / "maps/d.png").read_bytes()[:50])
    data = folder(tmp_path)
    assert [data[index]["relpath"] for index in range(4)] == ["a.png", "d.png", "d.png", "d.png"]
    assert "b.png (its map has 24 x 12 pixels, it has 24 x 40)" in caplog_ldm.text
    assert "c.png (its map: " in caplog_ldm.text
    expected = data[3]["segmentation"]
    assert np.array_equal(data[1]["segmentation"], expected)


def test_splits_share_no_pair(tmp_path):
    for number in range(12):
        save(tmp_path, f"{number}", 16, 16)
    names = []
    for split in ("train", "validation"):
        data = folder(tmp_path, 16, split=split, val_fraction=0.3)
        names.append({data[index]["relpath"] for index in range(len(data))})
    assert names[0].isdisjoint(names[1])
    assert len(names[0] | names[1]) == 12
