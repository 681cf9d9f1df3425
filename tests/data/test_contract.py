"""What every data set promises, whatever it holds."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ldm.data.coco import CocoBoxes, CocoCaptions
from ldm.data.faces import CelebAHQTrain, FacesHQTrain, FFHQValidation
from ldm.data.folder import ImageFolder, ImageList
from ldm.data.imagenet import ImageNetSRTrain, ImageNetTrain, ImageNetValidation
from ldm.data.layouts import Layouts
from ldm.data.lsun import LSUNBedroomsTrain, LSUNCatsValidation
from ldm.data.maps import SemanticMaps
from ldm.data.masks import Masked
from ldm.data.module import Keyed, collate
from ldm.data.pairs import ImageMapFolder
from ldm.data.shapes import ShapesDataset
from ldm.data.shards import Shards
from ldm.data.superres import SuperResolution
from ldm.tensor import to_image_tensor
from tests.data.photographs import gradient
from tests.data.tars import samples, write_tar

# key: (type of an item's value, dtype and number of dimensions of an array)
CONTRACT = {
    "image": (np.ndarray, np.uint8, 3),
    "LR_image": (np.ndarray, np.uint8, 3),
    "segmentation": (np.ndarray, np.int64, 2),
    "mask": (np.ndarray, np.uint8, 3),
    "masked_image": (np.ndarray, np.uint8, 3),
    "boxes": (np.ndarray, np.float32, 2),
    "box_classes": (np.ndarray, np.int64, 1),
    "layout": (np.ndarray, np.float32, 2),
    "class_label": (int, None, None),
    "sample_id": (int, None, None),
    "caption": (str, None, None),
    "human_label": (str, None, None),
    "synset": (str, None, None),
    "relpath": (str, None, None),
    "file_path_": (str, None, None),
    "relative_file_path_": (str, None, None),
}


def shapes(root):
    return ShapesDataset(16, [1, 2, 3], length=4)


def layouts(root):
    return Layouts(ShapesDataset(16, [1, 2, 3], length=4))


def coco(root):
    return CocoBoxes(root / "captions", root / "boxes.json", 16, flip_p=0.5)


def coco_windows(root):
    place = root / "captions"
    options = {"random_crop": True, "min_crop": 0.5, "captions": root / "captions.json"}
    return CocoBoxes(place, root / "boxes.json", 16, flip_p=0.5, **options)


def coco_captions(root):
    return CocoCaptions(root / "captions", root / "captions.json", 16, random_crop=True, flip_p=0.5)


def shards(root):
    return Shards(str(root / "tars"), 16, split="all", random_crop=True, flip_p=0.5)


def folder(root):
    return ImageFolder(root / "classes", 16, split="all", random_crop=True, flip_p=0.5)


def captioned(root):
    return ImageFolder(root / "captions", [16, 24], split="all", channels=1)


def arrays(root):
    return ImageFolder(root / "arrays", 16, split="all", channels=13, random_crop=True, flip_p=0.5)


def file_list(root):
    return ImageList(root / "list.txt", size=16)


def maps(root):
    return SemanticMaps(ShapesDataset(16, length=3), 25)


def holes(root):
    return Masked(ImageFolder(root / "classes", 16, split="all", random_crop=True))


def holes_by_name(root):
    return Masked(ImageFolder(root / "classes", 16, split="all"), kinds={"thin": 1, "half": 2})


def holes_of_files(root):
    images = ImageFolder(root / "pairs/images", 16, split="all", random_crop=True, flip_p=0.5)
    return Masked(images, masks=root / "pairs/masks")


def blindly_degraded(root):
    return SuperResolution(folder(root), 2, "bsr")


def pairs(root):
    place = root / "pairs"
    return ImageMapFolder(place, 16, num_labels=2, split="all", random_crop=True, flip_p=0.5)


def imagenet(root):
    return ImageNetTrain({"size": 16}, str(root / "imagenet"))


def imagenet_validation(root):
    return ImageNetValidation({"size": 16}, str(root / "imagenet"))


def super_resolution(root):
    return ImageNetSRTrain(16, "pil_bicubic", data_root=str(root / "imagenet"))


def superres_of_shapes(root):
    return SuperResolution(shapes(root))


def superres_of_folder(root):
    return SuperResolution(folder(root), 2, "area")


def bedrooms(root):
    return LSUNBedroomsTrain(data_root=str(root / "captions"), size=16)


def cats(root):
    return LSUNCatsValidation(data_root=str(root / "captions"), size=16)


def celebahq(root):
    return CelebAHQTrain(16, data_root=str(root / "captions"))


def ffhq(root):
    return FFHQValidation(16, data_root=str(root / "captions"))


def both_faces(root):
    place = str(root / "captions")
    return FacesHQTrain(16, celebahq_root=place, ffhq_root=place)


MAKERS = [
    shapes, layouts, coco, folder, captioned, arrays, file_list, imagenet, imagenet_validation,
    super_resolution, superres_of_shapes, superres_of_folder, bedrooms, cats, celebahq, ffhq,
    both_faces, maps, pairs, holes, holes_by_name, holes_of_files, blindly_degraded,
    coco_windows, coco_captions, shards,
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    names = [f"captions/{number}.png" for number in range(4)]
    names += ["classes/cat/a.jpg", "classes/dog/b.jpg"]
    names += [f"imagenet/{part}/n0000000{c}/a.png" for part in ("train", "val") for c in (1, 2)]
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient(32, 48)).save(place / name)
    for number in range(4):
        (place / f"captions/{number}.txt").write_text("a dog on the left\na dog\n")
    (place / "arrays").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).random((32, 48, 13))
        np.save(place / f"arrays/{number}.npy", values)
    for part in ("images", "maps"):
        (place / "pairs" / part).mkdir(parents=True)
        Image.fromarray(gradient(32, 48)[..., 0] % 2).save(place / f"pairs/{part}/a.png")
    (place / "pairs/masks").mkdir()
    Image.fromarray(gradient(32, 48)[..., 0] % 2 * 255).save(place / "pairs/masks/a.png")
    (place / "list.txt").write_text("captions/0.png\nclasses/cat/a.jpg\n")
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 48, "height": 32}
        for number in range(4)
    ]
    boxes = [{"image_id": n, "category_id": 3, "bbox": [10, 2, 20, 9 + n]} for n in range(4)]
    data = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "dog"}]}
    (place / "boxes.json").write_text(json.dumps(data))
    texts = [{"image_id": n % 4, "caption": f"dog {n}"} for n in range(8)]
    (place / "captions.json").write_text(json.dumps({**data, "annotations": texts}))
    write_tar(place / "tars/0.tar", samples(0, 4))
    return place


@pytest.mark.parametrize("make", MAKERS)
def test_items_have_known_keys_with_their_types(root, make):
    data = make(root)
    assert len(data) >= 1
    for index in range(len(data)):
        item = Keyed(data, seed=0)[index]
        assert {"image", "sample_id"} <= item.keys() <= CONTRACT.keys()
        for key, value in item.items():
            kind, dtype, dimensions = CONTRACT[key]
            assert type(value) is kind
            if kind is np.ndarray:
                assert value.dtype == dtype
                assert value.ndim == dimensions


@pytest.mark.parametrize("make", MAKERS)
def test_images_reach_a_network_in_range_and_layout(root, make):
    data = Keyed(make(root), seed=0)
    batch = collate([data[index] for index in range(len(data))])
    images = to_image_tensor(batch["image"])
    assert images.shape == (len(data), data[0]["image"].shape[2], 16, images.shape[3])
    assert -1 <= images.min() < images.max() <= 1


@pytest.mark.parametrize("make", MAKERS)
def test_items_are_functions_of_seed_epoch_and_index(root, make):
    first, copy = Keyed(make(root), 1), pickle.loads(pickle.dumps(Keyed(make(root), 1)))
    for key in (0, len(first) * 3, len(first) * 4 - 1):
        one, two = first[key], copy[key]
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("make", MAKERS)
def test_class_labels_index_the_class_names(root, make):
    data = make(root)
    for index in range(len(data)):
        item = data[index]
        if "class_label" in item:
            assert 0 <= item["class_label"] < len(data.class_names)


@pytest.mark.parametrize("make", MAKERS)
def test_an_index_past_the_end_is_an_index_error(root, make):
    data = make(root)
    with pytest.raises(IndexError):
        data[len(data)]
