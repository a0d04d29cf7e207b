"""A self-contained HTML page, built section by section: no script, no reference to elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Self

from sfumato.files import write_bytes
from sfumato.report.style import CSS

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Card:
    """A headline number: what it is, its value, and a line that says what to make of it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image file's bytes (PNG, GIF, WebP, JPEG or SVG) with a caption and a text alternative."""

    data: bytes
    caption: str
    alt: str
    pixelated: bool = False
    """Enlarge to the column's width without smoothing: for small pixel images."""


class Report:
    """A page in the making; every method appends and returns the page, all text is escaped.

    Body content goes into the section opened last. Text may contain blank lines (paragraphs).
    """

    def __init__(self, title: str, subtitle: str = "", kind: str = "Sfumato report") -> None:
        self._title, self._subtitle, self._kind = title, subtitle, kind
        self._body: list[str] = []
        self._sections: list[tuple[str, str]] = []

    def section(self, title: str, text: str = "") -> Self:
        """Open a section with a heading, and an introduction when there is something to say."""
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor = f"{slug}-{len(self._sections) + 1}"
        self._close()
        self._sections.append((anchor, title))
        self._body.append(f'<section id="{anchor}">\n<h2>{escape(title)}</h2>')
        return self.text(text)

    def text(self, text: str) -> Self:
        """Paragraphs, divided by blank lines."""
        parts = (part.strip() for part in text.split("\n\n"))
        self._body += [f"<p>{escape(part)}</p>" for part in parts if part]
        return self

    def cards(self, cards: Sequence[Card]) -> Self:
        """A row of headline numbers."""
        items = "\n".join(
            f'<div class="card"><dt>{escape(card.label)}</dt><dd>{escape(card.value)}</dd>'
            + (f'<dd class="note">{escape(card.note)}</dd>' if card.note else "")
            + "</div>"
            for card in cards
        )
        return self._add(f'<dl class="cards">\n{items}\n</dl>')

    def table(self, rows: Sequence[Sequence[Cell]], header: Sequence[str] = ()) -> Self:
        """A table; columns of numbers, also as text, are set flush right; None is a dash."""
        columns = max((len(row) for row in rows), default=len(header))
        numeric = [all(_is_number(row[i]) for row in rows if i < len(row)) for i in range(columns)]
        parts = ['<div class="scroll"><table>']
        if header:
            cells = zip(header, numeric, strict=False)
            parts.append("<thead><tr>" + "".join(_cell("th", *c) for c in cells) + "</tr></thead>")
        parts.append("<tbody>")
        for row in rows:
            cells = zip((_format(value) for value in row), numeric, strict=False)
            parts.append("<tr>" + "".join(_cell("td", *c) for c in cells) + "</tr>")
        parts.append("</tbody></table></div>")
        return self._add("\n".join(parts))

    def facts(self, facts: Mapping[str, Cell]) -> Self:
        """Names and values, as a compact two-column list."""
        items = "\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(_format(value))}</dd></div>"
            for name, value in facts.items()
        )
        return self._add(f'<dl class="facts">\n{items}\n</dl>')

    def figure(self, data: bytes, caption: str, alt: str, pixelated: bool = False) -> Self:
        """One image over the whole width; ValueError when its format is not known."""
        return self._add(_figure(Picture(data, caption, alt, pixelated)))

    def figures(self, pictures: Sequence[Picture]) -> Self:
        """Images side by side, below each other on a narrow screen."""
        items = "\n".join(_figure(picture) for picture in pictures)
        return self._add(f'<div class="row">\n{items}\n</div>')

    def code(self, text: str) -> Self:
        """Preformatted text, such as commands."""
        return self._add(f"<pre><code>{escape(text.strip())}</code></pre>")

    def note(self, text: str, warning: bool = False) -> Self:
        """A remark set apart; a warning stands out."""
        kind, role = ("warning", "alert") if warning else ("remark", "note")
        return self._add(f'<p class="{kind}" role="{role}">{escape(text)}</p>')

    def missing(self, what: str, package: str, extra: str) -> Self:
        """A remark in the place of a figure whose optional package is not installed."""
        return self.note(
            f"{what} is left out: it needs {package}. pip install 'sfumato[{extra}]' "
            "and write the report again."
        )

    def html(self) -> str:
        """The whole page."""
        links = "\n".join(
            f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in self._sections
        )
        nav = f'<nav aria-label="Sections">\n{links}\n</nav>' if len(self._sections) > 1 else ""
        subtitle = f'<p class="subtitle">{escape(self._subtitle)}</p>' if self._subtitle else ""
        end = "</section>" if self._sections else ""
        return "\n".join([
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # An empty icon, so that a browser does not go looking for one.
            '<link rel="icon" href="data:,">',
            f"<title>{escape(self._title)}</title>",
            f"<style>{CSS}</style>",
            "</head>",
            "<body>",
            f'<header>\n<p class="kind">{escape(self._kind)}</p>',
            f"<h1>{escape(self._title)}</h1>",
            subtitle,
            "</header>",
            nav,
            "<main>",
            *self._body,
            end,
            "</main>",
            "</body>",
            "</html>",
            "",
        ])  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        write_bytes(path, self.html().encode())

    def extend(self, path: Path, name: str) -> None:
        """Put these sections at the end of a page written before, in place of those called `name`.

        Raises ValueError where `path` is no page of this kind.
        """
        page = path.read_text(encoding="utf-8")
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}\n?", "", page, flags=re.DOTALL)
        links = "".join(
            f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in self._sections
        )
        closing = "\n</section>" if self._sections else ""
        for tag, content in (("</nav>", links), ("</main>", "\n".join(self._body) + closing)):
            before, found, after = page.rpartition(tag)
            if not found and tag == "</main>":
                raise ValueError(f"{path} is not a report of ours: it has no {tag}")
            if found:
                page = f"{before}{begin}{content}{end}\n{tag}{after}"
        write_bytes(path, page.encode())

    def _add(self, part: str) -> Self:
        self._body.append(part)
        return self

    def _close(self) -> None:
        if self._sections:
            self._body.append("</section>")


def data_uri(data: bytes) -> str:
    """Image bytes as a data URI; ValueError unless they are PNG, GIF, JPEG, WebP or SVG."""
    return f"data:{_media_type(data)};base64,{base64.b64encode(data).decode()}"


def _media_type(data: bytes) -> str:
    starts = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg"}
    for start, kind in starts.items():
        if data.startswith(start):
            return f"image/{kind}"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if b"<svg" in data[:1000]:
        return "image/svg+xml"
    raise ValueError(f"expected PNG, GIF, JPEG, WebP or SVG, got bytes starting {data[:8]!r}")


def _figure(picture: Picture) -> str:
    classes = ' class="pixels"' if picture.pixelated else ""
    paper = ' class="paper"' if _media_type(picture.data) == "image/svg+xml" else ""
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    image = f'<img{classes} src="{data_uri(picture.data)}" alt="{escape(picture.alt)}">'
    return f"<figure{paper}>{image}{caption}</figure>"


def _cell(tag: str, text: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _is_number(value: Cell) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[-−+±.\d\s]*\d\s?%?", value) is not None
    return not isinstance(value, bool)


def _format(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}".replace(",", "\u202f")
    return value
