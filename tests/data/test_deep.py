"""Files of more than 8 bits per channel keep all of them, or are refused."""

import contextlib
import itertools

import numpy as np
import pytest
from PIL import Image
from torchvision.io import decode_image

from ldm.data.decoding import UNREADABLE, header_size, read_image
from tests.data.deep_files import levels, write_png, write_tiff
from tests.data.photographs import gradient, mixed_directory


def deep(path, channels=3):
    return read_image(path, channels, dtype="float32")


def signed(numbers):
    """16-bit numbers as pixels in [-1, 1]."""
    return (numbers / 65535.0 * 2 - 1).astype(np.float32)


def close(got, want):
    assert got.dtype == np.float32
    # a fortieth of one of 65535 levels
    np.testing.assert_allclose(got, want, rtol=0, atol=7e-7)


WRITERS = {
    "png": write_png,
    "tiff": write_tiff,
    "big-endian tiff": lambda path, pixels: write_tiff(path, pixels, order=">"),
    "deflated tiff": lambda path, pixels: write_tiff(path, pixels, deflated=True),
    "deflated big-endian tiff": lambda path, pixels: write_tiff(
        path, pixels, order=">", deflated=True
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept(tmp_path, kind, channels):
    numbers, path = levels(12, 10, channels), tmp_path / "deep"
    WRITERS[kind](path, numbers)
    close(deep(path, channels), signed(numbers))
    assert header_size(path, channels, "float32") == (10, 12)


@pytest.mark.parametrize("kind", WRITERS)
def test_eight_of_sixteen_bits_of_colour_are_the_upper_ones(tmp_path, kind):
    numbers, path = levels(12, 10, 3), tmp_path / "deep"
    WRITERS[kind](path, numbers)
    np.testing.assert_array_equal(read_image(path), numbers >> 8)


def test_deep_grey_with_alpha_is_laid_on_white_or_kept(tmp_path):
    numbers, path = levels(12, 10, 2), tmp_path / "deep.png"
    write_png(path, numbers)
    grey, alpha = (numbers[..., i : i + 1] / 65535 for i in range(2))
    close(deep(path, 4), 2 * np.concatenate([grey, grey, grey, alpha], axis=2) - 1)
    close(deep(path, 1), 2 * (grey * alpha + 1 - alpha) - 1)


def test_deep_colour_with_alpha_is_laid_on_white(tmp_path):
    numbers, path = levels(12, 10, 4), tmp_path / "deep.png"
    write_png(path, numbers)
    colour, alpha = numbers[..., :3] / 65535, numbers[..., 3:] / 65535
    flat = colour * alpha + 1 - alpha
    close(deep(path), 2 * flat - 1)
    close(deep(path, 1), 2 * (flat @ [[0.299], [0.587], [0.114]]) - 1)


def test_the_transparent_colour_of_a_deep_png_becomes_alpha(tmp_path):
    numbers = levels(12, 10, 3)
    numbers[0, 0], numbers[0, 1] = (1, 2, 3), (1, 2, 4)
    write_png(tmp_path / "a.png", numbers, (b"tRNS", b"\0\1\0\2\0\3"))
    alpha = deep(tmp_path / "a.png", 4)[..., 3]
    assert alpha[0, 0] == -1
    assert (alpha == 1).sum() == alpha.size - 1


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_files_are_turned_upright(tmp_path, channels):
    numbers = levels(12, 10, channels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    write_png(tmp_path / "a.png", numbers, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    write_png(tmp_path / "b.png", np.rot90(numbers, -1))
    np.testing.assert_array_equal(deep(tmp_path / "a.png"), deep(tmp_path / "b.png"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_of_eight_bits_are_the_same_in_either_type(tmp_path, channels):
    bad = mixed_directory(tmp_path)
    names = {path.name for path in tmp_path.iterdir()} - bad - {"deep.png", "deep.tif"}
    for name in sorted(names):
        pixels = read_image(tmp_path / name, channels)
        assert pixels.shape == (48, 72, channels)
        close(deep(tmp_path / name, channels), pixels / 127.5 - 1)


def test_alpha_is_kept_as_it_is_and_one_where_there_is_none(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png", 4), pixels)
    for mode in ("RGB", "L", "CMYK"):
        Image.fromarray(gradient(16, 16)).convert(mode).save(tmp_path / "none.tif")
        opaque = read_image(tmp_path / "none.tif", 4)
        assert (opaque[..., 3] == 255).all()
        np.testing.assert_array_equal(opaque[..., :3], read_image(tmp_path / "none.tif"))


@pytest.mark.parametrize("range_", [None, (-10.0, 30.0)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_floating_point_files_are_taken_in_their_range(tmp_path, range_, dtype):
    low, high = range_ or (0, 1)
    fractions = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(low + fractions * np.float32(high - low)).save(tmp_path / "f.tif")
    pixels = read_image(tmp_path / "f.tif", 1, dtype=dtype, value_range=range_)[..., 0]
    if dtype == "uint8":
        np.testing.assert_array_equal(pixels, np.arange(256).reshape(16, 16))
    else:
        np.testing.assert_allclose(pixels, 2 * fractions - 1, atol=1e-6)


def test_a_number_beyond_sixteen_bits_is_refused_with_its_place(tmp_path):
    numbers = np.zeros((16, 16), np.int32)
    numbers[2, 3] = 70000
    Image.fromarray(numbers).save(tmp_path / "long.tif")
    with pytest.raises(ValueError, match=r"70000\.0 at \[2, 3\] is outside 0\.\.65535"):
        deep(tmp_path / "long.tif", 1)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_separate_planes_of_sixteen_bits_are_refused_not_garbled(tmp_path, dtype):
    write_tiff(tmp_path / "planar.tif", levels(12, 10, 3), planar=True)
    with pytest.raises(ValueError, match="16 bits per channel in separate planes"):
        read_image(tmp_path / "planar.tif", dtype=dtype)


@pytest.mark.parametrize(
    "pixels", [levels(12, 10, 2), levels(12, 10, 9), np.zeros((12, 10, 3), np.float32)]
)
def test_a_tiff_that_pillow_does_not_know_is_called_so(tmp_path, pixels):
    write_tiff(tmp_path / "many.tif", pixels)
    with pytest.raises(ValueError, match=r"a TIFF that cannot be decoded: .* store .* as \.npy"):
        read_image(tmp_path / "many.tif")


def test_deep_colour_of_other_formats_is_refused_where_all_bits_are_asked_for(tmp_path):
    path = tmp_path / "deep.ppm"
    path.write_bytes(b"P6 10 12 65535\n" + levels(12, 10, 3).astype(">u2").tobytes())
    assert read_image(path).shape == (12, 10, 3)
    for read in (deep, lambda path: header_size(path, 3, "float32")):
        with pytest.raises(ValueError, match="PPM with 16 bits per channel"):
            read(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_2000_of_eight_bits_and_of_deep_grey_is_read(tmp_path, channels):
    path, grey = tmp_path / "a.jp2", levels(16, 16, 1)
    Image.fromarray(grey[..., 0]).save(path)
    close(deep(path, 1), signed(grey))
    Image.fromarray(gradient(16, 16)).save(path)
    close(deep(path, channels), read_image(path, channels) / 127.5 - 1)
    # a header that speaks of 12 bits
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\x4f\xff\x51") + 42] = 11
    path.write_bytes(content)
    with pytest.raises(ValueError, match="JPEG2000 with 12 bits per channel"):
        header_size(path, 3, "float32")


def test_avif_of_more_than_eight_bits_is_refused(tmp_path):
    path = tmp_path / "a.avif"
    Image.fromarray(gradient(16, 16)).save(path)
    close(deep(path), read_image(path) / 127.5 - 1)
    content = bytearray(path.read_bytes())
    # a header that speaks of 10 bits, in both places
    content[content.index(b"av1C") + 6] |= 0x40
    depths = content.index(b"pixi") + 4 + 4 + 1
    content[depths : depths + 3] = bytes([10, 10, 10])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="AVIF with 10 bits per channel"):
        header_size(path, 3, "float32")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on odd metadata
@pytest.mark.parametrize(
    ("kind", "channels"),
    [("png", 2), *itertools.product(["png", "tiff", "deflated tiff"], [3, 4])],
)
def test_a_deep_file_cut_or_garbled_anywhere_is_read_or_unreadable(tmp_path, kind, channels):
    path = tmp_path / "garbled"
    WRITERS[kind](path, levels(24, 24, channels))
    whole, rng = np.frombuffer(path.read_bytes(), np.uint8), np.random.default_rng(0)
    for trial in range(60):
        garbled = whole.copy()
        garbled[rng.integers(min(len(whole), 300), size=2)] = rng.integers(256, size=2)
        part = whole[: rng.integers(1, len(whole))] if trial % 2 else garbled
        path.write_bytes(part.tobytes())
        with contextlib.suppress(*UNREADABLE):
            assert deep(path).shape[2] == 3


def test_a_truncated_deep_file_is_unreadable(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, levels(24, 24, 3))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UNREADABLE):
        deep(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_deep_test_files_are_what_another_decoder_reads(tmp_path):
    for channels in (1, 2, 3, 4):
        numbers, path = levels(12, 10, channels), tmp_path / "deep.png"
        write_png(path, numbers)
        decoded = decode_image(str(path), mode="UNCHANGED").permute(1, 2, 0)
        np.testing.assert_array_equal(decoded.numpy(), numbers)
