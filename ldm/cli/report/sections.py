"""What a check tells beside its findings: tables of shapes, samples, costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.cli.report.finding import Finding, exit_code_of, ranked

__all__ = ["Report", "Section", "amount"]


@dataclass
class Section:
    """A table of two columns.

    rows: name, what is shown, and the value as JSON has it.
    """

    title: str
    rows: list[tuple[str, str, Any]] = field(default_factory=list)

    def add(self, name: str, text: str, value: Any = None) -> None:
        """Add a row; its value is the text unless another is given."""
        self.rows.append((name, text, text if value is None else value))

    def lines(self) -> list[str]:
        """As lines of text."""
        width = max((len(name) for name, _, _ in self.rows), default=0)
        return [self.title, *(f"  {name:<{width}}  {text}" for name, text, _ in self.rows)]


@dataclass(frozen=True)
class Report:
    """Everything that a check found: findings, worst first, and tables."""

    findings: Sequence[Finding]
    sections: Sequence[Section]

    @classmethod
    def of(cls, findings: Iterable[Finding], sections: Iterable[Section]) -> Report:
        """A report with its findings in order, tables without rows left out."""
        return cls(ranked(findings), [each for each in sections if each.rows])

    @property
    def exit_code(self) -> int:
        """0, 3 with warnings, 2 with errors."""
        return exit_code_of(self.findings)

    def text(self) -> str:
        """For people: tables, then findings, then how many there are."""
        blocks = [section.lines() for section in self.sections]
        found = [line for finding in self.findings for line in finding.lines()]
        counts = {
            severity: sum(each.severity == severity for each in self.findings)
            for severity in ("error", "warning", "note")
        }
        told = [f"{n} {severity}{'s' * (n != 1)}" for severity, n in counts.items() if n]
        blocks += [found] if found else []
        blocks.append([", ".join(told) or "nothing to mend"])
        return "\n\n".join("\n".join(block) for block in blocks)

    def json(self) -> str:
        """For programs: `exit_code`, `findings` and `sections`, by name."""
        tables = {
            each.title: {name: value for name, _, value in each.rows} for each in self.sections
        }
        whole = {
            "exit_code": self.exit_code,
            "findings": [finding.to_json() for finding in self.findings],
            "sections": tables,
        }
        return json.dumps(whole, indent=1)


def amount(value: float, unit: str) -> str:
    """A number with a prefix: 1.25 GB, 880 M."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()
