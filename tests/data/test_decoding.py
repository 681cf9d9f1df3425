import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from ldm.data.decoding import (
    UNREADABLE,
    decoded_image,
    header_size,
    read_image,
    reason,
    upright_size,
)
from tests.data.photographs import gradient, mixed_directory

# grey levels, mean over the picture: JPEG and 16 colours against the original; a picture that is
# mirrored or not turned is 43 away
TOLERANCE = {"rgb.jpg": 1, "turned.jpg": 1, "cmyk.jpg": 1, "palette.gif": 15}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    mixed_directory(root)
    return root


@pytest.mark.parametrize("name", ["rgb.jpg", "turned.jpg", "cmyk.jpg", "palette.gif"])
def test_colour_files_show_the_same_upright_picture(photographs, name):
    pixels = read_image(photographs / name)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 72, 3)
    difference = np.abs(pixels.astype(int) - gradient(48, 72)).mean()
    assert difference < TOLERANCE[name]


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_pixels(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(gradient(24, 40)).save(path, exif=exif)
    assert upright_size(path) == read_image(path).shape[:2]
    assert upright_size(path) == ((24, 40) if orientation < 5 else (40, 24))


def test_a_damaged_file_has_no_size(photographs):
    for name in ("truncated.jpg", "text.jpg"):
        with pytest.raises(UNREADABLE):
            upright_size(photographs / name)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(photographs, name):
    expected = np.round(gradient(48, 72, dtype=np.uint16, top=65535)[..., 0] / 257)
    for channel in range(3):
        np.testing.assert_array_equal(read_image(photographs / name)[..., channel], expected)


def test_sixteen_bit_pgm_is_scaled(tmp_path):
    levels = np.array([[0, 257, 65535, 30840] * 4] * 16, dtype=">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + levels.tobytes())
    pixels = read_image(tmp_path / "deep.pgm", 1)
    np.testing.assert_array_equal(pixels[0, :4, 0], [0, 1, 255, 120])


@pytest.mark.parametrize("name", ["grey.png", "grey_alpha.png"])
def test_grey_becomes_three_equal_channels_or_stays_one(photographs, name):
    colour, grey = read_image(photographs / name), read_image(photographs / name, 1)
    assert grey.shape == (48, 72, 1)
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=2))
    expected = np.asarray(Image.fromarray(gradient(48, 72)).convert("L"))
    np.testing.assert_array_equal(grey[..., 0], expected)


def test_transparent_pixels_are_laid_on_white(photographs):
    alpha = np.asarray(Image.linear_gradient("L").resize((72, 48)))[..., None] / 255
    expected = gradient(48, 72) * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(read_image(photographs / "alpha.png"), expected, atol=1.5)


def test_transparent_colour_of_a_palette_becomes_white(photographs):
    with Image.open(photographs / "palette_transparent.png") as image:
        is_transparent = np.asarray(image) == 0
    pixels = read_image(photographs / "palette_transparent.png")
    assert is_transparent.any()
    assert (pixels[is_transparent] == 255).all()


@pytest.mark.parametrize(
    "levels", [np.linspace(0, 1, 256), np.linspace(0, 255, 256), [np.nan] * 256]
)
def test_floating_point_is_taken_as_zero_to_one(tmp_path, levels):
    Image.fromarray(np.array(levels, dtype=np.float32).reshape(16, 16)).save(tmp_path / "f.tif")
    if levels[-1] == 1:
        expected = np.arange(256).reshape(16, 16, 1)
        np.testing.assert_array_equal(read_image(tmp_path / "f.tif", 1), expected)
    else:
        with pytest.raises(ValueError, match=r"outside 0\.\.1"):
            read_image(tmp_path / "f.tif")


def test_draft_reads_a_large_jpeg_at_a_fraction_of_its_size(tmp_path):
    Image.fromarray(gradient(512, 768)).save(tmp_path / "large.jpg", quality=95)
    assert read_image(tmp_path / "large.jpg", draft_side=128).shape == (128, 192, 3)
    assert read_image(tmp_path / "large.jpg", draft_side=300).shape == (512, 768, 3)


@pytest.mark.parametrize("name", ["truncated.jpg", "text.jpg", "absent.jpg"])
def test_damaged_file_raises_what_unreadable_lists(photographs, name):
    with pytest.raises(UNREADABLE) as raised:
        read_image(photographs / name)
    words = {"truncated.jpg": "truncated", "text.jpg": "not an image", "absent.jpg": "No such file"}
    assert words[name] in reason(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on odd metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "TGA"])
def test_a_file_cut_or_garbled_anywhere_is_read_or_unreadable(tmp_path, kind):
    stream = io.BytesIO()
    Image.fromarray(gradient(24, 24)).save(stream, kind)
    whole, rng = np.frombuffer(stream.getvalue(), np.uint8), np.random.default_rng(0)
    for trial in range(40):
        garbled = whole.copy()
        garbled[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        part = garbled[: rng.integers(1, len(whole))] if trial % 2 else garbled
        path = tmp_path / "garbled"
        path.write_bytes(part.tobytes())
        with contextlib.suppress(*UNREADABLE):
            assert read_image(path).shape[2] == 3


def test_more_pixels_than_pillow_accepts_are_refused(tmp_path, monkeypatch):
    Image.fromarray(gradient(64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UNREADABLE, match="decompression bomb"):
        header_size(tmp_path / "bomb.png")


@pytest.mark.parametrize("draft_side", [None, 24])
def test_the_content_of_a_file_is_decoded_as_the_file_is(tmp_path, draft_side):
    bad = mixed_directory(tmp_path)
    seen = 0
    for path in sorted(tmp_path.iterdir()):
        if path.name in bad - {"narrow.png"}:
            with pytest.raises(UNREADABLE):
                decoded_image(path.read_bytes(), draft_side=draft_side)
            continue
        expected = read_image(path, draft_side=draft_side)
        np.testing.assert_array_equal(
            decoded_image(path.read_bytes(), draft_side=draft_side), expected
        )
        seen += 1
    assert seen == 11
