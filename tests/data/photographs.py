"""A directory of image files of every kind, as a user's own may be."""

import numpy as np
from PIL import Image


def gradient(height, width, *, dtype=np.uint8, top=255):
    """Red grows to the right, green downwards, blue is constant: no symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * top / (width - 1), rows * top / (height - 1)
    return np.stack([red, green, np.full_like(red, top / 4)], axis=2).astype(dtype)


def mixed_directory(root):
    """Ten usable files and three that are not; returns the names of the latter."""
    root.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(gradient(48, 72))
    picture.save(root / "rgb.jpg", quality=95)
    picture.convert("L").save(root / "grey.png")
    picture.convert("LA").save(root / "grey_alpha.png")
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(picture.size))
    transparent.save(root / "alpha.png")
    picture.quantize(16).save(root / "palette.gif")
    picture.quantize(16).save(root / "palette_transparent.png", transparency=0)
    picture.convert("CMYK").save(root / "cmyk.jpg", quality=95)
    deep = gradient(48, 72, dtype=np.uint16, top=65535)[..., 0]
    Image.fromarray(deep).save(root / "deep.png")
    Image.fromarray(deep).save(root / "deep.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise to see it upright
    picture.rotate(90, expand=True).save(root / "turned.jpg", quality=95, exif=exif)
    whole = (root / "rgb.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(gradient(40, 2)[:, :1]).save(root / "narrow.png")
    (root / "text.jpg").write_text("this is no image")
    return {"truncated.jpg", "narrow.png", "text.jpg"}


def synset_directories(root, count=1000):
    """ImageNet's layout, with one picture of each class to train on and a few to validate."""
    picture = Image.fromarray(gradient(16, 16))
    root.mkdir(parents=True)
    picture.save(root / "picture.png")
    content = (root / "picture.png").read_bytes()
    for split, classes in (("train", count), ("validation", 4)):
        for index in range(classes):
            directory = root / split / f"n{index:08}"
            directory.mkdir(parents=True)
            (directory / "picture.png").write_bytes(content)
