"""scripts/retrieve.py: what CLIP's embeddings of a text, of an image and of its neighbours say."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.cli.running import check_least
from ldm.cli.sampling.clip import digest_of_clip
from ldm.cli.sampling.entries import Item, kind_of, read_captions, require_script
from ldm.cli.sampling.inputs import unchanged
from ldm.cli.sampling.published import add_iterations
from ldm.cli.sampling.task import Given, Task
from ldm.cli.sampling.told import entries
from ldm.conditioning.clip import FrozenClipImageEmbedder, FrozenCLIPTextEmbedder
from ldm.config import ConfigError
from ldm.data.decoding import UNREADABLE, read_image, reason
from ldm.data.retrieval import Index
from ldm.evaluation.pictures import image_files
from ldm.io.digest import sha256_of
from ldm.log import log
from ldm.tensor import to_image_tensor

__all__ = ["Retrieve"]

_NAMED = 3  # neighbours that the log names


class Retrieve(Task):
    """Draws texts and images with a model that was trained on neighbours, `--n` of each."""

    name = "retrieve"
    description = """Draw with a retrieval-augmented model, from CLIP's embeddings.

python scripts/retrieve.py logs/RUN --clip DIR --prompt "a small red circle at the top on white"
python scripts/retrieve.py logs/RUN --clip DIR --prompt "a red circle" --index FILE --knn 10
python scripts/retrieve.py logs/RUN --clip DIR --image photograph.jpg --index FILE --knn 4"""
    pixel_flags = ("clip", "clip_sha256", "index", "index_sha256", "knn", "query")
    index: Index | None = None

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Texts and images, the CLIP that embeds them, and where their neighbours are."""
        add = parser.add_argument_group("what it draws").add_argument
        add("--prompt", action="append", default=[], help="a text; may be repeated")
        add("--from-file", metavar="TXT", help="texts, one per line")
        add(
            "--image", action="append", default=[], metavar="FILE", help="like this one; repeatable"
        )
        add("--class", dest="label", type=int, metavar="LABEL", help="a class as well, if it reads")
        add("--n", "--n_samples", type=int, default=4, help="images of each text or image")
        add_iterations(parser)
        add = parser.add_argument_group("what they are near to").add_argument
        add("--clip", metavar="DIR", help="the CLIP that the model was trained with")
        add("--index", "--database", metavar="FILE", help="a database of scripts/build_index.py")
        add("--knn", type=int, help="so many neighbours of it; default with --index: 10")
        add(
            "--query",
            choices=("with", "without"),
            help="their own embedding beside the neighbours'; default: with a text, not an image",
        )
        # published: neighbours are used where there is an index
        add("--use_neighbors", action="store_true", help=argparse.SUPPRESS)
        parser.set_defaults(scale=3.0, clip_sha256=None, index_sha256=None)

    def prepare(self, model: Any, args: argparse.Namespace) -> None:
        """Load CLIP and the index; ConfigError for what does not fit each other or the model."""
        require_script("scripts/retrieve.py", model)
        if args.clip is None:
            raise ConfigError("--clip is needed: the CLIP that the model was trained with")
        if args.index is None and (args.use_neighbors or args.knn is not None):
            raise ConfigError("--knn: there is no database to look in; give --index FILE")
        if args.index is None and args.query == "without":
            raise ConfigError("--query without: leaves nothing to draw from; give --index FILE")
        check_least(args, knn=1)
        args.clip_sha256 = digest_of_clip(args.clip)
        self.texts = FrozenCLIPTextEmbedder(args.clip)
        self.images = FrozenClipImageEmbedder(args.clip)
        for embedder in (self.texts, self.images):
            embedder.prepare()
            embedder.to(model.device)
        self._require_width(model, args.clip)
        if args.index is not None:
            self.index = _index_of(args)

    def _require_width(self, model: Any, clip: str) -> None:
        """Raise ConfigError unless the network attends to embeddings of CLIP's width."""
        width = getattr(model.model.diffusion_model, "context_dim", None)
        if width not in (None, self.texts.embed_dim):
            raise ConfigError(
                f"--clip {clip}: embeds in {self.texts.embed_dim} numbers, the model was trained "
                f"with {width}"
            )

    def items(self, model: Any, args: argparse.Namespace) -> list[Item]:
        """Each text, then each image, as often as asked, with the rows of its neighbours."""
        queries: list[Item] = []
        if args.prompt or args.from_file or not args.image:
            queries += [{"prompt": text} for text in read_captions(args.prompt, args.from_file)]
        for path in image_files(args.image):
            queries.append({"init": str(path), "init_sha256": sha256_of(path)})
        kinds = {"prompt" in query for query in queries}
        if self.index is not None and args.query is None:
            if len(kinds) == 2:
                raise ConfigError("--prompt and --image: say whether --query with, or without")
            args.query = "with" if True in kinds else "without"
        found = []
        for query in queries:
            item = {**entries(model, _caption(model, query), args.label), **query}
            if self.index is not None:
                rows = self.index.nearest(self._embedded(query), args.knn)[0].tolist()
                _tell(query, [self.index.names[row] for row in rows])
                item["near"] = rows
            found += [item] * args.n
        return found

    def given(self, model: Any, args: argparse.Namespace, items: Sequence[Item]) -> Given:
        """What the model reads, its neighbours as embeddings (B, k, D)."""
        batch = super().given(model, args, items).batch or {}
        tokens = torch.stack([self._tokens(item, args) for item in items]).to(model.device)
        keys = {part.key for part in model.conditioner.parts if kind_of(part) == "neighbours"}
        return Given(batch | dict.fromkeys(keys, tokens))

    def _tokens(self, item: Item, args: argparse.Namespace) -> Tensor:
        """The embeddings that an item is drawn from, (k, D)."""
        if self.index is None:
            return self._embedded(item).cpu()
        near = torch.from_numpy(self.index.embedded(np.array(item["near"])))
        return torch.cat([self._embedded(item).cpu(), near]) if args.query == "with" else near

    def _embedded(self, item: Item) -> Tensor:
        """CLIP's embedding of an item's text or image, (1, D), whatever is drawn beside it."""
        if "prompt" in item:
            return self.texts([item["prompt"]])  # type: ignore[no-any-return]
        path = unchanged(item, "init")
        try:
            pixels = read_image(path, 3)
        except UNREADABLE as error:
            raise ConfigError(f"{path}: cannot be read: {reason(error)}") from error
        return self.images(to_image_tensor(torch.from_numpy(np.array(pixels))[None]))  # type: ignore[no-any-return]


def _caption(model: Any, query: Item) -> str | None:
    """The text again, for a model that reads captions beside neighbours."""
    is_captioned = any(kind_of(part) == "caption" for part in model.conditioner.parts)
    return query.get("prompt") if is_captioned else None


def _tell(query: Item, names: Sequence[str]) -> None:
    what = repr(query["prompt"]) if "prompt" in query else Path(query["init"]).name
    more = ", ..." if len(names) > _NAMED else ""
    log.info("%s is near %s%s", what, ", ".join(names[:_NAMED]), more)


def _index_of(args: argparse.Namespace) -> Index:
    """The index of `--index`; ConfigError for one that another CLIP embedded."""
    index = Index.read(args.index)
    args.knn = min(10, len(index.embeddings)) if args.knn is None else args.knn
    args.index_sha256 = sha256_of(args.index)
    if index.metadata["clip"] != args.clip_sha256:
        raise ConfigError(
            f"--index {args.index}: was embedded by the CLIP of SHA-256 "
            f"{index.metadata['clip'][:12]}..., {args.clip} has {args.clip_sha256[:12]}..."
        )
    return index
