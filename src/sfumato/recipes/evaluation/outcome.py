"""What an evaluation leaves behind: a table to read, a JSON file, a section of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfumato.files import finite, write_json
from sfumato.recipes.evaluation.evaluate import Evaluation
from sfumato.recipes.evaluation.explain import Convention
from sfumato.recipes.evaluation.provenance import in_lines
from sfumato.report.html import Report


@dataclass
class Outcome:
    """An evaluation with its explanation, provenance and time."""

    title: str
    evaluation: Evaluation
    provenance: dict[str, Any]
    explained: list[Convention] = field(default_factory=list[Convention])
    explained_metric: str = ""
    seconds: float = 0.0

    def text(self) -> str:
        """The table for a terminal, with what the numbers rest on below it."""
        rows = self.evaluation.rows
        notes = list(dict.fromkeys(row.note for row in rows if row.note))
        lines = _aligned(
            [
                ("metric", "against", "value", "±", "real images", "better", "n", ""),
                *(
                    (
                        row.name,
                        row.against,
                        number(row.value),
                        number(row.error),
                        number(row.real),
                        row.better,
                        f"{row.n:,}" + (f" / {row.n_reference:,}" if row.n_reference else ""),
                        f"[{notes.index(row.note) + 1}]" if row.note else "",
                    )
                    for row in rows
                ),
            ]
        )
        lines += [f"[{index}] {note}" for index, note in enumerate(notes, 1)]
        for against, table in self.evaluation.classes.items():
            lines += ["", f"Fréchet distance by class, against {against}, worst first:"]
            lines += _aligned(
                [
                    (one.name, number(one.distance), f"{one.n_fake:,} / {one.n_real:,}")
                    for one in table.worst_first
                ]
            )
            if table.too_few:
                lines.append(f"left out (fewer than {table.least}): {', '.join(table.too_few)}")
        if self.explained:
            lines += ["", f"{self.explained_metric} under other conventions:"]
            lines += _aligned(
                [(one.name, number(one.value), f"{one.change:+.3g}") for one in self.explained]
            )
        lines += ["", *self.evaluation.verdicts]
        lines += [f"features: {name}" for name in dict.fromkeys(r.features for r in rows) if name]
        lines += in_lines(self.provenance)
        lines += [f"left out: {reason}" for reason in self.evaluation.left_out]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """Everything, as plain values; what is not a number (infinity) is null."""
        values = {
            "title": self.title,
            "rows": [asdict(row) for row in self.evaluation.rows],
            "classes": {
                against: [asdict(one) for one in table.rows]
                for against, table in self.evaluation.classes.items()
            },
            "conventions": [asdict(one) for one in self.explained],
            "verdicts": self.evaluation.verdicts,
            "left_out": self.evaluation.left_out,
            "failed": self.evaluation.failed,
            "provenance": self.provenance,
            "seconds": round(self.seconds, 1),
        }
        return finite(values)

    def write_json(self, path: Path) -> None:
        """Write `json`, whole or not at all."""
        write_json(path, self.json())

    def add_to(self, page: Report) -> None:
        """Put tables and provenance on a page."""
        rows = self.evaluation.rows
        page.section(
            "Quality",
            "Compare numbers only at equal n, features and reference; the column of real images "
            "says what a perfect model would score.",
        )
        page.table(
            [
                (r.name, r.against, number(r.value), number(r.error), number(r.real), r.better,
                 r.n, r.n_reference or None, r.note)
                for r in rows
            ],
            ("metric", "against", "value", "± 1 s.e.", "real images", "better", "n", "reference n",
             "note"),
        )  # fmt: skip
        for verdict in self.evaluation.verdicts:
            page.text(verdict)
        for reason in self.evaluation.left_out:
            page.text(f"Left out: {reason}")
        for against, table in self.evaluation.classes.items():
            page.section(f"Classes against {against}", "Fréchet distance by class, worst first.")
            page.table(
                [(c.name, number(c.distance), c.n_fake, c.n_real) for c in table.worst_first],
                ("class", "distance", "samples", "real images"),
            )
        if self.explained:
            page.section(
                "Conventions",
                f"{self.explained_metric} of the same images when one thing is done differently: "
                "differences of this size between papers may be no difference between models.",
            )
            page.table(
                [(c.name, number(c.value), f"{c.change:+.3g}") for c in self.explained],
                ("convention", "value", "change"),
            )
        page.section("Provenance", "What these numbers were computed from.")
        page.facts(flat(self.provenance))
        page.facts({"features": "; ".join(dict.fromkeys(r.features for r in rows if r.features))})


def number(value: float | None) -> str:
    """A number to about four digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.1f}" if 100 <= abs(value) < 1e5 else f"{value:.4g}"


def flat(tables: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain values as dotted names and texts."""
    out: dict[str, str] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")  # pyright: ignore
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value):  # pyright: ignore
                out |= flat(item, f"{prefix}{key}.{index + 1}.")  # pyright: ignore
        else:
            out[prefix + key] = str(value)
    return out


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
