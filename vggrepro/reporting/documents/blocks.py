"""Blocks of a report, written as Markdown, as a self-contained HTML file, or as LaTeX (booktabs)."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jinja2 import Template

Item = TypeVar("Item")


@dataclass(frozen=True)
class Heading:
    """A title. Level 1 is the title of the document; in HTML, readers can fold the sections of the other levels."""

    level: int
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """A table of plain text; `strong` is the index of the column to emphasise."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None
    numbers: frozenset[int] = frozenset()
    """Indices of the columns that are aligned to the right."""


@dataclass(frozen=True)
class Figure:
    """A PNG with a title; left out of Markdown and LaTeX."""

    png: bytes
    title: str


@dataclass(frozen=True)
class Mark:
    """A number in a panel; `kind` sets its colour and shape."""

    kind: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Panel:
    """A dot plot: marks by heading and label on a common axis."""

    title: str
    note: str
    axis: str
    rows: Mapping[str, Mapping[str, Sequence[Mark]]]
    zero: bool = False
    """Whether the axis includes 0, marked by a line."""

    @property
    def marks(self) -> list[Mark]:
        """All marks, from top to bottom."""
        return [mark for labels in self.rows.values() for marks in labels.values() for mark in marks]

    @property
    def ticks(self) -> list[float]:
        """Evenly spaced round numbers that enclose all marks and intervals."""
        ends = [end for mark in self.marks for end in (mark.value, *(mark.interval or ()))] + [0.0] * self.zero
        span = max(ends) - min(ends) or 1.0
        power = 10.0 ** math.floor(math.log10(span / 6))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 6)
        return [step * n for n in range(math.floor(min(ends) / step), math.floor(max(ends) / step) + 2)]


@dataclass(frozen=True)
class Picture:
    """Panels side by side; left out of Markdown and LaTeX."""

    title: str
    panels: Sequence[Panel]


Block = Heading | Text | Bullets | Sheet | Figure | Picture


def sheet_of(
    items: Iterable[Item],
    columns: Mapping[str, Callable[[Item], str]],
    numbers: Collection[str] = (),
    strong: str | None = None,
) -> Sheet:
    """Builds a row per item; `columns` maps titles to functions of the cell text. `numbers` and `strong` are titles."""
    titles = list(columns)
    rows = [[text(item) for text in columns.values()] for item in items]
    aligned = frozenset(n for n, title in enumerate(titles) if title in numbers)
    return Sheet(titles, rows, None if strong is None else titles.index(strong), aligned)


def signed_text(points: float | None, digits: int = 1) -> str:
    """Formats a difference for a cell."""
    return DASH if points is None else f"{points:+z.{digits}f}"


def interval_text(ends: tuple[float, float] | None, form: str = ".1f") -> str:
    """Formats an interval for a cell."""
    return DASH if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def count_text(n: int | None) -> str:
    """Formats a count for a cell."""
    return DASH if n is None else f"{n:,}"


def to_markdown(blocks: Iterable[Block]) -> str:
    """Writes blocks as GitHub's Markdown."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Heading():
                lines += ["#" * block.level + " " + block.text, ""]
            case Text():
                lines += [block.text, ""]
            case Bullets():
                lines += [*(f"- {item}" for item in block.items), ""]
            case Sheet():
                rule = ["--:" if n in block.numbers else "---" for n in range(len(block.header))]
                rows = [
                    [f"**{cell}**" if n == block.strong and cell != DASH else cell for n, cell in enumerate(row)]
                    for row in block.rows
                ]
                lines += [*map(_table_line, [block.header, rule, *rows]), ""]
    return "\n".join(lines).rstrip() + "\n"


DASH = "-"
"""An empty cell."""


def _table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_LONG = 40  # characters beyond which a LaTeX cell may wrap

_TEX_SYNTAX = {"block_start_string": "<%", "block_end_string": "%>"}  # because LaTeX uses braces, too
_TEX_SYNTAX |= {"variable_start_string": "<<", "variable_end_string": ">>"}
_TEX_NAMES = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_TEX_SIGNS = str.maketrans(
    {sign: rf"\text{name}{{}}" for sign, name in _TEX_NAMES.items()}
    | {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {sign: f"{{{sign}}}" for sign in "[]"}  # otherwise LaTeX reads a bracket after \\ as an argument
)


def to_html(title: str, blocks: Iterable[Block]) -> str:
    """Writes a self-contained file, readable in light and dark, on a phone and in print."""
    return _fill_template("report.html.j2", blocks, title=title)


def to_latex(blocks: Iterable[Block]) -> str:
    r"""Writes blocks for `\input`: a `table` per sheet, captioned by the two headings above it, and notes as text.

    The document needs the packages array, booktabs and graphicx. A table wider than the line is scaled down.
    """
    return _fill_template("report.tex.j2", blocks, **_TEX_SYNTAX)


def _fill_template(name: str, blocks: Iterable[Block], title: str = "", **syntax: Any) -> str:
    filters = {"base64": base64.b64encode, "tex": lambda text: text.translate(_TEX_SIGNS)}
    kinds = [(type(block).__name__, block) for block in blocks]
    return template(name, filters, **syntax).render(blocks=kinds, title=title, LONG=_LONG, DASH=DASH)


def template(name: str, filters: Mapping[str, Callable[..., Any]], **syntax: Any) -> Template:
    """Loads a file of the folder `templates`; rendering fails if a variable is undefined."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html.j2"]),
        loader=jinja2.PackageLoader("vggrepro.reporting"),
        **syntax,
    )
    environment.filters |= filters
    return environment.get_template(name)
