"""Tars of samples, as they are kept."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(seed, height=20, width=30, kind="PNG"):
    """An image file's content: noise, of which no two are alike."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path, members):
    """A tar of (name, content), the content bytes, text, or what becomes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(start, stop):
    """Members of samples as a usual downloader writes them."""
    members = []
    for number in range(start, stop):
        key, text = f"{number:09}", f"caption {number}"
        members.append((f"{key}.jpg", picture(number, kind="JPEG")))
        members.append((f"{key}.txt", text))
        members.append((f"{key}.json", {"caption": text, "width": 30, "height": 20, "key": key}))
    return members


def shards(place, count=2, each=5):
    """Tars 00000.tar, 00001.tar, ... of so many samples each."""
    return [
        write_tar(place / f"{index:05}.tar", samples(index * each, (index + 1) * each))
        for index in range(count)
    ]
