"""The paper's models: what it says of each, miniature data for each, and narrow ones to train."""

import json
import tarfile
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ldm.data.mapped import write_arrays
from ldm.data.retrieval import name_key
from tests.data.photographs import gradient
from tests.shipped_configs import ROOT, entries, shrunk

DIRECTORY = ROOT / "configs" / "latent-diffusion"
STUDY = DIRECTORY / "celebahq-study"

UNET, TAU, FIRST = "unet", "tau", "first stage"


class Row(NamedTuple):
    """What the paper says of a model (arXiv:2112.10752, tables 12 to 15), and its published twin.

    millions: of parameters, by the paper; None where it gives none.  counted: what they are of.
    batch: images in a step.  published: name of the configuration of the 2022 release.
    """

    millions: float | None
    counted: tuple[str, ...]
    rate: float
    batch: int
    steps: int
    published: str | None = None


ALONE, TOLD, WITH_FIRST = (UNET,), (UNET, TAU), (UNET, FIRST)
# tables 12, 13 and 15; 1.28e-4 is the published 1e-6 of an image x 128, where table 15 prints 1e-6
PAPER = {
    "celebahq-vq-f4": Row(274, ALONE, 9.6e-5, 48, 410_000, "train_celebahq-ldm-vq-4"),
    "ffhq-vq-f4": Row(274, ALONE, 8.4e-5, 42, 635_000, "train_ffhq-ldm-vq-4"),
    "lsun-bedrooms-vq-f4": Row(274, ALONE, 9.6e-5, 48, 1_900_000, "train_lsun_bedrooms-ldm-vq-4"),
    "lsun-churches-kl-f8": Row(294, ALONE, 5e-5, 96, 500_000, "train_lsun_churches-ldm-kl-8"),
    "cin-vq-f4": Row(400, TOLD, 1e-4, 1200, 178_000, "train_cin256-v2"),
    "cin-vq-f8": Row(395, TOLD, 6.4e-5, 64, 4_800_000, "train_cin-ldm-vq-f8"),
    "cin-study-identity-f1": Row(396, TOLD, 4.9e-5, 7, 2_000_000),
    "cin-study-vq-f2": Row(391, TOLD, 6.3e-5, 9, 2_000_000),
    "cin-study-vq-f4": Row(391, TOLD, 8e-5, 40, 2_000_000),
    "cin-study-vq-f8": Row(395, TOLD, 6.4e-5, 64, 2_000_000),
    "cin-study-vq-f16": Row(395, TOLD, 4.5e-5, 112, 2_000_000),
    "cin-study-vq-f32": Row(395, TOLD, 4.5e-5, 112, 2_000_000),
    "txt2img-kl-f8": Row(1450, TOLD, 1e-4, 680, 390_000, "train_txt2img-1p4B-eval"),
    "txt2img-small-kl-f8": Row(None, TOLD, 1e-4, 64, 400_000),
    "layout-coco-vq-f8": Row(345, TOLD, 4.8e-5, 48, 170_000),
    "layout-openimages-vq-f4": Row(
        306, TOLD, 4.8e-5, 24, 4_400_000, "ldm_layout2img-openimages256"
    ),
    "semantic-vq-f4": Row(215, TOLD, 4.8e-5, 48, 360_000, "ldm_semantic_synthesis256"),
    "semantic-512-vq-f4": Row(215, TOLD, 8e-6, 8, 100_000, "ldm_semantic_synthesis512"),
    "semantic-vq-f8": Row(215, TOLD, 4.8e-5, 48, 360_000),
    "superres-vq-f4": Row(169, WITH_FIRST, 6.4e-5, 64, 860_000),
    "superres-big-vq-f4": Row(552, WITH_FIRST, 6.4e-5, 64, 860_000),
    "superres-bsr-vq-f4": Row(None, WITH_FIRST, 6.4e-5, 64, 860_000, "ldm_bsr_sr"),
    "inpaint-vq-f4": Row(215, ALONE, 1.28e-4, 128, 360_000),
    "inpaint-vq-f4-noattn": Row(215, ALONE, 1.28e-4, 128, 360_000),
    "inpaint-big-vq-f4-noattn": Row(387, ALONE, 1.28e-4, 128, 360_000, "ldm_inpainting_big"),
    "inpaint-identity-f1": Row(None, ALONE, 1.28e-4, 128, 360_000),
    "retrieval-kl-f16": Row(None, ALONE, 1e-4, 128, 400_000, "rdm_768x768"),
}
# table 14: first stage -> rate, batch; its models have 258 M to 274 M parameters
STUDIED = {
    "identity-f1": (9e-5, 9),
    "vq-f2": (1.1e-4, 11),
    "vq-f4": (9.6e-5, 48),
    "vq-f8": (9.6e-5, 96),
    "vq-f16": (1.3e-4, 128),
    "vq-f32": (1.3e-4, 128),
}
STUDIED_MILLIONS = (258, 274)


def first_stage_of(name: str) -> str:
    """The file of `configs/autoencoder` whose latents a model is on: its name ends so."""
    stems = [path.stem for path in (ROOT / "configs/autoencoder").glob("*.yaml")]
    return max((stem for stem in stems if name.endswith(stem)), key=len)


def miniature(directory):
    """Data of every kind in one directory, five pictures each.

    images/*.png with captions, maps/*.png with labels, instances.json with a box in each image,
    index.safetensors with neighbours of each, the same pictures as two classes of ImageNet, and
    those of `images` in shards/0.tar, and named in list.txt.
    """
    for part in ("images", "maps", "train/n01440764", "train/n01443537", "val/n01443537"):
        (directory / part).mkdir(parents=True)
    picture = Image.fromarray(gradient(72, 96))
    labels = np.repeat(np.arange(96, dtype=np.uint8)[None] % 182, 72, axis=0)
    labels[0] = 255
    names = [f"{index}.png" for index in range(5)]
    for name in names:
        for part in ("images", "train/n01440764", "train/n01443537", "val/n01443537"):
            picture.save(directory / part / name)
        (directory / "images" / name).with_suffix(".txt").write_text("a small red circle\n")
        Image.fromarray(labels).save(directory / "maps" / name)
    coco = {
        "images": [
            {"id": i, "file_name": n, "width": 96, "height": 72} for i, n in enumerate(names)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [30, 20, 30, 40]} for i in range(5)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (directory / "list.txt").write_text("".join(f"images/{name}\n" for name in names))
    (directory / "instances.json").write_text(json.dumps(coco))
    (directory / "shards").mkdir()
    with tarfile.open(directory / "shards/0.tar", "w") as tar:
        for path in sorted((directory / "images").iterdir()):
            tar.add(path, path.name)
    index_of(names, directory / "index.safetensors")
    return directory


def index_of(names, path):
    """An index of images by which each is a neighbour of all, of random embeddings."""
    embeddings = np.random.default_rng(0).normal(size=(len(names), 768)).astype(np.float16)
    table = np.repeat(np.arange(len(names), dtype=np.int32)[None], len(names), axis=0)
    keys = np.array([name_key(name) for name in names], dtype=np.int64)
    lines = "".join(f"{name}\n" for name in names).encode()
    arrays = {"embeddings": embeddings, "names": np.frombuffer(lines, np.uint8)}
    for split in ("train", "validation"):
        arrays |= {f"neighbours.{split}": table, f"keys.{split}": keys}
    write_arrays(path, arrays, {"clip": "none", "database": "images"})


def on_miniature(config: dict[str, Any], directory) -> list[str]:
    """Overrides that fill in the paths of a configuration: those of miniature data, no weights."""
    overrides = []
    for path, key, value in entries(config):
        if value == "???":
            holder = config
            for step in path.split(".")[:-2]:
                holder = holder[step]
            target = holder["target"]
            is_whole = target.endswith(("ImageMapFolder", "ImageNetTrain"))
            places = {
                "ckpt_path": "null",
                "annotations": directory / "instances.json",
                "shards": directory / "shards",
                "index": directory / "index.safetensors",
                "file": directory / "list.txt",
                "root": directory if is_whole else directory / "images",
                "data_root": directory if is_whole else directory / "images",
            }
            overrides.append(f"{path}={places[key]}")
    return overrides


def narrowed(config: dict[str, Any]) -> list[str]:
    """Overrides that leave a model its levels and connections and take away width and pixels."""
    params = config["model"]["params"]
    unet = params["unet_config"]["params"]
    # a cell on the coarsest level, and numbers enough for their mean to say something
    cells = max(2 ** (len(unet["channel_mult"]) - 1), 8 if params["channels"] < 8 else 4)
    overrides = [
        f"model.params.image_size={cells}",
        f"model.params.unet_config.params.image_size={cells}",
    ]
    # the width of neighbours is that of their index
    is_narrowed = params.get("cond_stage_key") != "neighbours"
    for path, key, value in entries(config):
        in_tau = path.startswith("model.params.cond_stage_config.params.")
        if key == "size" and isinstance(value, int):  # windows are smaller than their source
            overrides.append(f"{path}={cells * value // params['image_size']}")
        elif is_narrowed and (key == "context_dim" or (in_tau and key in ("n_embed", "embed_dim"))):
            overrides.append(f"{path}=32")
    return [*shrunk(config, "images"), *overrides]
