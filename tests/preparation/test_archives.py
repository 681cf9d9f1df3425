import io
import tarfile
import zipfile

import pytest

from ldm.config import ConfigError
from ldm.preparation.archives import existing_source, members
from tests.preparation.raw import write_tar, write_zip

FILES = {"set/a/1.jpg": b"one", "set/b/2.jpg": b"two" * 100, "set/notes.txt": b""}
LEFT_OVER = {"__MACOSX/set/._1.jpg": b"x", "set/.DS_Store": b"y"}


def as_directory(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


SOURCES = {
    "raw": as_directory,
    "raw.zip": write_zip,
    "raw.tar": write_tar,
    "raw.tar.gz": write_tar,
    "RAW.TAR": write_tar,
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_files_of_a_source_come_with_name_size_and_content(tmp_path, name):
    SOURCES[name](tmp_path / name, FILES | LEFT_OVER)
    found = {}
    for record in members(tmp_path / name):
        found[record.name] = record.content()
        assert record.size == len(found[record.name])
    assert found == FILES


@pytest.mark.parametrize("name", SOURCES)
def test_content_that_is_not_asked_for_is_not_needed(tmp_path, name):
    SOURCES[name](tmp_path / name, FILES)
    wanted = "set/b/2.jpg"
    found = [each.content() for each in members(tmp_path / name) if each.name == wanted]
    assert found == [FILES[wanted]]


def test_names_that_begin_with_a_dot_and_slash_lose_it_and_those_that_lead_out_keep_it(tmp_path):
    write_tar(tmp_path / "a.tar", {"./a.jpg": b"1", "../b.jpg": b"2"})
    assert [each.name for each in members(tmp_path / "a.tar")] == ["a.jpg", "../b.jpg"]


def test_links_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("empty.jpg"), io.BytesIO())
    assert [each.name for each in members(tmp_path / "a.tar")] == ["empty.jpg"]


def test_a_zip_with_a_flipped_byte_is_refused_with_the_name_of_the_file(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.jpg", b"some bytes that are stored as they are")
    path.write_bytes(path.read_bytes().replace(b"stored as", b"damaged a"))
    with pytest.raises(ConfigError, match=r"a.zip: 1.jpg: cannot be read.*CRC"):
        [each.content() for each in members(path)]


@pytest.mark.parametrize("name", ["raw.zip", "raw.tar", "raw.tar.gz"])
def test_an_archive_that_ends_early_is_refused(tmp_path, name):
    path = tmp_path / name
    SOURCES[name](path, {f"{i}.jpg": bytes(range(256)) * 40 for i in range(3)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ConfigError, match=f"{name}.*cannot be read"):
        [each.content() for each in members(path)]


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    with pytest.raises(ConfigError, match=r"a.rar; expected a directory, or an archive: .zip .tar"):
        list(members(tmp_path / "a.rar"))


def test_a_source_that_is_not_there_is_refused_with_what_is_meant(tmp_path):
    (tmp_path / "images.zip").touch()
    with pytest.raises(
        ConfigError, match=r"no .*imagse.zip; did you mean .*images.zip\?; expected a zip"
    ):
        existing_source(tmp_path / "imagse.zip", "a zip")
