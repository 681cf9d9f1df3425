import hashlib
import io
import json
import sys
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from webdataset.autodecode import Decoder, imagehandler
from webdataset.tariterators import group_by_keys, tar_file_expander

from ldm.cli.exits import EXIT_CONFIG
from ldm.data.shards import Shards
from ldm.preparation import laion
from tests.preparation.raw import picture
from tests.preparation.scripts import run
from tests.preparation.stopping import Stopped, times

PER_SHARD = 4
NUM_ROWS = 7
ABSENT = 3  # could not be downloaded
SIZES = {i: (16 + 8 * i, 24) for i in range(NUM_ROWS)}  # width, height
KEYS = [f"{i // PER_SHARD:05}{i % PER_SHARD:04}" for i in range(NUM_ROWS)]
URLS = [f"https://example.org/{i}.jpg" for i in range(NUM_ROWS)]
CAPTIONS = [f"caption  {i} é\n" for i in range(NUM_ROWS)]
KEPT = [i for i in range(NUM_ROWS) if i != ABSENT]


def images():
    return {KEYS[i]: picture(i, SIZES[i], "JPEG") for i in KEPT}


def table(rows=range(NUM_ROWS)):
    """What the downloader writes about its rows."""
    return {
        "url": [URLS[i] for i in rows],
        "caption": [CAPTIONS[i] for i in rows],
        "key": [KEYS[i] for i in rows],
        "status": ["success" if i in KEPT else "failed_to_download" for i in rows],
        "width": [SIZES[i][0] for i in rows],
        "similarity": [0.2 + 0.05 * i for i in rows],
        "punsafe": [None if i == 6 else 0.1 * i for i in rows],
        "pwatermark": [float("nan") if i == 5 else 0.1 * i for i in rows],
    }


def write_table(path, columns):
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def raw(tmp_path):
    """Two directories of downloads with the tables beside them."""
    root = tmp_path / "raw"
    for i in range(NUM_ROWS):
        directory = root / KEYS[i][:5]
        directory.mkdir(parents=True, exist_ok=True)
        if i in KEPT:
            (directory / f"{KEYS[i]}.jpg").write_bytes(images()[KEYS[i]])
            (directory / f"{KEYS[i]}.txt").write_text(CAPTIONS[i], encoding="utf-8")
        facts = {"url": URLS[i], "key": KEYS[i], "license": f"of {i}", "error_message": None}
        (directory / f"{KEYS[i]}.json").write_text(json.dumps(facts))
    for shard in range(2):
        rows = range(NUM_ROWS)[shard * PER_SHARD : (shard + 1) * PER_SHARD]
        write_table(root / f"{shard:05}.parquet", table(rows))
    return root


def prepare(raw, *words, out="data", expect="any"):
    words = ("--out", raw.parent / out, "--per-shard", PER_SHARD, "--expect", expect, *words)
    return run("prepare_laion", raw, *words)


def shards(raw, out="data"):
    return {path.name: path.read_bytes() for path in (raw.parent / out).glob("*.tar")}


def told(raw):
    return json.loads((raw.parent / "data" / "shards.json").read_text(encoding="utf-8"))


def samples(raw, out="data"):
    """All samples in their order, as webdataset reads them."""
    found = []
    for path in sorted((raw.parent / out).glob("*.tar")):
        # of a file of ours: webdataset leaves its own open
        with path.open("rb") as stream:
            found += group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
    return found


def kept(raw):
    return [KEYS.index(sample["__key__"]) for sample in samples(raw)]


def test_shards_are_read_by_webdataset_with_images_as_they_were(raw):
    assert prepare(raw) == 0
    found = samples(raw)
    assert [sample["__key__"] for sample in found] == [KEYS[i] for i in KEPT]
    assert [sample["jpg"] for sample in found] == list(images().values())
    assert [sample["txt"].decode() for sample in found] == [f"caption {i} é" for i in KEPT]
    for i, sample in zip(KEPT, found, strict=True):
        facts = json.loads(sample["json"])
        assert (facts["width"], facts["height"]) == SIZES[i]
        assert facts["url"] == URLS[i]
        assert facts["license"] == f"of {i}"
        assert facts["similarity"] == pytest.approx(0.2 + 0.05 * i)


def test_samples_can_be_decoded_and_pictures_are_theirs(raw):
    assert prepare(raw) == 0
    decoded = list(map(Decoder([imagehandler("rgb8")]), samples(raw)))
    for i, sample in zip(KEPT, decoded, strict=True):
        own = np.asarray(Image.open(io.BytesIO(images()[KEYS[i]])))
        np.testing.assert_array_equal(sample["jpg"], own)
        assert (sample["txt"], sample["json"]["key"]) == (f"caption {i} é", KEYS[i])


def test_their_data_set_reads_them(raw):
    assert prepare(raw) == 0
    data = Shards(str(raw.parent / "data"), 16, split="all")
    found = [data[index] for index in range(len(data))]
    assert [item["caption"] for item in found] == [f"caption {i} é" for i in KEPT]
    assert [item["relpath"][-13:-4] for item in found] == [KEYS[i] for i in KEPT]
    assert data.item(0, np.random.default_rng(0))["image"].shape == (16, 16, 3)


def test_the_table_of_shards_counts_and_hashes_them(raw):
    assert prepare(raw, "--min-side", 20) == 0
    found = told(raw)
    assert (found["rows"], found["samples"]) == (7, 5)
    assert found["left_out"] == {"not on disk": 1, "too small": 1}
    for shard, counts in zip(found["shards"], [(4, 2), (3, 3)], strict=True):
        content = shards(raw)[shard["name"]]
        assert (shard["rows"], shard["samples"]) == counts
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["shards"][0]["missing"] == [URLS[ABSENT]]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--min-side", 24), [1, 2, 4, 5, 6]),  # all are 24 high; row 0 is 16 wide
        (("--max-aspect", 2), [0, 1, 2, 4]),  # row 4 is 48 x 24
        (("--min-similarity", 0.325), [4, 5, 6]),
        (("--max-unsafe", 0.45), [0, 1, 2, 4]),  # row 6 does not say
        (("--max-watermark", 0.15), [0, 1]),
        (("--max-watermark", 1), [0, 1, 2, 4, 6]),  # row 5 does not say
        (("--min-side", 24, "--max-aspect", 2, "--max-unsafe", 0.3), [1, 2]),
    ],
)
def test_filters_keep_what_fulfils_all_of_them(raw, flags, expected):
    assert prepare(raw, *flags) == 0
    assert kept(raw) == expected


def test_a_shard_of_which_nothing_is_kept_is_not_there(raw):
    assert prepare(raw, "--min-similarity", 0.375) == 0
    assert list(shards(raw)) == ["00001.tar"]
    assert [shard["samples"] for shard in told(raw)["shards"]] == [0, 3]


def test_images_that_are_not_on_disk_are_named_and_not_fetched(raw, caplog_ldm):
    assert prepare(raw) == 0
    assert f"not on disk, and not fetched: {URLS[ABSENT]}" in caplog_ldm.text
    assert "left out: 1, not on disk" in caplog_ldm.text


def test_laions_own_table_is_joined_by_url_and_its_text_is_the_caption(raw):
    for path in (*raw.glob("*.parquet"), *raw.rglob("*.txt")):
        path.unlink()
    columns = {
        "URL": URLS,
        "TEXT": CAPTIONS,
        "similarity": [0.3] * NUM_ROWS,
        "WIDTH": [1] * NUM_ROWS,
    }
    write_table(raw.parent / "part-00000.parquet", columns)
    assert prepare(raw, "--metadata", raw.parent / "part-00000.parquet") == 0
    found = samples(raw)
    assert [sample["__key__"] for sample in found] == [KEYS[i] for i in KEPT]
    assert [sample["txt"].decode() for sample in found] == [f"caption {i} é" for i in KEPT]


def test_without_a_table_the_files_beside_the_images_do(raw):
    for path in raw.glob("*.parquet"):
        path.unlink()
    assert prepare(raw) == 0
    assert kept(raw) == KEPT
    assert json.loads(samples(raw)[2]["json"])["license"] == "of 2"


def test_samples_without_caption_damaged_ones_and_repeated_rows_are_left_out(raw):
    (raw / "00000" / f"{KEYS[1]}.txt").write_text(" \n")
    columns = table(range(4))
    columns["caption"] = ["", None, "two", "three"]
    write_table(raw / "00000.parquet", columns)
    (raw / "00001" / f"{KEYS[4]}.jpg").write_bytes(b"no image")
    write_table(raw / "00001.parquet", table([4, 5, 5]))
    assert prepare(raw) == 0
    assert kept(raw) == [0, 2, 5]
    assert told(raw)["left_out"] == {
        "no caption": 1,
        "not on disk": 1,
        "damaged": 1,
        "of an image that an earlier row has": 1,
    }


def test_a_job_that_was_killed_goes_on_and_gives_the_same_bytes(raw, monkeypatch):
    assert prepare(raw, out="whole") == 0
    write = laion.write_shard

    def stopped(name, rows, downloads, filters, file, **options):
        if name != "00001.tar":
            return write(name, rows, downloads, filters, file, **options)
        file.write(b"half of a tar")
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(laion, "write_shard", stopped)
        with pytest.raises(Stopped):
            prepare(raw)
    assert list(shards(raw)) == ["00000.tar"]
    before = times(raw.parent / "data", "*.tar")
    assert prepare(raw) == 0
    assert shards(raw) == shards(raw, "whole")
    assert before.items() <= times(raw.parent / "data", "*.tar").items()
    assert not list((raw.parent / "data").glob(".prepared-*"))
    tables = [raw.parent / out / "shards.json" for out in ("data", "whole")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_shard_of_another_length_is_written_again(raw):
    assert prepare(raw) == 0
    before = shards(raw)
    (raw.parent / "data" / "00000.tar").write_bytes(before["00000.tar"][:1024])
    assert prepare(raw) == 0
    assert shards(raw) == before


def test_other_filters_in_the_same_directory_are_refused(raw, caplog_ldm):
    assert prepare(raw) == 0
    assert prepare(raw, "--min-side", 32) == EXIT_CONFIG
    assert "was begun with settings" in caplog_ldm.text


def test_another_number_of_samples_is_refused(raw, caplog_ldm):
    assert prepare(raw, expect=7) == EXIT_CONFIG
    assert "6 files of the part 'shards', 1 missing; expected 7" in caplog_ldm.text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--per-shard", 0), "--per-shard 0: expected 1 or more"),
        (("--min-similarity", 2), "nothing is kept of 7 rows"),
        (("--metadata", "absent.parquet"), "--metadata: there is no absent.parquet"),
    ],
)
def test_what_cannot_be_is_said(raw, caplog_ldm, words, problem):
    assert prepare(raw, *words) == EXIT_CONFIG
    assert problem in caplog_ldm.text


def test_tables_that_are_none_are_said(raw, caplog_ldm):
    write_table(raw / "00000.parquet", {"caption": ["a"]})
    assert prepare(raw) == EXIT_CONFIG
    assert "00000.parquet: has caption; expected a column key or url" in caplog_ldm.text
    (raw / "00000.parquet").write_bytes(b"no table")
    assert prepare(raw, out="other") == EXIT_CONFIG
    assert "00000.parquet: cannot be read as Parquet" in caplog_ldm.text


def test_without_pyarrow_tables_are_refused_with_the_command_that_installs_it(
    raw, caplog_ldm, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert prepare(raw) == EXIT_CONFIG
    assert "pip install" in caplog_ldm.text


def test_two_images_of_one_key_and_urls_without_facts_are_refused(raw, caplog_ldm):
    (raw / "00001" / f"{KEYS[0]}.png").write_bytes(picture(0))
    assert prepare(raw) == EXIT_CONFIG
    assert "have one key" in caplog_ldm.text
    (raw / "00001" / f"{KEYS[0]}.png").unlink()
    for path in (*raw.glob("*.parquet"), *raw.rglob("*.json")):
        path.unlink()
    write_table(raw / "urls.parquet", {"url": URLS})
    assert prepare(raw, out="other") == EXIT_CONFIG
    assert "a .json with a url beside each image" in caplog_ldm.text


def test_members_of_a_shard_depend_on_the_samples_alone(raw):
    assert prepare(raw) == 0
    with tarfile.open(raw.parent / "data" / "00000.tar") as tar:
        members = tar.getmembers()
    assert [each.name for each in members[:3]] == [
        f"{KEYS[0]}{e}" for e in (".jpg", ".txt", ".json")
    ]
    assert {(each.mtime, each.uid, each.uname) for each in members} == {(0, 0, "")}
