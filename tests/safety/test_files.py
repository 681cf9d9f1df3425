"""Files of strangers: nothing they say is done, and nothing is written outside of its place."""

import io
import json
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.autoencoders.statistics import LatentStatistics
from ldm.cli.sampling.entries import read_captions
from ldm.cli.sampling.record import read_record
from ldm.config import ConfigError
from ldm.data.coco import CocoBoxes, CocoCaptions
from ldm.data.decoding import UNREADABLE, read_image
from ldm.data.folder import ImageFolder
from ldm.data.mapped import mapped_arrays
from ldm.data.maps import read_map
from ldm.data.pixels import PixelFormat
from ldm.data.retrieval import Index
from ldm.data.shards import Shards
from ldm.data.substitutes import BadSample
from ldm.models.autoencoder import VQModel
from tests.cli.jobs import draw
from tests.cli.runs import first_stage
from tests.data.tars import picture, write_tar
from tests.safety.payloads import Call, pickled
from tests.safety.test_checkpoints import DAMAGED
from tests.safety.watching import below

# what data sets read


def _coco(place, name):
    image = {"id": 1, "file_name": name, "width": 30, "height": 20}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "caption": "a"}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "../x"}]}
    (place / "coco.json").write_text(json.dumps(content))
    return place / "coco.json"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "a\0b"])
@pytest.mark.parametrize("kind", [CocoBoxes, CocoCaptions])
def test_annotations_do_not_lead_out_of_the_images(alone, kind, name):
    (alone / "images").mkdir()
    (alone / "images" / "a.png").write_bytes(picture(0))
    (alone / "secret.png").write_bytes(picture(1))
    with pytest.raises(ConfigError, match=r"file_name .*expected a name below"):
        kind(alone / "images", _coco(alone, name), size=16)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a\\..\\..\\secret.png"])
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_table_of_captions_names_images_of_its_folder_only(alone, table, name):
    root = alone / "images"
    root.mkdir()
    (root / "a.png").write_bytes(picture(0))
    (alone / "secret.png").write_bytes(picture(1))
    rows = [("a.png", "mine"), (name, "theirs")]
    if table.endswith("csv"):
        text = "file_name,text\n" + "".join(f"{row[0]},{row[1]}\n" for row in rows)
    else:
        text = "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows)
    (root / table).write_text(text)
    data = ImageFolder(root, 16, split="all")
    assert [data[i]["relpath"] for i in range(len(data))] == ["a.png"]
    assert data[0]["caption"] == "mine"


@pytest.mark.parametrize("word", ["pipe:touch ran", "http://127.0.0.1:1/a.tar", "gs://a/b.tar"])
def test_shards_are_files_and_never_commands_or_addresses(alone, monkeypatch, word):
    monkeypatch.chdir(alone)
    with pytest.raises(ConfigError, match="expected files of this machine"):
        Shards(word, 16)


def test_samples_of_shards_are_never_unpickled(alone):
    payload = pickled(Call(print, "ran"), 2)
    extra = [("0.pyd", payload), ("0.pickle", payload), ("0.pth", payload), ("0.npy", payload)]
    write_tar(alone / "a.tar", [("0.png", picture(0)), ("0.json", {"caption": "a"}), *extra])
    data = Shards(str(alone / "a.tar"), 16, split="all")
    assert data[0]["caption"] == "a"


@pytest.mark.parametrize("name", ["../0.png", "/0.png", "a/../../0.png"])
def test_members_of_shards_that_lead_out_are_bad_samples(alone, name):
    key = name.rpartition(".")[0]
    write_tar(alone / "a.tar", [(name, picture(0)), (f"{key}.txt", "a")])
    with pytest.raises(ConfigError, match="leads out of the tar"):
        Shards(str(alone / "a.tar"), 16, split="all", index_dir=alone / "index")
    assert all(each == "a.tar" or each.startswith("index/") for each in below(alone))


def _png(width, height):
    """A PNG of so many pixels in a few bytes: its header says so, and nothing follows."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_an_image_of_billions_of_pixels_is_a_bad_sample(alone, caplog_ldm):
    (alone / "a.png").write_bytes(_png(60_000, 60_000))
    (alone / "b.png").write_bytes(picture(0))
    data = ImageFolder(alone, 16, split="all")
    with pytest.raises(BadSample, match=r"a\.png"):
        data[0]
    assert data[1]["relpath"] == "b.png"
    assert "1 of 2 image files cannot be used" in caplog_ldm.text
    with pytest.raises(UNREADABLE):
        read_image(alone / "a.png", 3)


def _npy(value, **header):
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    content = file.getvalue()
    for before, after in header.items():
        content = content.replace(before.encode(), after.encode())
    return content


ARRAYS = {
    "objects": _npy(np.array([Call(print, "ran")], dtype=object)),
    "a pickle": pickled(Call(print, "ran"), 2),
    "code for a header": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 64)
    + b"__import__('os')".ljust(64),
    "a huge shape": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 78)
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99999), }".ljust(78),
    "a negative shape": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 70)
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1), }".ljust(70),
    "nested": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
    "nothing": b"",
}


@pytest.mark.parametrize("what", ARRAYS)
def test_an_array_is_numbers_or_nothing(alone, what):
    (alone / "a.npy").write_bytes(ARRAYS[what])
    for read in (lambda path: PixelFormat.of(1).read(path), read_map):
        with pytest.raises(UNREADABLE):
            read(alone / "a.npy")


@pytest.mark.parametrize("what", ["objects", "a pickle", "nothing", "an archive"])
def test_codes_to_remap_are_numbers_or_nothing(alone, what):
    path = alone / "remap.npy"
    if what == "an archive":
        np.savez(alone / "remap.npz", a=np.arange(3))
        (alone / "remap.npz").rename(path)
    else:
        path.write_bytes(ARRAYS[what])
    ddconfig = {**first_stage()["model"]["params"]["ddconfig"], "double_z": False}
    with pytest.raises(ConfigError, match=r"remap: .*no array of numbers"):
        VQModel(ddconfig, _NO_LOSS, n_embed=8, embed_dim=4, remap=str(path))


_NO_LOSS = {"target": "torch.nn.Identity"}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_index_is_one_error(alone, what):
    (alone / "index.safetensors").write_bytes(DAMAGED[what])
    with pytest.raises(ConfigError, match=r"index\.safetensors"):
        Index.read(alone / "index.safetensors")


@pytest.mark.parametrize("what", ["negative offsets", "a negative shape", "fractions", "nested"])
def test_arrays_are_not_mapped_from_outside_of_their_place(alone, what):
    (alone / "a.safetensors").write_bytes(DAMAGED[what])
    with pytest.raises(ConfigError, match="damaged"):
        mapped_arrays(alone / "a.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "[" * 100_000, '{"latent": 1}', "NaN", '{"overall": {"std": "x"}}'],
)
def test_statistics_of_latents_that_are_none_are_one_error(alone, text):
    (alone / "stats.json").write_text(text)
    with pytest.raises(ValueError, match="holds no statistics"):
        LatentStatistics.read(alone / "stats.json")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1" * 5000, "[]", '{"images": 1}'])
def test_annotations_that_are_none_are_one_error(alone, text):
    (alone / "a.png").write_bytes(picture(0))
    (alone / "coco.json").write_text(text)
    with pytest.raises(ConfigError, match=r"annotations: .*coco\.json"):
        CocoCaptions(alone, alone / "coco.json")


# what sampling scripts are given

CAPTIONS = [
    *("../../x", "/etc/x", "..", "a\0b", "x" * 5000, "CON", "a\nb", "$(touch ran)", "`touch ran`"),
    *("; touch ran", "%s%n", "{0.__class__}", "\x1b[2J", "\u202egnp.exe", "\ud800", "-h", ""),
]


def test_captions_and_classes_name_no_file(alone, plain):
    draw(plain, alone / "out", "--n", 1, "--steps", 1, "--size", 16, 16)
    names = below(alone / "out")
    assert names == ["00000.png", "grid.png", "job.json"]
    assert read_captions(CAPTIONS, None) == CAPTIONS


def test_a_file_of_captions_is_text_and_every_line_is_one(alone):
    lines = [each for each in CAPTIONS if each.isprintable() and each]
    (alone / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    assert read_captions([], str(alone / "prompts.txt")) == lines
    (alone / "binary.txt").write_bytes(pickled({"a": 1}, 4) + b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_captions([], str(alone / "binary.txt"))


RECORDS = {
    "not JSON": "{",
    "nested": "[" * 100_000,
    "a list": "[]",
    "nothing": "{}",
    "an index beyond": {"index": 7},
    "a negative index": {"index": -1},
    "items of no seed": {"items": [{}]},
    "items of a text": {"items": "xyz"},
    "flags of a list": {"flags": []},
    "no threads": {"threads": 0},
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_picture_with_a_forged_record_is_one_error(alone, what):
    record = {"script": "sample", "flags": {}, "items": [{"seed": 0}], "index": 0, "solver": ""}
    record |= {"run": "x", "sha256": "", "model": {}, "threads": 1, "versions": {}}
    forged = RECORDS[what]
    info = PngInfo()
    info.add_text("ldm", forged if isinstance(forged, str) else json.dumps(record | forged))
    Image.new("RGB", (4, 4)).save(alone / "a.png", pnginfo=info)
    with pytest.raises(ConfigError, match=r"--from-png .*record"):
        read_record(alone / "a.png")


# what transformers reads


@pytest.fixture
def hub(alone):
    """A directory whose files name code beside them, which would leave a canary."""
    code = f"open({str(alone / 'ran')!r}, 'w')\nclass Evil:\n    pass\n"
    for name in ("modeling_evil.py", "tokenization_evil.py", "configuration_evil.py"):
        (alone / name).write_text(code)
    auto = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModel": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenization_evil.Evil", None],
    }
    config = {"model_type": "bert", "auto_map": auto, "trust_remote_code": True}
    (alone / "config.json").write_text(json.dumps({**config, "architectures": ["Evil"]}))
    told = {**config, "tokenizer_class": "Evil"}
    (alone / "tokenizer_config.json").write_text(json.dumps(told))
    (alone / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    return alone


def test_code_beside_a_tokenizer_is_not_imported(hub):
    from ldm.conditioning.text import BERTTokenizer

    ids = BERTTokenizer(str(hub), 8)(["a"])
    assert ids.shape == (1, 8)
    assert not {"modeling_evil", "tokenization_evil"} & set(sys.modules)


def test_weights_of_an_encoder_call_nothing(hub):
    import torch
    from transformers import CLIPTextModel

    from ldm.conditioning.hub import from_hub
    from tests.safety.payloads import touch

    torch.save({"a": touch(hub / "ran")}, hub / "pytorch_model.bin")
    (hub / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    with pytest.raises(ConfigError, match="lacks a file, or has one that cannot be read"):
        from_hub(CLIPTextModel, str(hub), "the text encoder")
