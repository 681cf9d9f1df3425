"""Neighbours in a database: found exactly, kept in a file, given to the items of a data set."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from ldm.config import ConfigError, instantiate_from_config
from ldm.data.folder import ImageFolder
from ldm.data.mapped import mapped_arrays, write_arrays
from ldm.data.retrieval import Index, Neighbours, nearest_rows
from ldm.data.shapes import ShapesDataset
from tests.data.indexes import keys_of, keys_of_names, save_index

DATABASE = np.random.default_rng(1).standard_normal((50, 6)).astype(np.float32)


def by_sorting(queries, k, own=None):
    """The rows of the k largest cosines, by computing and sorting all of them in float64."""
    unit = DATABASE / np.linalg.norm(DATABASE.astype(float), axis=1, keepdims=True)
    cosines = queries.astype(float) @ unit.T
    if own is not None:
        cosines[np.arange(len(queries)), own] = -np.inf
    return np.argsort(-cosines, axis=1)[:, :k]


@pytest.mark.parametrize("rows_at_a_time", [8192, 7, 1])
def test_the_nearest_rows_are_those_of_all_cosines_sorted(rows_at_a_time, monkeypatch):
    monkeypatch.setattr("ldm.data.retrieval._ROWS", rows_at_a_time)
    queries = np.random.default_rng(2).standard_normal((9, 6)).astype(np.float32)
    found = nearest_rows(torch.from_numpy(queries), DATABASE, 5)
    assert found.tolist() == by_sorting(queries, 5).tolist()


def test_the_nearest_of_an_image_of_the_database_is_itself_unless_it_does_not_count():
    queries, own = torch.from_numpy(DATABASE[10:20]), torch.arange(10, 20)
    assert nearest_rows(queries, DATABASE, 1)[:, 0].tolist() == own.tolist()
    found = nearest_rows(queries, DATABASE, 3, own=own)
    assert found.tolist() == by_sorting(DATABASE[10:20], 3, own.numpy()).tolist()


# files


def test_what_is_written_is_what_the_library_reads_and_the_other_way_round(tmp_path):
    arrays = {
        "a": np.arange(3, dtype=np.uint8),
        "b": DATABASE.astype(np.float16),
        "c": np.array([[-1, 2**40]], np.int64),
        "none": np.empty((0, 4), np.float32),
    }
    write_arrays(tmp_path / "ours", arrays, {"kind": "test"})
    save_file(arrays, tmp_path / "theirs", {"kind": "test"})
    mapped, metadata = mapped_arrays(tmp_path / "theirs")
    assert metadata == {"kind": "test"}
    for read in (load_file(tmp_path / "ours"), mapped, mapped_arrays(tmp_path / "ours")[0]):
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            assert np.array_equal(read[name], array)
    assert isinstance(mapped["b"], np.memmap)


@pytest.mark.parametrize("content", [b"", b"text, not numbers", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "index.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is no safetensors file, or is damaged"):
        Index.read(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "index.safetensors"
    save_index(path, [1], [[0]])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="it ends early"):
        Index.read(path)


def test_another_file_of_arrays_is_no_index(tmp_path):
    save_file({"weight": DATABASE}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="holds weight; expected an index of scripts/build_index"):
        Index.read(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="index: there is no file"):
        Index.read(tmp_path / "none")


def test_an_index_finds_the_nearest_of_a_query(tmp_path):
    vectors = save_index(tmp_path / "index", [1], [[0]])
    index = Index.read(tmp_path / "index")
    assert index.nearest(torch.from_numpy(vectors[4:5].astype(np.float32)), 2)[0, 0] == 4
    assert index.names[4] == "4.png"
    with pytest.raises(ConfigError, match="11 neighbours of 10 images"):
        index.nearest(torch.zeros(1, 8), 11)


# items

SOURCE = {"target": "ldm.data.shapes.ShapesDataset", "params": {"size": 16, "length": 4}}
ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 2, 4]]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """The index of four scenes, and its embeddings."""
    path = tmp_path_factory.mktemp("index") / "index.safetensors"
    return str(path), save_index(path, keys_of(ShapesDataset(16, length=4)), ROWS)


def test_items_get_the_embeddings_of_their_nearest(indexed):
    path, vectors = indexed
    config = {
        "target": "ldm.data.retrieval.Neighbours",
        "params": {"source": SOURCE, "index": path, "k": 2},
    }
    data = instantiate_from_config(config)
    for i, rows in enumerate(ROWS):
        found = data[i]["neighbours"]
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors[rows[:2]].astype(np.float32))
        assert np.array_equal(data[i]["image"], ShapesDataset(16, length=4)[i]["image"])


def test_neighbours_chosen_at_random_are_of_those_in_the_index_and_follow_the_generator(indexed):
    path, vectors = indexed
    data = Neighbours(SOURCE, path, k=2, choose="random")
    seen = set()
    for seed in range(40):
        found = data.item(1, np.random.default_rng(seed))["neighbours"]
        assert np.array_equal(found, data.item(1, np.random.default_rng(seed))["neighbours"])
        same = (vectors[:, None] == found).all(axis=2)
        seen.add(tuple(np.flatnonzero(same.any(axis=1)).tolist()))
    assert seen == {(4, 5), (4, 6), (5, 6)}


def test_fewer_different_neighbours_are_repeated(indexed):
    path, _ = indexed
    data = Neighbours(SOURCE, path, k=3, fewest=1)
    counts = set()
    for seed in range(40):
        found = data.item(0, np.random.default_rng(seed))["neighbours"]
        assert found.shape == (3, 8)
        counts.add(len(np.unique(found, axis=0)))
    assert counts == {1, 2, 3}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 4}, "k: 4; expected 1 to 3, the neighbours in"),
        ({"fewest": 3, "k": 2}, "fewest: 3; expected 1 to k, 2"),
        ({"choose": "nearst"}, "choose: 'nearst'; .*did you mean 'nearest'"),
        ({"split": "tran"}, "split: 'tran'; .* has the neighbours of train; did you mean 'train'"),
    ],
)
def test_what_the_index_does_not_have_is_refused(indexed, params, message):
    with pytest.raises(ValueError, match=message):
        Neighbours(SOURCE, indexed[0], **params)


@pytest.mark.parametrize(
    ("params", "named"),
    [({"seed": 1}, "item 0"), ({"length": 5}, "item 4 of 5"), ({"split": "validation"}, "item 0")],
)
def test_the_index_of_another_data_set_is_refused(indexed, params, named):
    source = {**SOURCE, "params": {**SOURCE["params"], **params}}
    with pytest.raises(ConfigError, match=f"is of another data set: {named} is not in it"):
        Neighbours(source, indexed[0], k=1)


def test_a_beginning_of_the_data_set_may_use_its_index(indexed):
    source = {**SOURCE, "params": {**SOURCE["params"], "length": 2}}
    assert len(Neighbours(source, indexed[0], k=1)) == 2


def test_files_are_found_by_their_names(tmp_path):
    names = ["a.png", "b/c.png", "d.png"]
    (tmp_path / "images" / "b").mkdir(parents=True)
    for name in names:
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / name)
    # in another order than the folder's, with one more
    path = tmp_path / "index.safetensors"
    keys = keys_of_names(["d.png", "x.png", "b/c.png", "a.png"])
    vectors = save_index(path, keys, [[1], [2], [3], [4]])
    folder = ImageFolder(tmp_path / "images", 16, split="all")
    data = Neighbours(folder, str(path), k=1)
    for i, row in enumerate([4, 3, 1]):
        assert np.array_equal(data[i]["neighbours"][0], vectors[row].astype(np.float32))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / "e.png")
    more = ImageFolder(tmp_path / "images", 16, split="all")
    with pytest.raises(ConfigError, match=r"is of another data set: e.png is not in it"):
        Neighbours(more, str(path), k=1)


class TwoOfOneName(ShapesDataset):
    """Scenes of which two and two have one name, as files of two directories may."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "relpath": f"{index % 2}.png"}


def test_items_of_one_name_have_neighbours_of_their_own(tmp_path):
    path = tmp_path / "index.safetensors"
    vectors = save_index(path, keys_of(TwoOfOneName(16, length=4)), ROWS)
    data = Neighbours(TwoOfOneName(16, length=4), str(path), k=1)
    for index, rows in enumerate(ROWS):
        found = data[index]["neighbours"][0]
        assert np.array_equal(found, vectors[rows[0]].astype(np.float32))
