"""Where a value of a merged configuration was written: file and line, or a word of the command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

__all__ = ["Places", "split_path"]


class Places:
    """Where each key of a configuration was set last.

    files: merged from left to right, as `ldm.config.load` does.
    words: of the command line, by the path that each sets: overrides, and flags that stand for
        parts of the configuration.

    Files that cannot be read are passed over: whoever loads them says so.
    """

    def __init__(self, files: Sequence[str | Path], words: Mapping[str, str]) -> None:
        self._places: dict[str, str] = {}
        for file in files:
            self._read(Path(file))
        for path, word in words.items():
            self._forget_below(path)
            self._places[path] = word

    def known(self, path: str) -> str:
        """The longest beginning of a path that was written somewhere, "" where there is none."""
        while path and path not in self._places:
            path = path.rpartition(".")[0]
        return path

    def of(self, path: str) -> str:
        """`FILE:LINE` of a key, or the word that set it; of the nearest key above if it is new."""
        return self._places.get(self.known(path), "")

    def has(self, path: str) -> bool:
        """Whether a key was written."""
        return path in self._places

    def below(self, path: str, name: str) -> str:
        """The one key of a name below a path, "" where there are none or several."""
        found = [
            each
            for each in self._places
            if each.startswith(f"{path}.") and each.rpartition(".")[2] == name
        ]
        return found[0] if len(found) == 1 else ""

    def in_file(self, file: str, path: str) -> str:
        """`FILE:LINE` of a key in one file, whatever set it last; "" where it is not there."""
        return Places([file], {}).of(path) if path else ""

    def _read(self, file: Path) -> None:
        try:
            node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return
        if node is not None:
            self._visit(node, "", file, ())

    def _visit(self, node: yaml.Node, path: str, file: Path, above: tuple[int, ...]) -> None:
        if id(node) in above:  # an anchor inside of itself
            return
        above = (*above, id(node))
        if not isinstance(node, yaml.MappingNode):
            self._forget_below(path)  # lists are replaced whole
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._enter(f"{path}.{index}", item, item, file, above)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    self._merge(value, path, file, above)
            for key, value in node.value:
                if key.tag != "tag:yaml.org,2002:merge":
                    name = str(key.value)
                    self._enter(f"{path}.{name}" if path else name, key, value, file, above)

    def _merge(self, node: yaml.Node, path: str, file: Path, above: tuple[int, ...]) -> None:
        """What `<<` brings: one mapping or several, of which the first counts."""
        several = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for each in reversed(several):
            self._visit(each, path, file, above)

    def _enter(
        self, path: str, mark: yaml.Node, value: yaml.Node, file: Path, above: tuple[int, ...]
    ) -> None:
        self._places[path] = f"{file}:{mark.start_mark.line + 1}"
        self._visit(value, path, file, above)

    def _forget_below(self, path: str) -> None:
        for name in [each for each in self._places if each.startswith(f"{path}.")]:
            del self._places[name]


_DOTTED = re.compile(r"^([A-Za-z_]\w*(?:\.\w+)*): ")


def split_path(message: str) -> tuple[str, str]:
    """The dotted path that a message begins with, "" where there is none, and the rest."""
    found = _DOTTED.match(message)
    return (found[1], message[found.end() :]) if found else ("", message)
