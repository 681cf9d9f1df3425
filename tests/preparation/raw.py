"""Miniatures in the formats that owners of data sets publish."""

import io
import tarfile
import zipfile

import lmdb
import numpy as np
from PIL import Image


def write_zip(path, files):
    """A zip of files, name to bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path, files):
    """A tar of files, compressed where the name ends so, name to bytes."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def picture(number, size=(16, 16), kind="PNG"):
    """The bytes of an image file that differs from those of other numbers; size: width, height."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_lsun(path, images):
    """A database as LSUN publishes it: a directory around `data.mdb`, key to an image's bytes."""
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as entries:
        for key, content in images.items():
            entries.put(key.encode(), content)
