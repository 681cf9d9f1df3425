"""Whether encoders of captions have their tokenizers here; nothing is fetched for a check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ldm.cli.report.collector import Collector
from ldm.config import ConfigError

__all__ = ["check_tokenizer"]


def check_tokenizer(embedder: Any, path: str, findings: Collector) -> None:
    """Load the tokenizer of an encoder that reads captions, and say what is wrong with it.

    path: of the encoder in the configuration.
    One that is in no cache yet is a warning: the training fetches it where there is a network.
    """
    load = getattr(embedder, "load_tokenizer", None)
    if load is None or embedder.reads != "text":
        return
    try:
        with _offline(), findings.warnings():
            load()
    except ConfigError as error:
        message = str(error).removeprefix("tokenizer: ")
        is_fetched = "in the hub's cache" in message
        place = f"{path}.params.tokenizer"
        place = place if findings.places.has(place) else path
        findings.add("warning" if is_fetched else "error", place, message)


@contextmanager
def _offline() -> Iterator[None]:
    """Have the hub's library look into its cache alone."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
