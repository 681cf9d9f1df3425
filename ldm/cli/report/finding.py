"""What a check has found: how bad it is, where it is written, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["EXIT_CODES", "Finding", "Severity", "exit_code_of", "ranked"]

Severity = Literal["error", "warning", "note"]

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
# 1 is what a training ends with that has diverged, 2 what every command says of a configuration
EXIT_CODES: dict[Severity | None, int] = {None: 0, "note": 0, "warning": 3, "error": 2}


@dataclass(frozen=True)
class Finding:
    """One thing that a check has to say.

    severity: an `error` ends a training before it begins, or spoils it; a `warning` may be meant;
        a `note` says what could not be checked.
    path: of the key in the configuration, as far as it is known: `model.params.unet_config`.
    place: `FILE:LINE` of that key, or the word of the command line that gave it.
    message: what is wrong, without the path.  hint: what to do about it.
    """

    severity: Severity
    message: str
    path: str = ""
    place: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields, by name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As lines of text: where it is, what it is, what to do."""
        where = f"{self.place}: " if self.place else ""
        head = f"{self.severity}: {where}{self.path}"
        text = f"{head}: {self.message}" if self.path else f"{head}{self.message}"
        return [text, *([f"    {self.hint}"] if self.hint else [])]


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with errors first, in the order they were made otherwise, each once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: _ORDER[finding.severity])


def exit_code_of(findings: Iterable[Finding]) -> int:
    """Exit code of a check: 0 nothing to mend, 3 warnings, 2 errors."""
    worst = min((each.severity for each in findings), key=_ORDER.__getitem__, default=None)
    return EXIT_CODES[worst]
