"""Image files that Pillow can read but not write: 16 bits per channel in colour."""

import struct
import zlib

import numpy as np

_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels


def levels(height, width, channels, seed=0):
    """Noise of 16 bits, which shows every byte that is lost or misplaced."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 65536, (height, width, channels), dtype=np.uint16)


def png_chunk(kind, data):
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, pixels, *extra):
    """A PNG of uint16 pixels (H, W, C); each row is told as its difference to the one above.

    extra: (kind, data) of further chunks.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0)
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    up = rows - np.vstack([np.zeros_like(rows[:1]), rows[:-1]])  # uint8 goes round
    data = zlib.compress(b"".join(b"\2" + row.tobytes() for row in up))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def write_packed_png(path, levels, bits):
    """A grey PNG of levels (H, W) in 1, 2, 4 or 8 bits; a row's last byte is filled with zeros."""
    height, width = levels.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    ones = np.unpackbits(levels.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    rows = np.packbits(ones.reshape(height, width * bits), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def write_tiff(path, pixels, *, order="<", deflated=False, planar=False):
    """A TIFF of uint16 or float32 pixels (H, W, C), in either byte order."""
    height, width, channels = pixels.shape
    bits, kind = 8 * pixels.dtype.itemsize, {"u": 1, "f": 3}[pixels.dtype.kind]
    planes = list(pixels.transpose(2, 0, 1)) if planar else [pixels]
    data = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    data = [zlib.compress(each) for each in data] if deflated else data
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * channels),
        259: ("H", [8 if deflated else 1]),
        262: ("H", [2 if channels >= 3 else 1]),
        273: ("I", [0] * len(data)),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(each) for each in data]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * channels),
    }
    if channels == 4:
        tags[338] = ("H", [2])  # alpha, not premultiplied
    start = 8 + 2 + 12 * len(tags) + 4
    room = sum(
        len(each) for code, values in tags.values() if len(each := _packed(order, code, values)) > 4
    )
    places = np.cumsum([start + room, *map(len, data)])[:-1].tolist()
    tags[273] = ("I", places)
    entries, values_behind = b"", b""
    for tag, (code, values) in sorted(tags.items()):
        packed = _packed(order, code, values)
        if len(packed) > 4:
            place = start + len(values_behind)
            values_behind += packed
            packed = struct.pack(order + "I", place)
        number = {"H": 3, "I": 4}[code]
        entries += struct.pack(order + "HHI", tag, number, len(values)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + values_behind + b"".join(data))


def _packed(order, code, values):
    return struct.pack(f"{order}{len(values)}{code}", *values)
