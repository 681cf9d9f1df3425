"""Arrays in files, and which number of a file becomes which pixel."""

import numpy as np
import pytest
from PIL import Image

from ldm.config import ConfigError
from ldm.data.arrays import npy_shape, read_npy, scaled, with_dtype
from ldm.data.folder import ImageFolder, ImageList
from ldm.data.pixels import PixelFormat
from ldm.data.transforms import Framing, resize
from tests.data.deep_files import levels, write_png
from tests.data.photographs import gradient
from tests.data.reading import faults, read_whole


def fractions(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random(shape).astype(dtype)


def stacks(root, count=3, channels=13, side=16, dtype=np.float32):
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        np.save(root / f"{number}.npy", fractions(side, side, channels, seed=number, dtype=dtype))


# numbers


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_integers_are_scaled_by_all_that_their_type_holds(dtype):
    limits = np.iinfo(dtype)
    ends = np.array([limits.min, limits.max], dtype)
    np.testing.assert_array_equal(with_dtype(scaled(ends), "float32"), [-1, 1])
    np.testing.assert_array_equal(with_dtype(scaled(ends), "uint8"), [0, 255])


def test_bytes_stay_what_they_are_and_sixteen_bits_are_rounded():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(with_dtype(scaled(every), "uint8"), every)
    deep = np.arange(65536).astype(np.uint16)
    np.testing.assert_array_equal(with_dtype(scaled(deep), "uint8"), np.round(deep / 257))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint16", "int16"])
def test_a_range_says_which_numbers_are_black_and_white(dtype):
    values = np.array([100, 600, 1100], dtype)
    pixels = with_dtype(scaled(values, (100, 1100)), "float32")
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, [-1, 0, 1])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_sixteen_bits_survive_in_float32_only(dtype):
    deep = np.arange(65536).astype(np.uint16)
    assert (
        len(np.unique(with_dtype(scaled(deep), dtype))) == {"uint8": 256, "float32": 65536}[dtype]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.5])
@pytest.mark.parametrize("range_", [None, (-0.05, 1.25)])
def test_the_first_number_outside_the_range_is_named_with_its_index(value, range_):
    values = np.zeros((4, 5, 3), np.float32)
    values[2, 1, 0] = values[3, 0, 0] = value
    expected = r"0\.\.1" if range_ is None else r"-0\.05\.\.1\.25"
    with pytest.raises(ValueError, match=rf"{value} at \[2, 1, 0\] is outside {expected}"):
        scaled(values, range_)


@pytest.mark.parametrize("dtype", ["int32", "uint64", "complex64", "bool"])
def test_numbers_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"holds {dtype}, expected floats or integers of 8 or 16"):
        scaled(np.zeros((2, 2), dtype))


# arrays in files


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_as_it_was_saved(tmp_path, channels, order):
    values = fractions(12, 10, channels)
    np.save(tmp_path / "a.npy", np.asarray(values, order=order))
    assert npy_shape(tmp_path / "a.npy", channels) == (12, 10)
    pixels = read_npy(tmp_path / "a.npy", channels, dtype="float32")
    np.testing.assert_allclose(pixels, 2 * values - 1, atol=1e-6)
    assert pixels.flags["C_CONTIGUOUS"]


def test_an_array_without_channels_has_one(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(10, dtype=np.uint8) * 255)
    np.testing.assert_array_equal(
        read_npy(tmp_path / "a.npy", 1)[..., 0], np.eye(10, dtype=np.uint8) * 255
    )


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((12, 10, 5), 4, "has 5 channels, expected 4$"),
        ((12, 10), 3, "has 1 channel, expected 3$"),
        ((13, 12, 10), 13, r"has 10 channels, expected 13: its shape .* looks like \(C, H, W\)"),
        ((2, 12, 10, 3), 3, r"is of shape \(2, 12, 10, 3\), expected \(H, W\) or"),
    ],
)
@pytest.mark.parametrize("read", [npy_shape, read_npy])
def test_an_array_of_another_shape_is_named(tmp_path, shape, channels, message, read):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.npy", channels)


def test_an_array_that_would_run_code_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    for read in (npy_shape, read_npy):
        with pytest.raises(ValueError, match=r"^holds Python objects, expected numbers$"):
            read(tmp_path / "a.npy", 3)


@pytest.mark.parametrize("read", [npy_shape, read_npy])
def test_an_array_that_was_cut_off_is_named(tmp_path, read):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((12, 10, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"^is shorter than its header says: 260 bytes of 360$"):
        read(path, 3)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(tmp_path, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, np.zeros((12, 10, 3), np.uint8), version=version)
    assert npy_shape(tmp_path / "a.npy", 3) == (12, 10)
    assert read_npy(tmp_path / "a.npy", 3).shape == (12, 10, 3)


@pytest.mark.parametrize("read", [npy_shape, read_npy])
def test_another_version_of_the_format_is_named(tmp_path, read):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((12, 10, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:6] + b"\x09" + content[7:])
    with pytest.raises(ValueError, match=r"is of version \(9, 0\) of the format"):
        read(path, 3)


# formats


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, "uint8", None), "channels: 0"),
        ((3, "unit8", None), "dtype: 'unit8'.*did you mean 'uint8'"),
        ((3, "float32", [1, 0]), r"value_range: \[1, 0\]; expected \[lowest, highest\]"),
        ((3, "float32", [0, 1, 2]), "value_range"),
        ((3, "float32", [0, float("nan")]), "value_range"),
    ],
)
def test_a_format_that_cannot_be_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        PixelFormat.of(*values)


# framing


@pytest.mark.parametrize(
    "interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize(("height", "width"), [(24, 30), (100, 90)])
def test_each_channel_is_resized_as_pillow_does(interpolation, channels, height, width):
    values = fractions(60, 72, channels) * 2 - 1
    method = Image.Resampling[interpolation.upper()]
    pages = [
        np.asarray(Image.fromarray(values[..., channel]).resize((width, height), method))
        for channel in range(channels)
    ]
    expected = np.stack(pages, axis=2).clip(-1, 1)
    sized = resize(values, height, width, interpolation)
    assert sized.dtype == np.float32
    np.testing.assert_allclose(sized, expected, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_each_channel_of_bytes_is_resized_as_pillow_does_within_one_level(interpolation, channels):
    values = np.random.default_rng(0).integers(0, 256, (60, 72, channels), dtype=np.uint8)
    method = Image.Resampling[interpolation.upper()]
    sized = resize(values, 30, 24, interpolation)
    assert sized.dtype == np.uint8
    for channel in range(channels):
        expected = np.asarray(Image.fromarray(values[..., channel]).resize((24, 30), method))
        assert np.abs(sized[..., channel].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_transparency_does_not_weigh_the_colours(interpolation):
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    shown = values.copy()
    values[..., 3], shown[..., 3] = 0, 255
    ours, theirs = (resize(each, 20, 20, interpolation) for each in (values, shown))
    np.testing.assert_array_equal(ours[..., :3], theirs[..., :3])


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_float_pictures_are_cropped_and_mirrored_like_others(channels):
    values = fractions(24, 40, channels) * 2 - 1
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(Framing.of(24)(values, rng), values[:, 8:32])
    np.testing.assert_array_equal(Framing.of([24, 40], flip_p=1)(values, rng), values[:, ::-1])
    framed = Framing.of([12, 20], random_crop=True, min_crop=0.5)(values, rng)
    assert framed.shape == (12, 20, channels)
    assert np.abs(framed).max() <= 1


# folders


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_folder_of_arrays_is_a_data_set(tmp_path, dtype):
    stacks(tmp_path / "stacks")
    data = ImageFolder(tmp_path / "stacks", 16, split="all", channels=13, dtype=dtype)
    assert [data[i]["relpath"] for i in range(3)] == ["0.npy", "1.npy", "2.npy"]
    expected = fractions(16, 16, 13, seed=1)
    image = data[1]["image"]
    assert image.dtype == dtype
    if dtype == "uint8":
        np.testing.assert_array_equal(image, np.rint(expected * 255))
    else:
        np.testing.assert_allclose(image, 2 * expected - 1, atol=1e-6)


def test_pictures_beside_stacks_of_many_channels_are_not_read(tmp_path):
    stacks(tmp_path)
    Image.fromarray(gradient(16, 16)).save(tmp_path / "preview.png")
    assert len(ImageFolder(tmp_path, 16, split="all", channels=13)) == 3


def test_an_array_beside_an_image_of_the_same_name_is_not_read(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(gradient(16, 16)).save(tmp_path / f"{name}.png")
    for name in ("a", "c"):
        np.save(tmp_path / f"{name}.npy", gradient(16, 16))
    data = ImageFolder(tmp_path, 16, split="all")
    assert data.names == ["a.png", "b.png", "c.npy"]
    np.testing.assert_array_equal(data[2]["image"], data[0]["image"])


def test_a_folder_without_arrays_is_an_error_that_asks_for_them(tmp_path):
    Image.fromarray(gradient(16, 16)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"holds no images; expected files ending in \.npy"):
        ImageFolder(tmp_path, 16, channels=13)


def test_bad_arrays_are_counted_named_and_replaced(tmp_path, caplog_ldm):
    stacks(tmp_path, channels=4)
    holed = fractions(16, 16, 4)
    holed[3, 4, 1] = np.nan
    np.save(tmp_path / "3.npy", holed)
    np.save(tmp_path / "4.npy", fractions(16, 16, 5))
    (tmp_path / "5.npy").write_bytes((tmp_path / "0.npy").read_bytes()[:500])
    (tmp_path / "6.npy").write_text("no array")
    (tmp_path / "7.npy").write_bytes(b"")
    np.save(tmp_path / "8.npy", fractions(4, 16, 4))
    whole = (tmp_path / "0.npy").read_bytes()
    (tmp_path / "9.npy").write_bytes(whole.replace(b"}", b" ", 1))
    data = ImageFolder(tmp_path, 16, split="all", channels=4, dtype="float32")
    assert "6 of 10 image files cannot be used" in caplog_ldm.text
    found = faults(data)
    assert list(found) == [3, 4, 5, 6, 7, 8, 9]
    assert found[3] == "nan at [3, 4, 1] is outside 0..1"
    assert found[4] == "has 5 channels, expected 4"
    assert found[5].startswith("is shorter than its header says")
    assert found[7] == "is empty"
    assert found[8] == "16 x 4 pixels"
    assert found[9] == "has a damaged header"
    taken = [item["relpath"] for item in read_whole(data)[0]]
    assert taken[:3] == ["0.npy", "1.npy", "2.npy"]
    assert set(taken) == set(taken[:3])


def test_bad_arrays_only_are_an_error(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.full((16, 16, 3), np.inf))
    with pytest.raises(
        ConfigError, match=r"none of its 2 .* a\.npy \(inf at \[0, 0, 0\] is outside"
    ):
        ImageFolder(tmp_path, 16, split="all")


def test_deep_pictures_stay_deep_in_a_folder(tmp_path):
    numbers = levels(16, 16, 3)
    write_png(tmp_path / "a.png", numbers)
    data = ImageFolder(tmp_path, 16, split="all", dtype="float32")
    np.testing.assert_allclose(data[0]["image"], numbers / 65535 * 2 - 1, atol=7e-7)


def test_a_list_names_arrays_as_well(tmp_path):
    stacks(tmp_path, channels=2)
    Image.fromarray(gradient(16, 16)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("1.npy\na.png\n")
    data = ImageList(tmp_path / "list.txt", size=16, channels=2, value_range=[0, 2])
    assert faults(data) == {1: "has 3 channels, expected 2, as .npy"}
    expected = np.rint(fractions(16, 16, 2, seed=1) / 2 * 255)
    np.testing.assert_array_equal(data[0]["image"], expected)


def test_classes_and_captions_of_arrays_are_found(tmp_path):
    stacks(tmp_path / "field", count=2)
    stacks(tmp_path / "wood", count=1)
    (tmp_path / "wood/0.txt").write_text("pines")
    item = ImageFolder(tmp_path, 16, split="all", channels=13)[2]
    assert (item["human_label"], item["caption"]) == ("wood", "pines")
