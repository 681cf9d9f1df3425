"""Archives of strangers: nothing is written outside of the output directory."""

import io
import tarfile
import zipfile

import pytest

from ldm.config import ConfigError
from ldm.preparation import archives
from ldm.preparation.archives import members, members_of_tars
from ldm.preparation.databases import database_records
from ldm.preparation.job import prepare
from ldm.preparation.journal import Plan
from ldm.preparation.record import Record
from tests.data.tars import picture, write_tar
from tests.preparation.raw import write_lsun, write_zip
from tests.safety.watching import below

# names that would lead out of a directory, or that no file has
LEADING_OUT = [
    *(
        "../x.png",
        "../../x.png",
        "a/../../x.png",
        "/etc/x.png",
        "//x.png",
        "a//x.png",
        "./x.png/..",
    ),
    *(
        "..",
        "..\\x.png",
        "C:\\x.png",
        "a\0b.png",
        "a\nb.png",
        "a\x1b[2Jb.png",
        "",
        "x" * 300 + ".png",
    ),
]


def prepared(source, out):
    return prepare(members(source), out, Plan("train", (source,), {}))


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_record_is_not_written_outside_of_the_output_directory(alone, name):
    (alone / "source").write_bytes(b"x")
    record = Record(name, lambda: b"content")
    with pytest.raises(ConfigError, match=r"names a file|cannot be written"):
        prepare([record], alone / "out", Plan("train", (alone / "source",), {}))
    assert {name for name in below(alone) if not name.startswith("out/")} == {"source"}


@pytest.mark.parametrize("name", [each for each in LEADING_OUT[:7] if each != "./x.png/.."])
@pytest.mark.parametrize("kind", ["raw.zip", "raw.tar"])
def test_a_member_of_an_archive_is_not_written_outside_of_the_output_directory(alone, kind, name):
    (write_zip if kind == "raw.zip" else _write_tar)(alone / kind, {name: b"content"})
    with pytest.raises(ConfigError, match="names a file"):
        prepared(alone / kind, alone / "out")
    assert not any(path.read_bytes() == b"content" for path in (alone / "out").rglob("*.png"))


def _write_tar(path, files):
    write_tar(path, list(files.items()))


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("kind", LINKS)
def test_links_and_devices_of_a_tar_are_left_out(alone, kind):
    with tarfile.open(alone / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
        info = tarfile.TarInfo("a.png/b.png")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"b"))
    assert prepared(alone / "a.tar", alone / "out") == ["a.png/b.png"]
    assert not (alone / "out" / "a.png").is_symlink()


def test_a_tar_in_a_tar_is_named_by_its_last_part_alone(alone):
    inner = write_tar(alone / "inner.tar", [("../x.png", b"x")])
    outer = write_tar(alone / "outer.tar", [("../../n01.tar", inner.read_bytes())])
    (record,) = members_of_tars(outer)
    assert record.name == "n01/../x.png"
    with pytest.raises(ConfigError, match="names a file"):
        prepare([record], alone / "out", Plan("train", (outer,), {}))


@pytest.mark.parametrize("kind", ["raw.zip", "raw.tar.gz"])
def test_a_member_that_unpacks_to_more_than_memory_is_refused_unread(alone, monkeypatch, kind):
    monkeypatch.setattr(archives, "_LARGEST", 2**16)
    content = bytes(2**20)
    if kind == "raw.zip":
        with zipfile.ZipFile(alone / kind, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", content)
    else:
        with tarfile.open(alone / kind, "w:gz") as archive:
            info = tarfile.TarInfo("a.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(ConfigError, match=r"a\.png: refused, of 1048576 bytes"):
        prepared(alone / kind, alone / "out")


def test_the_keys_of_a_database_are_no_paths(alone):
    write_lsun(alone / "db", {"../../x": picture(0)})
    records = database_records(alone / "db" / "data.mdb")
    with pytest.raises(ConfigError, match="names a file"):
        prepare(records, alone / "out", Plan("train", (alone / "db",), {}))
