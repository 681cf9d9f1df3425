"""Tars that were made to do harm: nothing in them is run, followed or written."""

import io
import pickle
import tarfile

import pytest

from ldm.config import ConfigError
from ldm.data.shards import Shards
from tests.data.damaged import Trap, bomb
from tests.data.tars import picture, samples, write_tar


def read(place, **params):
    return Shards(str(place), 20, split="all", **params)


def add(path, *members):
    """Add members, each a name with a type and what it leads to, to a tar."""
    with tarfile.open(path, "a") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)


@pytest.mark.parametrize("name", ["../a.png", "/tmp/a.png", "deep/../../a.png"])
def test_a_member_whose_name_leads_out_is_named_and_left_out(tmp_path, caplog_ldm, name):
    write_tar(tmp_path / "in/a.tar", [(name, picture(0)), *samples(0, 2)])
    data = read(tmp_path / "in", captions=False)
    assert [data[index]["relpath"] for index in range(len(data))] == [
        "a.tar/000000000.jpg",
        "a.tar/000000001.jpg",
    ]
    assert f"a.tar: {name}: its name leads out of the tar" in caplog_ldm.text
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a.tar", "a.tar.index.npz", "in"]


def test_links_devices_and_pipes_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(7))
    (tmp_path / "secret.txt").write_text("a secret")
    path = write_tar(tmp_path / "in/a.tar", samples(0, 1))
    add(
        path,
        ("b.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")),
        ("c.png", tarfile.LNKTYPE, "../secret.png"),
        ("d.png", tarfile.FIFOTYPE, ""),
        ("e.png", tarfile.CHRTYPE, ""),
        ("000000000.cls", tarfile.SYMTYPE, str(tmp_path / "secret.txt")),
    )
    data = read(tmp_path / "in", captions=False)
    assert len(data) == 1
    assert data[0]["relpath"] == "a.tar/000000000.jpg"


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "npy"])
def test_nothing_is_unpickled(tmp_path, extension):
    trap = pickle.dumps(Trap())
    with pytest.raises(SystemExit, match="unpickled"):
        pickle.loads(trap)
    beside = (f"000000000.{extension}", trap)
    alone = (f"b.{extension}", trap)
    write_tar(tmp_path / "a.tar", [*samples(0, 1), beside, alone])
    data = read(tmp_path)
    assert data[0].keys() == {"image", "relpath", "caption"}
    assert len(data) == 1


@pytest.mark.parametrize("word", ["pipe:touch made", "pipe:touch made.tar", "http://a/b.tar"])
def test_no_program_is_run_and_nothing_is_fetched(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="expected files of this machine"):
        Shards([word], 20)
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_is_named_by_its_header_and_left_out(tmp_path, caplog_ldm):
    write_tar(tmp_path / "a.tar", [("b.png", bomb()), ("b.txt", "a bomb"), *samples(0, 1)])
    assert len(read(tmp_path)) == 1
    assert "a.tar: b: Image size (400000000 pixels) exceeds limit" in caplog_ldm.text


def test_an_index_that_holds_objects_is_made_anew(tmp_path):
    write_tar(tmp_path / "a.tar", samples(0, 2))
    read(tmp_path)
    stored = tmp_path / "a.tar.index.npz"
    file = io.BytesIO()
    pickle.dump(Trap(), file)
    stored.write_bytes(file.getvalue())
    assert len(read(tmp_path)) == 2


def test_a_name_cannot_forge_a_line_of_the_log(tmp_path, caplog_ldm):
    write_tar(tmp_path / "a.tar", [("a\nerror: \x1b[31mall is lost.png", b"x"), *samples(0, 1)])
    read(tmp_path, captions=False)
    assert "\nerror" not in caplog_ldm.text
    assert "\x1b" not in caplog_ldm.text
    assert "a\\nerror: \\x1b[31mall is lost: not an image" in caplog_ldm.text
