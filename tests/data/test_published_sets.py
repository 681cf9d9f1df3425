import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.faces import CelebAHQTrain, CelebAHQValidation, FacesHQTrain, FacesHQValidation
from ldm.data.imagenet import (
    ImageNetSRTrain,
    ImageNetSRValidation,
    ImageNetTrain,
    ImageNetValidation,
)
from ldm.data.lsun import LSUNBase, LSUNChurchesTrain, LSUNChurchesValidation
from ldm.data.module import DataModuleFromConfig
from ldm.data.superres import low_resolution
from ldm.data.transforms import resize
from tests.data.photographs import gradient
from tests.reference_configs import NAMES, published_config

RELEASED = ("ldm.data.imagenet", "ldm.data.lsun", "ldm.data.faceshq", "taming.data.faceshq")


def save(directory, *names, height=40, width=60):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient(height, width)).save(directory / name)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory to work in, with every released data set in its default place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"{number:04}.png" for number in range(40)]
    for name in ("lsun/churches", "lsun/bedrooms", "celebahq", "ffhq"):
        save(tmp_path / "data" / name, *names)
    for part in ("train", "validation"):
        place = tmp_path / "cache/autoencoders/data" / f"ILSVRC2012_{part}"
        save(place / "data", "n01440764/a.png", "n01440764/b.png", "n00000001/c.png")
        (place / "synset_human.txt").write_text("n01440764 tench, Tinca tinca\n")
    return tmp_path


def released_splits():
    for name in NAMES:
        params = published_config(name).get("data", {}).get("params", {})
        for split in ("train", "validation"):
            if params.get(split, {}).get("target", "").startswith(RELEASED):
                yield pytest.param(params[split], id=f"{name}-{split}")


@pytest.mark.parametrize("config", list(released_splits()))
def test_published_data_blocks_build_with_the_data_in_place(here, config):
    data = instantiate_from_config(config)
    assert data[len(data) - 1]["image"].shape == (256, 256, 3)


def test_imagenet_labels_are_the_sorted_synsets(here):
    data = ImageNetTrain({"size": 32})
    assert len(data) == 3
    items = {item["relpath"]: item for item in data}
    assert items["n00000001/c.png"]["class_label"] == 0
    assert items["n01440764/a.png"]["class_label"] == 1
    assert items["n01440764/a.png"]["human_label"] == "tench, Tinca tinca"
    assert items["n00000001/c.png"]["human_label"] == "n00000001"


def of_imagenet(split):
    return {"target": f"ldm.data.imagenet.ImageNet{split}", "params": {"config": {"size": 32}}}


def test_a_validation_set_without_every_class_numbers_them_as_training_does(here):
    place = here / "cache/autoencoders/data/ILSVRC2012_validation/data"
    (place / "n00000001/c.png").unlink()
    assert ImageNetValidation({"size": 32})[0]["class_label"] == 0  # by itself
    data = DataModuleFromConfig(2, of_imagenet("Train"), of_imagenet("Validation"))
    data.setup()
    items = list(data.datasets["validation"])
    assert [item["class_label"] for item in items] == [1, 1]
    assert {item["human_label"] for item in items} == {"tench, Tinca tinca"}


def test_a_validation_set_with_a_class_of_its_own_is_an_error(here):
    save(here / "cache/autoencoders/data/ILSVRC2012_validation/data", "n01440763/d.png")
    data = DataModuleFromConfig(2, of_imagenet("Train"), of_imagenet("Validation"))
    message = r"^data.params.validation: .*'n01440763' is none of the 2 .*'n01440764'"
    with pytest.raises(ConfigError, match=message):
        data.setup()


def test_sets_whose_labels_mean_two_things_are_an_error(here):
    faces = {"target": "ldm.data.faces.FacesHQValidation", "params": {"size": 32}}
    data = DataModuleFromConfig(2, of_imagenet("Train"), faces)
    message = r"^data.params.validation: its classes \(CelebA-HQ, FFHQ\) are not those of"
    with pytest.raises(ConfigError, match=message):
        data.setup()


@pytest.mark.parametrize(
    ("kind", "is_random"), [(ImageNetTrain, True), (ImageNetValidation, False)]
)
def test_imagenet_crops_at_random_in_training_only(here, kind, is_random):
    data = kind({"size": 32})
    crops = {data.item(0, np.random.default_rng(seed))["image"].tobytes() for seed in range(10)}
    assert (len(crops) > 1) is is_random


@pytest.mark.parametrize("layout", ["train", "ILSVRC2012_train/data"])
def test_imagenet_is_found_in_either_layout(tmp_path, layout):
    save(tmp_path / layout, "n01440764/a.png")
    assert len(ImageNetTrain({"size": 32}, data_root=str(tmp_path))) == 1


def test_imagenet_validation_may_be_called_val(tmp_path):
    save(tmp_path / "val", "n01440764/a.png")
    assert len(ImageNetValidation({"size": 32}, data_root=str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        (lambda root: None, r"data_root: there is no directory"),
        (lambda root: save(root, "a.png"), r"data_root: nothing for train in .* expected ILSVRC"),
        (lambda root: save(root / "train", "a.png"), "images outside of synset directories"),
    ],
)
def test_missing_imagenet_names_the_key_and_the_layout(tmp_path, prepare, named):
    prepare(tmp_path / "imagenet")
    with pytest.raises(ConfigError, match=named):
        ImageNetTrain(data_root=str(tmp_path / "imagenet"))


def test_imagenet_option_that_does_not_exist_is_named(here):
    with pytest.raises(ConfigError, match=r"config\.sizes: .*did you mean 'size'"):
        ImageNetTrain({"sizes": 256})


FILTERS = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
OPENCV = [f"cv_{name}" for name in ("nearest", "bilinear", "bicubic", "area", "lanczos")]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("kind", [ImageNetSRTrain, ImageNetSRValidation])
def test_low_resolution_copy_is_the_image_degraded(here, kind, name):
    item = kind(32, f"pil_{name}", downscale_f=4)[0]
    assert item["image"].shape == (32, 32, 3)
    np.testing.assert_array_equal(item["LR_image"], resize(item["image"], 8, 8, name))


@pytest.mark.parametrize("name", OPENCV)
def test_opencvs_filters_have_their_published_names(here, name):
    item = ImageNetSRTrain(32, name, downscale_f=4)[0]
    np.testing.assert_array_equal(item["LR_image"], low_resolution(item["image"], 4, name))


@pytest.mark.parametrize(("name", "method"), [("bsrgan", "bsr"), ("bsrgan_light", "bsr_light")])
def test_blind_degradation_is_drawn_anew_for_each_draw_of_an_item(here, name, method):
    data = ImageNetSRTrain(32, name, min_crop_f=1.0, random_crop=False)
    items = [data.item(0, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    small = [item["LR_image"] for item in items]
    assert small[0].shape == (8, 8, 3)
    assert np.array_equal(small[0], small[1])
    assert not np.array_equal(small[0], small[2])
    assert np.array_equal(items[0]["image"], items[2]["image"])
    rng = np.random.default_rng(0)
    rng.random()  # whether to mirror
    np.testing.assert_array_equal(small[0], low_resolution(items[0]["image"], 4, method, rng))


def test_super_resolution_window_is_a_fraction_of_the_short_side(here):
    # the picture is 40 x 60 and red grows by 255 over its width
    data = ImageNetSRTrain(32, "pil_box", min_crop_f=0.5, max_crop_f=0.5, random_crop=False)
    red = data[0]["image"][16, :, 0].astype(int)
    assert red[-1] - red[0] == pytest.approx(255 * 20 / 60, abs=5)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"degradation": "bsr_gan"}, "'bsr_gan'; expected one of bsrgan, .*mean 'bsrgan'"),
        ({"degradation": "cv_cubic"}, "cv_lanczos, pil_nearest.*did you mean 'cv_bicubic'"),
        ({"degradation": "pil_box", "downscale_f": 5}, "downscale_f: 5; expected a divisor"),
        ({"degradation": "pil_box", "min_crop_f": 1.5}, "crops of 1.5"),
    ],
)
def test_impossible_degradation_is_named(here, parameters, named):
    with pytest.raises(ConfigError, match=named):
        ImageNetSRTrain(32, **parameters)


def test_lsun_takes_the_names_of_its_list(here):
    Path("data/lsun/church_outdoor_train.txt").write_text("0003.webp\n0001.webp\n")
    data = LSUNChurchesTrain(size=32)
    assert [item["relative_file_path_"] for item in data] == ["0001.png", "0003.png"]
    assert data[0]["file_path_"] == "data/lsun/churches/0001.png"


def test_lsun_without_a_list_is_split_by_hash_and_says_so(here, caplog_ldm):
    train, validation = LSUNChurchesTrain(size=32), LSUNChurchesValidation(size=32)
    assert len(train) + len(validation) == 40
    assert len(validation) >= 1
    assert "there is no list data/lsun/church_outdoor_val.txt" in caplog_ldm.text


def test_lsun_mirrors_in_training_only(here):
    assert LSUNChurchesTrain().framing.flip_p == 0.5
    assert LSUNChurchesValidation().framing.flip_p == 0
    assert LSUNChurchesTrain(flip_p=0.1).framing.flip_p == 0.1


@pytest.mark.parametrize("interpolation", ["linear", "bilinear", "bicubic", "lanczos"])
def test_lsun_takes_the_published_interpolations(here, interpolation):
    data = LSUNBase("absent.txt", "data/lsun/churches", 32, interpolation)
    assert data[0]["image"].shape == (32, 32, 3)


def test_missing_lsun_names_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="data_root: there is no directory data/lsun/churches"):
        LSUNChurchesTrain(size=256)


def test_face_list_of_arrays_finds_the_images_of_that_name(here):
    Path("data/celebahqtrain.txt").write_text("0005.npy\n0002.npy\n0099.npy\n")
    assert [item["relpath"] for item in CelebAHQTrain(32)] == ["0002.png", "0005.png"]


@pytest.mark.parametrize(
    ("data", "where", "name"),
    [
        (CelebAHQTrain, "data/celebahq", "celebahqtrain.txt"),
        (LSUNChurchesTrain, "data/lsun/churches", "church_outdoor_train.txt"),
    ],
)
def test_a_list_is_looked_for_beside_the_directory_that_is_given(here, data, where, name):
    elsewhere = shutil.copytree(where, "elsewhere/images")
    Path("data").joinpath(name).write_text("0001.png\n")  # of other data
    Path("elsewhere").joinpath(name).write_text("0003.png\n0002.png\n")
    assert data(size=32, data_root=elsewhere).names == ["0002.png", "0003.png"]


def test_missing_images_of_a_list_are_counted(here, caplog_ldm):
    Path("data/celebahqvalidation.txt").write_text("0005.npy\n0099.npy\n")
    CelebAHQValidation(32)
    assert "1 of its 2 images are missing" in caplog_ldm.text


def test_faces_keep_the_wanted_keys(here):
    assert set(CelebAHQTrain(32, keys=["image"])[0]) == {"image"}


@pytest.mark.parametrize("kind", [FacesHQTrain, FacesHQValidation])
def test_both_face_sets_are_told_apart_by_their_label(here, kind):
    data = kind(32)
    items = list(data)
    first = len(data._parts[0])
    assert [item["class_label"] for item in items] == [0] * first + [1] * (len(data) - first)
    assert "celebahq" in items[0]["file_path_"]
    assert "ffhq" in items[-1]["file_path_"]
