"""Train a small CLIP on drawn scenes and their captions, in minutes on one core.

python scripts/train_clip.py --out logs/clip
python scripts/build_index.py configs/tasks/retrieval.yaml --clip logs/clip \
  --out logs/neighbours.safetensors

Images and captions are embedded so that those that belong together are near each other
(arXiv:2103.00020, section 2). As captions of photographs do, these leave things unsaid: most do not
tell the size, or the place, so that shape, colour and background weigh more. The directory has the
format of transformers, with a tokenizer of the scenes' own words, and is loaded like any other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ldm.cli.exits import exit_code
from ldm.cli.running import check_least, device_of, output_directory
from ldm.config import ConfigError
from ldm.data.scenes import caption, parse, vocabulary
from ldm.data.shapes import ShapesDataset
from ldm.nets.clip import to_clip_pixels
from ldm.tensor import to_image_tensor

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 16  # per caption; the longest has 11 words
HEAD = 16  # width of an attention head
WARM_UP = 50  # optimizer steps
SCALE_LIMIT = 4.6052  # log of 100, the largest inverse temperature (section 2.3)


def train_clip(argv: Sequence[str]) -> None:
    """Train, save, and say how often the right caption is found among the held-out ones."""
    args = _parse(argv)
    device = device_of(args.device)
    out = output_directory(args.out)
    torch.manual_seed(args.seed)
    save_tokenizer(out)
    tokenizer = CLIPTokenizer.from_pretrained(out)
    model: Any = CLIPModel(small_clip(len(tokenizer), args.size, args.width, args.patch))
    model.to(device)
    data = ShapesDataset(args.size, length=args.images)
    start = time.monotonic()
    _train(model, tokenizer, data, args)
    model.save_pretrained(out)
    found = accuracy(model, tokenizer, ShapesDataset(args.size, split="validation", length=298))
    print(
        f"{out}: {(time.monotonic() - start) / 60:.1f} minutes; the caption of {found:.1%} of 298 "
        "held-out pictures is found among all 298"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="where configuration, weights and words go")
    add("--steps", type=int, default=700, help="optimizer steps")
    add("--batch-size", type=int, default=128, help="pairs that are told apart from each other")
    add("--learning-rate", type=float, default=2e-3, help="its peak")
    add("--images", type=int, default=38400, help="drawn scenes")
    add("--size", type=int, default=32, help="side of the pictures in pixels")
    add("--patch", type=int, default=4, help="side of a patch in pixels")
    add("--width", type=int, default=64, help="of both networks and of the embeddings")
    add("--unsaid", type=float, default=0.75, help="share of captions without size, without place")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    args = parser.parse_args(argv)
    check_least(args, steps=1, batch_size=2, images=2, size=16, patch=1, width=HEAD, seed=0)
    if not 0 <= args.unsaid <= 1:
        raise ConfigError(f"--unsaid {args.unsaid}: expected a share, 0 to 1")
    if args.width % HEAD:
        raise ConfigError(f"--width {args.width}: expected a multiple of {HEAD}")
    if args.size % args.patch:
        raise ConfigError(f"--patch {args.patch}: expected a divisor of --size {args.size}")
    return args


def small_clip(words: int, size: int, width: int, patch: int) -> CLIPConfig:
    """The configuration of a CLIP of so many words, for images of a side in pixels."""
    layers = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": width // HEAD,
        "attention_dropout": 0.0,
    }
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": words, "max_position_embeddings": TOKENS, "num_hidden_layers": 2, **ends}
    vision = {"image_size": size, "patch_size": patch, "num_hidden_layers": 3}
    return CLIPConfig(
        text_config={**layers, **text}, vision_config={**layers, **vision}, projection_dim=width
    )


def save_tokenizer(out: Path) -> None:
    """Write a tokenizer of CLIP's kind, byte pairs, to which each word of a scene is one token."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = byte_pairs(vocabulary())
    made = [first + second for first, second in merges]
    pieces = [START, END, *letters, *(f"{letter}</w>" for letter in letters), *made]
    (out / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    lines = [f"{first} {second}" for first, second in merges]
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def byte_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that are merged, the most frequent first, until every word is one piece."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in split for pair in pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_merged(word, best) for word in split]
    return merges


def _merged(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word with each occurrence of a pair made one."""
    found: list[str] = []
    index = 0
    while index < len(word):
        is_pair = tuple(word[index : index + 2]) == pair
        found.append("".join(pair) if is_pair else word[index])
        index += 2 if is_pair else 1
    return found


def _train(model: Any, tokenizer: Any, data: ShapesDataset, args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    rng = np.random.default_rng(args.seed)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, args.steps))
    model.train()
    with tqdm(range(args.steps), unit="step") as bar:
        for _ in bar:
            loss = pair_loss(model, tokenizer, *_pairs(data, rng, args))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=SCALE_LIMIT)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: up in a line, then down half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return float(0.5 + 0.5 * np.cos(np.pi * step / steps))


def _pairs(
    data: ShapesDataset, rng: np.random.Generator, args: argparse.Namespace
) -> tuple[Tensor, list[str]]:
    """Images (B, 3, H, W) in [-1, 1] and their captions, drawn at random."""
    items = [data[index] for index in rng.integers(len(data), size=args.batch_size)]
    images = torch.from_numpy(np.stack([item["image"] for item in items]))
    captions = [shortened(item["caption"], *(rng.random(2) < args.unsaid)) for item in items]
    return to_image_tensor(images), captions


def shortened(text: str, without_size: bool, without_place: bool) -> str:
    """The caption of a scene of one thing without its size, or its place, or both."""
    scene = parse(text)
    (thing,) = scene.things
    size, place = None if without_size else thing.size, None if without_place else scene.place
    return caption(replace(scene, things=(replace(thing, size=size),), place=place))


def embeddings(
    model: Any, tokenizer: Any, images: Tensor, captions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Embeddings of length 1 of images and captions, (B, D) each."""
    pixels = to_clip_pixels(images.to(model.device), model.config.vision_config.image_size)
    words = tokenizer(
        list(captions),
        padding="max_length",
        max_length=TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    read = model.text_projection(model.text_model(**words.to(model.device)).pooler_output)
    return F.normalize(seen, dim=1), F.normalize(read, dim=1)


def pair_loss(model: Any, tokenizer: Any, images: Tensor, captions: Sequence[str]) -> Tensor:
    """Cross-entropy of finding each image's caption in the batch and the other way round, nats.

    Section 2.3 of arXiv:2103.00020. A caption that a batch has twice is not told apart from itself.
    """
    seen, read = embeddings(model, tokenizer, images, captions)
    logits = model.logit_scale.exp() * seen @ read.T
    same = torch.tensor([[a == b for b in captions] for a in captions], device=logits.device)
    others = same & ~torch.eye(len(captions), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(others, -torch.inf)
    own = torch.arange(len(captions), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, data: ShapesDataset) -> float:
    """Share of the pictures to which their own caption is the nearest of all captions."""
    model.eval()
    items = [data[index] for index in range(len(data))]
    images = to_image_tensor(torch.from_numpy(np.stack([item["image"] for item in items])))
    seen, read = embeddings(model, tokenizer, images, [item["caption"] for item in items])
    nearest = (seen @ read.T).argmax(dim=1).cpu()
    return float((nearest == torch.arange(len(items))).double().mean())


if __name__ == "__main__":
    sys.exit(exit_code(train_clip))
