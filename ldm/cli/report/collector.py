"""Findings as they come: errors of checks caught, each brought to the key that it speaks of."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ldm.cli.report.finding import Finding, Severity
from ldm.cli.report.places import Places, split_path
from ldm.config import ConfigError
from ldm.log import log

__all__ = ["Collector"]

T = TypeVar("T")

_IN_FILE = re.compile(r"^(?P<file>\S+\.ya?ml): (?:line (?P<line>\d+): )?(?P<rest>.*)", re.DOTALL)
_OVERRIDE = re.compile(r"^override '(?P<word>[^']*)': (?P<rest>.*)", re.DOTALL)
_FLAG = re.compile(r"^(?P<flag>--\w+) ?(?P<rest>.*)", re.DOTALL)
# how a message goes on, and the parameter below its path that it is about
_ABOUT = (
    (
        re.compile(r"images of (\d+ channels, )?\d+ x \d+"),
        ("params.size", "params.source.params.size"),
    ),
    (re.compile(r"--gpus|no CUDA device"), ("gpus",)),
)
_NAMED = re.compile(r"\b([a-z_]\w*)=")  # a parameter with its value, inside of a message


class Collector:
    """Findings of a check.

    places: where the configuration's keys were written.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.findings: list[Finding] = []

    @property
    def has_errors(self) -> bool:
        """Whether something was found that ends a training."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def has_model_errors(self) -> bool:
        """Whether an error is about the model itself, not a value that is still to be given."""
        return any(
            each.severity == "error"
            and each.path.startswith("model.params")
            and not each.path.endswith(("ckpt_path", "monitor", "tokenizer", "lpips_weights"))
            and "a value is needed" not in each.message
            for each in self.findings
        )

    def add(self, severity: Severity, path: str, message: str, hint: str = "") -> None:
        """Add a finding about a key of the configuration; none about a key twice in a way."""
        found = Finding(severity, message, path, self.places.of(path), hint)
        if found not in self.findings:
            self.findings.append(found)

    def say(self, text: str, severity: Severity = "error") -> None:
        """Add what a check says: a line each; those that begin with blanks belong to the last."""
        for message in re.split(r"\n(?!\s)", text):
            first, *more = message.split("\n")
            hint = "; ".join(line.strip() for line in more)
            self._say(first, hint, severity)

    def _say(self, message: str, hint: str, severity: Severity) -> None:
        if found := _IN_FILE.match(message):
            line = f":{found['line']}" if found["line"] else ""
            place = f"{found['file']}{line}"
            path, rest = split_path(found["rest"])
            place = place if line else self.places.in_file(found["file"], path) or place
            self.findings.append(Finding(severity, rest, path, place, hint))
        elif found := _OVERRIDE.match(message):
            place = f"override {found['word']}"
            self.findings.append(Finding(severity, found["rest"], "", place, hint))
        elif found := _FLAG.match(message):
            path = f"lightning.trainer.{found['flag'].removeprefix('--')}"
            path = path if self.places.has(path) else self.places.known(path)
            place = self.places.of(path) or found["flag"]
            self.findings.append(Finding(severity, message, path, place, hint))
        else:
            path, rest = split_path(message)
            self.add(severity, self._deeper(path, rest), rest, hint)

    def _deeper(self, path: str, rest: str) -> str:
        """The path of the parameter that a message is about, where its own path is above that."""
        for pattern, below in _ABOUT:
            if pattern.search(rest):
                for each in below:
                    if self.places.has(f"{path}.{each}"):
                        return f"{path}.{each}"
        named = (self.places.below(path, name) for name in _NAMED.findall(rest))
        return next(filter(None, named), path)

    def attempt(
        self, function: Callable[[], T], path: str = "", severity: Severity = "error"
    ) -> T | None:
        """What a function returns; None where it fails, which becomes a finding.

        path: that an error other than ConfigError is about.
        """
        try:
            with self.warnings():
                return function()
        except ConfigError as error:
            self.say(str(error).rpartition("ConfigError: ")[2].rstrip(), severity)
        except (
            ArithmeticError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            said = (str(error).strip().splitlines() or [""])[0]
            self.add(severity, path, f"{type(error).__name__}: {said}")
        return None

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Take what the package warns of inside as findings, and keep it off the terminal."""
        handler = _Warnings(self)
        handlers, log.handlers = log.handlers, [handler]
        try:
            yield
        finally:
            log.handlers = handlers


class _Warnings(logging.Handler):
    """Makes findings of warnings; drops what is only told."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self.collector = collector

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            return
        severity: Severity = "error" if record.levelno >= logging.ERROR else "warning"
        message = record.getMessage()
        path, _ = split_path(message)
        first = message.split(" ", 1)[0]
        if not path and "." in first and self.collector.places.has(first):
            self.collector.add(severity, first, message)
        else:
            self.collector.say(message, severity)
