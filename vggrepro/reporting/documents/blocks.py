"""A report as a list of blocks, written as Markdown, as one self-contained HTML file, or as LaTeX (booktabs)."""

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
    """A title; level 1 is the document's. In HTML a reader can fold what is below any other."""

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
    """A table. Cells are plain text; `strong` is the number of the column to emphasise."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None
    numbers: frozenset[int] = frozenset()
    """Columns that are aligned to the right."""


@dataclass(frozen=True)
class Figure:
    """A PNG with a title; Markdown and LaTeX leave it out."""

    png: bytes
    title: str


@dataclass(frozen=True)
class Mark:
    """A number in a picture; its kind decides colour and shape."""

    kind: str
    value: float
    interval: tuple[float, float] | None
    text: str


@dataclass(frozen=True)
class Panel:
    """A dot plot: marks by heading and label, over one axis."""

    title: str
    note: str
    axis: str
    rows: Mapping[str, Mapping[str, Sequence[Mark]]]
    zero: bool = False
    """Whether the axis contains 0, with a line there."""

    @property
    def marks(self) -> list[Mark]:
        """All marks, from top to bottom."""
        return [mark for labels in self.rows.values() for marks in labels.values() for mark in marks]

    @property
    def ticks(self) -> list[float]:
        """Round numbers that enclose all marks and intervals, in equal steps."""
        ends = [end for mark in self.marks for end in (mark.value, *(mark.interval or ()))] + [0.0] * self.zero
        span = max(ends) - min(ends) or 1.0
        power = 10.0 ** math.floor(math.log10(span / 6))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 6)
        return [step * n for n in range(math.floor(min(ends) / step), math.floor(max(ends) / step) + 2)]


@dataclass(frozen=True)
class Picture:
    """Panels side by side; Markdown and LaTeX leave it out."""

    title: str
    panels: Sequence[Panel]


Block = Heading | Text | Bullets | Sheet | Figure | Picture


def sheet_of(
    items: Iterable[Item],
    columns: Mapping[str, Callable[[Item], str]],
    numbers: Collection[str] = (),
    strong: str | None = None,
) -> Sheet:
    """A row for each item; `columns` has by title the text of a cell. `numbers` and `strong` are titles."""
    titles = list(columns)
    rows = [[text(item) for text in columns.values()] for item in items]
    aligned = frozenset(n for n, title in enumerate(titles) if title in numbers)
    return Sheet(titles, rows, None if strong is None else titles.index(strong), aligned)


def signed_text(points: float | None, digits: int = 1) -> str:
    """A difference for a cell."""
    return DASH if points is None else f"{points:+z.{digits}f}"


def interval_text(ends: tuple[float, float] | None, form: str = ".1f") -> str:
    """An interval for a cell."""
    return DASH if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def count_text(n: int | None) -> str:
    """A number of things for a cell."""
    return DASH if n is None else f"{n:,}"


def to_markdown(blocks: Iterable[Block]) -> str:
    """GitHub's Markdown."""
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
                lines += [*map(_bar, [block.header, rule, *rows]), ""]
    return "\n".join(lines).rstrip() + "\n"


DASH = "-"
"""An empty cell."""


def _bar(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_LONG = 40  # characters beyond which a cell may wrap

_TEX_SYNTAX = {"block_start_string": "<%", "block_end_string": "%>"}  # since jinja2's braces are LaTeX's, too
_TEX_SYNTAX |= {"variable_start_string": "<<", "variable_end_string": ">>"}
_TEX_NAMES = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_TEX_SIGNS = str.maketrans(
    {sign: rf"\text{name}{{}}" for sign, name in _TEX_NAMES.items()}
    | {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {sign: f"{{{sign}}}" for sign in "[]"}  # else LaTeX takes a bracket after \\ for an argument
)


def to_html(title: str, blocks: Iterable[Block]) -> str:
    """One file without links to anything else: readable in light and dark, and on a phone."""
    return _filled("report.html.j2", blocks, title=title)


def to_latex(blocks: Iterable[Block]) -> str:
    r"""For `\input`: a `table` for each sheet, its caption the two headings above it, and the notes as text.

    The document needs the packages array, booktabs and graphicx; a table wider than the line is scaled down to it.
    """
    return _filled("report.tex.j2", blocks, **_TEX_SYNTAX)


def _filled(name: str, blocks: Iterable[Block], title: str = "", **syntax: Any) -> str:
    filters = {"base64": base64.b64encode, "tex": lambda text: text.translate(_TEX_SIGNS)}
    kinds = [(type(block).__name__, block) for block in blocks]
    return template(name, filters, **syntax).render(blocks=kinds, title=title, LONG=_LONG, DASH=DASH)


def template(name: str, filters: Mapping[str, Callable[..., Any]], **syntax: Any) -> Template:
    """A template of the folder `templates`, in which a name that is not given is an error."""
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
