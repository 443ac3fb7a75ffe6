"""A report as a list of blocks, written as Markdown, as one self-contained HTML file, or as LaTeX (booktabs)."""

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the document's."""

    level: int
    text: str


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
    numbers: frozenset[int] = field(default_factory=frozenset)
    """Columns that are aligned to the right."""


@dataclass(frozen=True)
class Figure:
    """A PNG with a title; Markdown and LaTeX leave it out."""

    png: bytes
    title: str


Block = Heading | Text | Bullets | Sheet | Figure


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
                lines.append(_bar(block.header))
                lines.append(_bar("--:" if n in block.numbers else "---" for n in range(len(block.header))))
                for row in block.rows:
                    lines.append(
                        _bar(
                            f"**{cell}**" if n == block.strong and cell != DASH else cell for n, cell in enumerate(row)
                        )
                    )
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


DASH = "-"
"""An empty cell."""


def _bar(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --line: #d0d7de; --band: #f6f8fa;
  --good: #1a7f37; --bad: #b42318; --open: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --page: #0d1117; --line: #30363d;
  --band: #161b22; --good: #4cc26a; --bad: #ff7b72; --open: #e3b341; } img { background: #fff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 92rem; color: var(--ink); background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-top: 1.6rem; }
.wide { width: fit-content; max-width: 100%; overflow-x: auto; margin: .6rem 0 1rem;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .86em; }
th, td { padding: .3rem .42rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--band); font-weight: 600; white-space: normal; vertical-align: bottom; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--page); }
th:first-child { background: var(--band); }
td.long { white-space: normal; min-width: 14rem; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; } .strong { font-weight: 700; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); } .none { color: var(--soft); }
img { max-width: 100%; height: auto; border-radius: 6px; }
@media (max-width: 40rem) { td:not(.number) { white-space: normal; } td.long { min-width: 9rem; } }
""".strip()

_MOODS = {
    "agrees": "good",
    "supported": "good",
    "differs": "bad",
    "not supported": "bad",
    "undecided at this n": "open",
    "not comparable": "open",
    "not measured": "none",
    "cannot be measured": "none",
}
_LONG = 40  # characters beyond which a cell may wrap


def to_html(title: str, blocks: Iterable[Block]) -> str:
    """One file without links to anything else: readable in light and dark, and on a phone."""
    body: list[str] = []
    for block in blocks:
        match block:
            case Heading():
                body.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
            case Text():
                body.append(f"<p>{html.escape(block.text)}</p>")
            case Bullets():
                body.append("<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in block.items) + "</ul>")
            case Sheet():
                body.append(_html_sheet(block))
            case Figure():
                data = base64.b64encode(block.png).decode()
                body.append(f"<h3>{html.escape(block.title)}</h3>")
                body.append(f'<p><img alt="{html.escape(block.title)}" src="data:image/png;base64,{data}"></p>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _html_sheet(sheet: Sheet) -> str:
    def cell(tag: str, n: int, text: str) -> str:
        names = ["number"] if n in sheet.numbers else []
        if tag == "td":
            names += ["strong"] if n == sheet.strong else []
            names += [_MOODS[text]] if text in _MOODS else []
            names += ["long"] if len(text) > _LONG else []
        attribute = f' class="{" ".join(names)}"' if names else ""
        return f"<{tag}{attribute}>{html.escape(text).replace(' %', '&nbsp;%')}</{tag}>"

    head = "".join(cell("th", n, text) for n, text in enumerate(sheet.header))
    rows = ["<tr>" + "".join(cell("td", n, text) for n, text in enumerate(row)) + "</tr>" for row in sheet.rows]
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
    return f'<div class="wide">{table}</div>'


def to_latex(blocks: Iterable[Block]) -> str:
    r"""For `\input`: a `table` for each sheet, its caption the two headings above it, and the notes as text.

    The document needs the packages array, booktabs and graphicx; a table wider than the line is scaled down to it.
    """
    lines = [r"% \usepackage{array,booktabs,graphicx}"]
    section = caption = ""
    for block in blocks:
        match block:
            case Heading(level, text) if level < 3:
                section, caption = text, ""
                lines += [rf"\subsection*{{{_tex(text)}}}", ""]
            case Heading(_, text):
                caption = text
            case Text(text):
                lines += [_tex(text), ""]
            case Bullets(items):
                lines += [rf"\paragraph{{{_tex(caption)}}}"] if caption else []
                lines += [r"\begin{itemize}", *(rf"\item {_tex(item)}" for item in items), r"\end{itemize}", ""]
            case Sheet():
                # LaTeX has numbers of its own for tables
                titles = (re.sub(r"^Table", "The paper's Table", text) for text in (caption, section) if text)
                title = ". ".join(titles)
                caption = ""
                columns = "".join(_tex_column(block, n) for n in range(len(block.header)))
                lines += [r"\begin{table}[ht]", r"\centering", rf"\caption{{{_tex(title)}}}"]
                lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
                lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _tex_head(block), r"\midrule"]
                lines += [_tex_row(row, block.strong) for row in block.rows]
                lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines) + "\n"


def _tex_column(sheet: Sheet, n: int) -> str:
    if n in sheet.numbers:
        return "r"
    # one that may wrap, else the whole table shrinks to nothing
    return r">{\raggedright\arraybackslash}p{65mm}" if any(len(row[n]) > _LONG for row in sheet.rows) else "l"


def _tex_head(sheet: Sheet) -> str:
    """Each word on a line of its own, so that columns are no wider than their numbers."""

    def stacked(n: int, title: str) -> str:
        lines = _tex(title).replace("95 ", "95~").replace(" ", r"\\")
        return rf"\shortstack[{'r' if n in sheet.numbers else 'l'}]{{{lines}}}"

    return " & ".join(stacked(n, title) for n, title in enumerate(sheet.header)) + r" \\"


def _tex_row(cells: Sequence[str], strong: int | None = None) -> str:
    texts = [
        rf"\textbf{{{_tex(cell)}}}" if n == strong and cell != DASH else _tex(cell) for n, cell in enumerate(cells)
    ]
    return " & ".join(texts) + r" \\"


_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # else LaTeX takes a bracket after \\ for an argument
    "]": "{]}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)
