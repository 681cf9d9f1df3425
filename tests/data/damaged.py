"""A directory of pictures of which some are damaged, one in each way."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.data.photographs import gradient

SIDE = 20


def jpeg(seed, side=SIDE):
    """A JPEG file's content: noise, of which no two are alike."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def bomb(width=20_000, height=20_000):
    """A small PNG whose header promises 400 million pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# name: (what is in the file, the reason that is told)
KINDS = {
    "truncated.jpg": (jpeg(0, 64)[:700], "image file is truncated"),
    "bomb.png": (bomb(), "decompression bomb"),
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"this is a text", "not an image"),
    "program.jpg": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not an image",
    ),
}


def damaged_directory(root, good=95, kinds=KINDS, extra="directory.png"):
    """Pictures 000.jpg, ..., one file of each kind of damage, and a list.txt of all of them.

    extra: a directory of that name, which the list names as well.  Returns what is bad, as a set.
    """
    root.mkdir(parents=True, exist_ok=True)
    for number in range(good):
        (root / f"{number:03}.jpg").write_bytes(jpeg(number))
    for name, (content, _) in kinds.items():
        (root / name).write_bytes(content)
    bad = set(kinds)
    if extra:
        (root / extra).mkdir()
        bad.add(extra)
    names = [f"{number:03}.jpg" for number in range(good)] + sorted(bad)
    (root / "list.txt").write_text("\n".join(names))
    return bad


def object_array(path):
    """A `.npy` that would run something if it were unpickled."""
    np.save(path, np.array([[Trap()]], dtype=object), allow_pickle=True)


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def picture(path, side=SIDE):
    Image.fromarray(gradient(side, side)).save(path)
