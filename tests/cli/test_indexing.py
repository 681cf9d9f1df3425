"""scripts/build_index.py: exact neighbours, the same after an interruption, of the right sets."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.cli.exits import exit_code
from ldm.conditioning.clip import FrozenClipImageEmbedder
from ldm.config import instantiate_from_config
from ldm.data.retrieval import Index, nearest_rows
from ldm.data.shapes import ShapesDataset
from tests.cli.clips import save_clip
from tests.cli.runs import script

K = 3
HALF = {"rtol": 0, "atol": 1e-3}  # of float16, for numbers below 1
COUNTS = {"train": 12, "validation": 5}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def config(tmp_path):
    """A configuration whose sets want the index that is still to be built."""
    out = str(tmp_path / "index.safetensors")
    splits = {
        split: {
            "target": "ldm.data.retrieval.Neighbours",
            "params": {
                **{"index": out, "split": split, "k": K},
                "source": {
                    "target": "ldm.data.shapes.ShapesDataset",
                    "params": {"size": 16, "length": count, "split": split},
                },
            },
        }
        for split, count in COUNTS.items()
    }
    data = {
        "target": "ldm.data.module.DataModuleFromConfig",
        "params": {"batch_size": 2, **splits},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    return str(path)


def build(source, clip, out, *words):
    words = [source, "--clip", clip, "--out", out, "--k", K, "--batch-size", 4, *words]
    return exit_code(script("build_index"), [*map(str, words), "--device", "cpu"])


def embedded(clip, split):
    """Embeddings of a split, one image at a time."""
    embedder, data = FrozenClipImageEmbedder(clip), ShapesDataset(16, length=12, split=split)
    images = [torch.from_numpy(data[i]["image"])[None] for i in range(COUNTS[split])]
    return torch.cat([embedder.encode(image)[:, 0] for image in images])


def test_an_index_holds_the_embeddings_and_the_nearest_of_each_set(config, clip, tmp_path):
    out = tmp_path / "index.safetensors"
    assert build(config, clip, out) == 0
    assert not (tmp_path / "index.safetensors.parts").exists()
    index, train = Index.read(out), embedded(clip, "train")
    torch.testing.assert_close(torch.from_numpy(index.embedded(np.arange(12))), train, **HALF)
    database = torch.from_numpy(index.embedded(np.arange(12))).double()
    own = database @ database.T
    own.fill_diagonal_(-1)
    apart = embedded(clip, "validation").half().double() @ database.T
    for split, cosines in (("train", own), ("validation", apart)):
        rows = torch.from_numpy(np.array(index.tables[split].neighbours)).long()
        assert rows.shape == (COUNTS[split], K)
        torch.testing.assert_close(cosines.gather(1, rows), cosines.topk(K).values, **HALF)
    assert all(row not in near for row, near in enumerate(index.tables["train"].neighbours))
    block = yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["params"]["validation"]
    assert instantiate_from_config(block)[4]["neighbours"].shape == (K, 8)


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(
    config, clip, tmp_path, monkeypatch
):
    assert build(config, clip, tmp_path / "whole") == 0
    read, reads = ShapesDataset.__getitem__, []

    def stopped(data, index):
        reads.append(index)
        if index == 9:
            raise KeyboardInterrupt
        return read(data, index)

    monkeypatch.setattr("ldm.cli.indexing._SAVED", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(ShapesDataset, "__getitem__", stopped)
        assert build(config, clip, tmp_path / "again") == 130
    assert not (tmp_path / "again").exists()
    state = json.loads((tmp_path / "again.parts" / "state.json").read_text())
    assert state["done"] == {"database": 8}
    embedder, seen = FrozenClipImageEmbedder.forward, []

    def counted(self, images):
        seen.append(len(images))
        return embedder(self, images)

    monkeypatch.setattr(FrozenClipImageEmbedder, "forward", counted)
    assert build(config, clip, tmp_path / "again") == 0
    assert seen == [4, 4, 1], "four of the database, then the five for validation"
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_was_begun_otherwise_is_not_gone_on_with(config, clip, tmp_path, caplog):
    parts = tmp_path / "index.parts"
    parts.mkdir()
    (parts / "state.json").write_text(json.dumps({"told": {"source": "other"}, "done": {}}))
    assert build(config, clip, tmp_path / "index") == 2
    assert "was begun with source other, not" in caplog.text


def test_neighbours_come_from_another_directory(config, clip, tmp_path, caplog):
    data, images = ShapesDataset(16, length=5), tmp_path / "images"
    images.mkdir()
    for i in range(5):
        Image.fromarray(data[i]["image"]).save(images / f"{i}.png")
    out = tmp_path / "index"
    assert build(config, clip, out, "--database", images) == 0
    index = Index.read(out)
    assert index.names == [f"{i}.png" for i in range(5)]
    # the images are the training set's first, which here are somebody else's
    assert index.tables["train"].neighbours[:5, 0].tolist() == list(range(5))
    assert build(config, clip, tmp_path / "more", "--database", images, "--k", 6) == 2
    assert "--k 6: the database has 5 images" in caplog.text
    assert build(images, clip, tmp_path / "folder") == 0
    near = Index.read(tmp_path / "folder").tables["train"].neighbours
    assert all(row not in rows for row, rows in enumerate(near))


def folder(path, count):
    """A directory of so many images."""
    path.mkdir()
    for i in range(count):
        Image.fromarray(ShapesDataset(16, length=count)[i]["image"]).save(path / f"{i}.png")
    return path


def test_an_image_is_not_its_own_neighbour_in_a_database_that_has_it(clip, tmp_path, caplog):
    images = folder(tmp_path / "images", 6)
    assert build(images, clip, tmp_path / "index", "--database", images) == 0
    near = Index.read(tmp_path / "index").tables["train"].neighbours
    assert all(row not in rows for row, rows in enumerate(near))
    assert build(images, clip, tmp_path / "more", "--database", images, "--k", 6) == 2
    assert "--k 6: the database has 6 images; expected 7 or more" in caplog.text


def test_neighbours_are_compared_in_full_precision_whatever_embeds_them(
    config, clip, tmp_path, monkeypatch
):
    seen = []

    def compared(queries, *args, **options):
        seen.append(torch.is_autocast_enabled("cpu"))
        return nearest_rows(queries, *args, **options)

    monkeypatch.setattr("ldm.cli.indexing.nearest_rows", compared)
    assert build(config, clip, tmp_path / "index", "--precision", "bf16") == 0
    assert seen == [False, False]


def test_what_a_configuration_leaves_open_is_given_or_asked_for(clip, tmp_path, caplog):
    images = folder(tmp_path / "images", 5)
    source = {"target": "ldm.data.folder.ImageFolder", "params": {"root": "???", "split": "all"}}
    wrapped = {"target": "ldm.data.retrieval.Neighbours", "params": {"index": "???"}}
    wrapped["params"]["source"] = source
    source["params"]["size"] = 16
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"params": {"train": wrapped}}}), encoding="utf-8")
    assert build(path, clip, tmp_path / "index") == 2
    key = "data.params.train.params.source.params.root"
    assert f"{key}: a value is needed here" in caplog.text
    assert build(path, clip, tmp_path / "index", f"{key}={images}") == 0
    assert len(Index.read(tmp_path / "index").embeddings) == 5
    assert build(images, clip, tmp_path / "index", f"{key}={images}") == 2
    assert "is a directory of images" in caplog.text
