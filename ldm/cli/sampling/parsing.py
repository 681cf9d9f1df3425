"""A parser whose complaints are one line each, and name the flag that was meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ldm.config import ConfigError, did_you_mean

__all__ = ["Parser"]

_UNRECOGNIZED = "unrecognized arguments: "  # argparse's words, which no option changes

# flags that say how another works, which have a default and so are not missed without it
_OF = {
    "--weak-scale": "--weak",
    "--classifier-scale": "--classifier",
    "--clip-scale": "--clip",
    "--clip-through": "--clip",
}


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError where argparse prints its usage and ends the process.

    Flags are spelled out: a beginning of one, which may become another flag's one day, is refused.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)

    def parse_known_args(  # type: ignore[override]  # typeshed: one overload for each namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse does; ConfigError for a flag of `_OF` without what it is of."""
        words = sys.argv[1:] if args is None else list(args)
        found = super().parse_known_args(words, namespace)
        given = {word.partition("=")[0] for word in words}
        for flag, whose in _OF.items():
            if flag in given and flag in self._option_string_actions and whose not in given:
                raise ConfigError(f"{flag}: is of {whose}, which is not given")
        return found

    def error(self, message: str) -> Any:
        """Raise ConfigError with what is wrong, and the nearest flag for one that there is not."""
        if message.startswith(_UNRECOGNIZED):
            words = message.removeprefix(_UNRECOGNIZED)
            flags = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
            hint = did_you_mean(flags[0], self._flags()) if flags else ""
            raise ConfigError(f"{_UNRECOGNIZED}{words}{hint}")
        raise ConfigError(message.removeprefix("argument "))

    def _flags(self) -> list[str]:
        """All flags but those that processes of a job tell each other."""
        return [
            name for name, action in self._option_string_actions.items() if action.dest != "worker"
        ]
