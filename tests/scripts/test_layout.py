"""The script that is given layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.cli.sampling.layout import LayoutToImage
from ldm.cli.sampling.layout_files import layout_items, trained_names
from ldm.cli.sampling.record import read_record
from ldm.conditioning.layout import LayoutTokens
from ldm.config import ConfigError, instantiate_model
from ldm.data.coco import CocoBoxes
from ldm.data.layouts import Layouts
from ldm.data.scenes import CLASS_NAMES
from ldm.data.transforms import Framing
from ldm.tensor import to_uint8
from tests.cli.jobs import draw, job
from tests.cli.runs import pixels, script, second_stage, trained, write
from tests.cli.test_preflight_concatenated import by_boxes
from tests.models.diffusion_models import filled

STEPS = ["--steps", 4, "--device", "cpu"]
BOXES = "3 0.1 0.1 0.3 0.4; red circle 0.5 0.5 0.3 0.3"
OBJECTS = [
    {"label": 3, "box": [0.1, 0.1, 0.3, 0.4]},
    {"label": "red circle", "box": [0.5, 0.5, 0.3, 0.3]},
]
COCO = {
    "images": [
        {"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 20}
        for number in (5, 6, 7)
    ],
    "categories": [{"id": 9, "name": "red circle"}, {"id": 4, "name": "blue square"}],
    "annotations": [
        {"image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 10]},
        {"image_id": 5, "category_id": 4, "bbox": [0, 0, 40, 20]},
    ],
}


def by_layout(tau=None, key="layout"):
    """A small model of layouts, on drawn scenes of several things."""
    config = second_stage()
    params = config["model"]["params"]
    params["cond_stage_key"] = key
    params["cond_stage_config"] = tau or {
        "target": "ldm.conditioning.layout.LayoutEmbedder",
        "params": {
            "n_embed": 16,
            "n_layer": 1,
            "num_classes": 24,
            "vocab_size": 125,
            "max_objects": 3,
            "drop_rate": 0.1,
        },
    }
    for name in ("train", "validation"):
        shapes = config["data"]["params"][name]
        shapes["params"] |= {"objects": [1, 2, 3]}
        config["data"]["params"][name] = {
            "target": "ldm.data.layouts.Layouts",
            "params": {"source": shapes},
        }
    return config


def published():
    """A model whose encoder takes tokens, in the published configuration's way."""
    params = {
        "n_embed": 16,
        "n_layer": 1,
        "vocab_size": 100,
        "max_seq_len": 11,
        "use_tokenizer": False,
    }
    target = "ldm.modules.encoders.modules.BERTEmbedder"
    block = by_layout({"target": target, "params": params}, "coordinates_bbox")["model"]
    return built(block)


def built(block):
    """A model whose attention says something from the start on: its weights are by rule."""
    return filled(instantiate_model(block)).eval()


def run_script(*words):
    return exit_code(script("layout2img"), [*map(str, words), *map(str, STEPS)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    configs = {"layout": by_layout(), "class": second_stage()}
    return trained(tmp_path_factory.mktemp("runs"), **configs)


def saved(path, data):
    path.write_text(json.dumps(data))
    return path


def recorded(png):
    """What a picture was drawn from, as its record says."""
    record = read_record(png)
    return record.items[record.index]


# models of the published form


def test_a_published_encoder_is_given_its_tokens(tmp_path):
    model = published()
    drawn = draw(
        model, tmp_path / "a", "--boxes", "3 0.1 0.1 0.3 0.5", "--steps", 4, task=LayoutToImage()
    )
    tokens = LayoutTokens.published(100, 11)(
        [torch.tensor([[3, 0.1, 0.1, 0.3, 0.5]], dtype=torch.float64)]
    )
    assert tokens.tolist() == [[3, 11, 54, *[99] * 6, 0, 99]]  # 0.1 * 9 = 0.9, 3.6, 5.4
    expected = to_uint8(model.sample([0], {"coordinates_bbox": tokens}, steps=4))[0]
    assert np.array_equal(pixels(drawn.path(0)), expected)
    other = {"coordinates_bbox": tokens.where(tokens != 3, 4)}
    assert not np.array_equal(to_uint8(model.sample([0], other, steps=4))[0], expected)


class Boxed:
    """A data set of one box after another."""

    class_names = CLASS_NAMES

    def __init__(self, boxes):
        self.boxes = boxes

    def __len__(self):
        return len(self.boxes)

    def __getitem__(self, index):
        boxes = np.array([self.boxes[index]]).astype(np.float32)
        return {"boxes": boxes, "box_classes": np.array([3])}


def test_the_script_gives_the_tokens_that_data_gave_in_training(tmp_path):
    model = built(by_layout()["model"])
    tokens = model.cond_stage_model.tokens
    assert tokens.sections == 10
    edges = [number / 20 for number in range(20)]
    # 0.5 lies between two of 10 cells, and so does 0.2 + 0.3 or not, by how these are rounded
    boxes = [[a, b, 0.3, 0.05] for a in edges for b in edges if a <= 0.7 and b <= 0.95]
    words = [f"3 {' '.join(f'{number:g}' for number in box)}" for box in boxes]
    flags = [flag for each in words for flag in ("--boxes", each)]
    made = job(model, tmp_path, *flags, task=LayoutToImage())
    items = made.items[:: made.args.n]
    given = made.task.given(model, made.args, items).batch["layout"]
    trained_on = Layouts(Boxed(boxes))
    as_trained = [torch.from_numpy(trained_on[index]["layout"]) for index in range(len(boxes))]
    assert all(torch.equal(*each) for each in zip(given, as_trained, strict=True))
    assert torch.equal(tokens(given), tokens(as_trained))


@pytest.mark.parametrize("size", [None, (16, 16), (16, 32), (32, 16)])
def test_layouts_of_cocos_format_are_those_that_training_would_see(tmp_path, caplog_ldm, size):
    model = built(by_layout()["model"])
    annotations = [
        {"image_id": 5, "category_id": 4, "bbox": [0, 0, 12, 9]},
        {"image_id": 5, "category_id": 9, "bbox": [11, 3, 8, 17]},
        {"image_id": 5, "category_id": 4, "bbox": [15, 15, 0.1, 0.1]},
        {"image_id": 6, "category_id": 4, "bbox": [3, 3, 0, 5]},
        {"image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 10]},
    ]
    data = COCO | {"annotations": annotations, "categories": [{"id": 9, "name": "green circle"}]}
    data["categories"].append({"id": 4, "name": "green square"})
    path = saved(tmp_path / "coco.json", data)
    for number in (5, 6, 7):
        Image.new("RGB", (40, 20)).save(tmp_path / f"{number}.jpg")
    found = layout_items([str(path)], lambda: (), 24, Framing.of(size or model.image_size))
    trained_on = Layouts(CocoBoxes(tmp_path, path, size or 16))
    assert [item["image"] for item in found] == ["5.jpg", "7.jpg"]
    for item, index in zip(found, range(len(trained_on)), strict=True):
        np.testing.assert_array_equal(np.float32(item["layout"]), trained_on[index]["layout"])
    assert caplog_ldm.text.count("1 annotations are left out: annotation 3: box [3.0, 3.0, 0") == 2


def test_a_picture_depends_on_its_layout(tmp_path):
    model = built(by_layout()["model"])
    layouts = ["3 0 0 0.5 0.5", "3 0.5 0.5 0.5 0.5", "9 0 0 0.5 0.5", "3 0 0 0.5 0.5"]
    drawn = []
    for index, layout in enumerate(layouts):
        words = ["--boxes", layout, "--steps", 4, "--scale", 2]
        made = draw(model, tmp_path / str(index), *words, task=LayoutToImage())
        drawn.append(pixels(made.path(0)))
    assert np.array_equal(drawn[0], drawn[3])
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


class Gone:
    """A data set whose files are not there any more."""

    def __init__(self, root):
        (Path(root) / "list.txt").read_text()


@pytest.mark.parametrize("target", [f"{__name__}.Gone", "gone.away.Data"])
def test_data_that_is_gone_has_no_names(tmp_path, caplog_ldm, target):
    config = by_layout()
    config["data"]["params"]["train"] = {"target": target, "params": {"root": str(tmp_path)}}
    names = trained_names("a.ckpt", write(tmp_path / "a.yaml", config))
    assert names() == names() == ()
    assert caplog_ldm.text.count("the names of this model's classes are not known") == 1


def test_names_are_refused_where_no_data_is_known(tmp_path):
    with pytest.raises(ValueError, match="run"):
        job(published(), tmp_path, "--boxes", BOXES, task=LayoutToImage())


def test_a_sequence_of_another_length_is_no_layout(tmp_path):
    model = published()
    model.cond_stage_model.transformer.max_seq_len = 10
    with pytest.raises(ValueError, match="coordinates_bbox, which is no layout: max_seq_len: 10"):
        job(model, tmp_path, "--boxes", "3 0 0 1 1", task=LayoutToImage())


def test_boxes_are_painted_over_pictures_of_the_side_of_training_alone(tmp_path):
    model, words = built(by_boxes(size=8)["model"]), ["--boxes", "3 0 0 0.5 1"]
    message = "--size 32 32: BoxMap paints boxes over 16 x 16 pixels; expected --size 16 16"
    with pytest.raises(ConfigError, match=message):
        job(model, tmp_path, *words, "--size", 32, 32, task=LayoutToImage())
    assert len(job(model, tmp_path, *words, "--size", 16, 16, task=LayoutToImage()).items) == 1


# from a run


@pytest.mark.slow
def test_words_and_files_say_the_same(runs, tmp_path):
    path = saved(tmp_path / "a.json", OBJECTS)
    words = [runs["layout"], "--skip-grid", "--out"]
    assert run_script(*words, tmp_path / "a", path, "--n", 2) == 0
    assert run_script(*words, tmp_path / "b", "--boxes", BOXES, "--n", 2) == 0
    label = CLASS_NAMES.index("red circle")
    for index in range(2):
        one, two = (tmp_path / f"{name}/0000{index}.png" for name in ("a", "b"))
        assert np.array_equal(pixels(one), pixels(two))
        told = [[3, 0.1, 0.1, 0.3, 0.4], [label, 0.5, 0.5, 0.3, 0.3]]
        assert recorded(one)["layout"] == recorded(two)["layout"] == told
    assert recorded(tmp_path / "a/00000.png")["source"] == str(path)


@pytest.mark.slow
def test_cocos_format_gives_a_layout_for_each_image_with_objects(runs, tmp_path, caplog_ldm):
    (tmp_path / "in/deep").mkdir(parents=True)
    saved(tmp_path / "in/a.json", OBJECTS)
    saved(tmp_path / "in/deep/coco.json", COCO)
    assert run_script(runs["layout"], tmp_path / "in", "--out", tmp_path / "out") == 0
    items = [recorded(tmp_path / f"out/0000{index}.png") for index in range(3)]
    assert [item.get("image") for item in items] == [None, "5.jpg", "7.jpg"]
    assert items[1]["layout"] == [[CLASS_NAMES.index("blue square"), 0, 0, 1, 1]]
    # of 40 x 20 pixels a square shows 20 x 20, from 10 to 30
    assert items[2]["layout"] == [[CLASS_NAMES.index("red circle"), 0, 0.25, 1, 0.5]]
    assert "1 images without objects are left out" in caplog_ldm.text
    assert (tmp_path / "out/grid.png").is_file()


@pytest.mark.slow
def test_a_picture_is_drawn_again_from_its_record(runs, tmp_path, caplog_ldm):
    path = saved(tmp_path / "a.json", OBJECTS)
    words = [runs["layout"], path, "--boxes", "1 0 0 1 1", "--n", 2, "--seed", 9, "--scale", 2]
    assert run_script(*words, "--npz", "--out", tmp_path / "out") == 0
    assert np.load(tmp_path / "out/images.npz")["arr_0"].shape == (4, 16, 16, 3)
    path.unlink()  # the record holds the layout itself
    again = ["--from-png", str(tmp_path / "out/00002.png"), "--out", str(tmp_path / "b")]
    assert exit_code(script("layout2img"), again) == 0
    assert "the same to the last bit" in caplog_ldm.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], 'no layouts: give --boxes "LABEL LEFT TOP WIDTH HEIGHT" or JSON files'),
        (["none.json"], "none.json: there is no such file or directory"),
        (["empty"], "empty: holds no layouts; expected files ending in .json"),
        (["broken.json"], "broken.json: is no JSON"),
        (["other.json"], "other.json: holds no layout; expected a list of objects"),
        (["number.json"], "number.json: holds no layout; expected a list of objects"),
        (["nothing.json"], "nothing.json: holds no objects"),
        (["keys.json"], "keys.json: object 1 is {'class': 3}; expected a list of objects"),
        (["box.json"], "box.json: object 1: box [0, 0, 1]; expected four numbers"),
        (["large.json"], "large.json: object 1: box [0.5, 0, 1, 1]; expected left, top"),
        (["label.json"], "label.json: object 1: label 24; expected a whole number 0 to 23"),
        (["kind.json"], "kind.json: object 1: label 3.5; expected a whole number, or the name"),
        (["name.json"], "'redcircle' is none of the 24 classes; did you mean 'red circle'?"),
        (["coco.json"], "coco.json: 1 annotations are left out: annotation 0: box [30.0, 0.0, 20"),
        (["coco.json"], "coco.json: there are no layouts"),
        (["--size", 10, 16, "coco.json"], "--size 10 16: expected multiples of 4 pixels"),
        (["alien.json"], "alien.json: label 'cat' is none of the 24 classes"),
        (["--boxes", ";"], "--boxes: holds no objects"),
        (["--boxes", "3 0 0 1 1; 3 0 0 1"], "--boxes: object 1: '3 0 0 1'; expected LABEL LEFT"),
        (["--boxes", "3 0 0 1 x"], "--boxes: object 0: '3 0 0 1 x'; expected LABEL LEFT"),
        (["--boxes", "3 0 nan 1 1"], "--boxes: object 0: box [0, nan, 1, 1]; expected finite"),
        (["--boxes", "3 0 0 0 1"], "--boxes: object 0: box [0, 0, 0, 1]; expected a width"),
        (["--boxes", "-1 0 0 1 1"], "--boxes: object 0: label '-1' is none of the 24 classes"),
        (["--boxes", "3 0 0 1 1", "--prompt", "a"], "this model was trained without captions"),
        (["--boxes", "3 0 0 1 1", "--class", 3], "this model was trained without classes"),
    ],
)
def test_what_cannot_be_drawn_is_explained(
    runs, tmp_path, monkeypatch, caplog_ldm, words, expected
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("[{")
    good = OBJECTS[0]
    files = {
        "other": {"objects": [good]},
        "number": 3,
        "nothing": [],
        "keys": [good, {"class": 3}],
        "box": [good, {**good, "box": [0, 0, 1]}],
        "large": [good, {**good, "box": [0.5, 0, 1, 1]}],
        "label": [good, {**good, "label": 24}],
        "kind": [good, {**good, "label": 3.5}],
        "name": [good, {**good, "label": "redcircle"}],
        "coco": COCO | {"annotations": [{**COCO["annotations"][0], "bbox": [30, 0, 20, 5]}]},
        "alien": COCO | {"categories": [{"id": 9, "name": "bird"}, {"id": 4, "name": "cat"}]},
    }
    for name, data in files.items():
        saved(tmp_path / f"{name}.json", data)
    assert run_script(runs["layout"], *words, "--out", "out") == 2
    assert expected in caplog_ldm.text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_model_is_drawn_by_its_own_script_and_this_one_by_no_other(
    runs, tmp_path, caplog_ldm
):
    words = ["--boxes", "3 0 0 1 1", "--out", tmp_path / "out"]
    assert run_script(runs["class"], *words) == 2
    assert "draw it with scripts/sample.py" in caplog_ldm.text
    for name in ("sample", "txt2img"):
        extra = ["--prompt", "a"] if name == "txt2img" else []
        assert exit_code(script(name), [str(runs["layout"]), *extra, "--device", "cpu"]) == 2
    assert caplog_ldm.text.count("draw it with scripts/layout2img.py") == 2
