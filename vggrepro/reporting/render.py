"""The tables' report for readers: Markdown, HTML, LaTeX, CSV, JSON."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from vggrepro.errors import UserError
from vggrepro.reporting import blocks, words
from vggrepro.reporting.blocks import (
    DASH,
    Block,
    Bullets,
    Columns,
    Figure,
    Heading,
    Sheet,
    Text,
    count_text,
    error_text,
    interval_text,
    printed_text,
    sheet_of,
    signed_text,
)
from vggrepro.reporting.claim_blocks import HOW, claim_sheet, p_text
from vggrepro.reporting.render_boxes import box_blocks
from vggrepro.reporting.render_transfer import transfer_blocks
from vggrepro.reporting.report import BoxRow, Group, Report, Row, Spread, TransferRow
from vggrepro.reporting.run_notes import ledger_blocks, run_sheet
from vggrepro.reporting.tables import TITLES


class Format(StrEnum):
    """How a report is written."""

    markdown = "markdown"
    html = "html"
    latex = "latex"
    csv = "csv"
    json = "json"


SUFFIXES = {
    ".md": Format.markdown,
    ".html": Format.html,
    ".tex": Format.latex,
    ".csv": Format.csv,
    ".json": Format.json,
}


def format_of(file: Path) -> Format:
    """The format that a file's name asks for. Raises UserError."""
    if file.suffix not in SUFFIXES:
        raise UserError(f"--out {file}: unknown ending {file.suffix!r}; use one of {', '.join(SUFFIXES)}")
    return SUFFIXES[file.suffix]


def render(report: Report, form: Format, title: str, *, counts: bool = True) -> str:
    """The report in one format; `counts` is whether Tables 1 and 2, which need no run, are shown."""
    if form is Format.json:
        return report.model_dump_json(indent=2) + "\n"
    if form is Format.csv:
        return _csv(report)
    document = [Heading(1, title), *blocks_of(report, counts=counts, figures=form is Format.html)]
    match form:
        case Format.html:
            return blocks.to_html(title, document)
        case Format.latex:
            return blocks.to_latex(document)
        case _:
            return blocks.to_markdown(document)


def blocks_of(report: Report, *, counts: bool = True, figures: bool = False) -> list[Block]:
    """Everything but the title; with figures, or without."""
    made: list[Block] = []
    if counts:
        for table in (1, 2):
            made += [Heading(2, TITLES[table]), _count_sheet([row for row in report.rows if row.table == table])]
    for group in report.groups:
        own = [row for row in report.rows if row.group == group.id]
        made.append(Heading(2, group.title))
        if not group.papers:
            made.append(
                Text(
                    "The paper's figures, in parentheses, are of ILSVRC-2012 in the paper's geometry: no yardstick for "
                    "the errors beside them. Each is of the same net at the S of the same proportion to the crop; the "
                    "claims below are worded with that S."
                )
            )
        made += _group_blocks(group, own, report)
        if figures and group.runs:
            made += _figures(report, group)
    made += transfer_blocks(report)
    if report.left_out:
        made.append(Text(f"Not begun yet, and in no table: {', '.join(report.left_out)}."))
    return made


def in_brief(report: Report) -> list[Block]:
    """For a section of a document: of several seeds their means, then the claims; without what is said of each run."""
    made: list[Block] = []
    for group in report.groups:
        made.append(Heading(3, group.title))
        for table in (3, 4, 5, 6):  # of Table 7 the nets are in the others
            own = [row for row in report.rows if (row.group, row.table, row.split) == (group.id, table, "val")]
            spreads = _spreads_of(report, group, table)
            told = {(name, one.method, one.Q) for one in spreads for name in one.runs}
            single = [row for row in own if row.measured_top1 is not None and (row.run, row.method, row.Q) not in told]
            if not (spreads or single):
                continue
            made.append(Heading(4, TITLES[table]))
            if spreads:
                made.append(_spread_sheet(spreads, group))
            if single:
                made.append(_error_sheet(single, group))
        made += _gains(report, group)
        made += [Text(_protocol(group)), Heading(4, "The paper's claims"), *_claim_blocks(report, group)]
    return made


def _spreads_of(report: Report, group: Group, table: int) -> list[Spread]:
    return [one for one in report.seeds if (one.group, one.table) == (group.id, table)]


def _group_blocks(group: Group, rows: list[Row], report: Report) -> Iterator[Block]:
    hidden: list[Row] = []
    for table, title in TITLES.items():
        of_table = [row for row in rows if row.table == table]
        # where the paper's figures do not apply, its rows without a run say nothing
        shown = [row for row in of_table if group.papers or row.run]
        hidden += [row for row in of_table if row not in shown and row.split == "val" and table < 7]
        if not shown:
            continue
        yield Heading(3, title)
        yield _error_sheet(shown, group)
        if spreads := _spreads_of(report, group, table):
            yield Text(words.OVER_SEEDS)
            yield _spread_sheet(spreads, group)
        if table == 3:
            yield from _gains(report, group)
        if notes := list(dict.fromkeys(_notes(shown, group))):
            yield Bullets(notes)
    yield from box_blocks(report, group)
    if hidden:
        counts = Counter(row.table for row in hidden)
        listed = ", ".join(f"{n} of Table {table}" for table, n in sorted(counts.items()))
        yield Text(f"Rows of the paper without a run here: {listed}.")
    yield Text(_protocol(group))
    if claims := list(_claim_blocks(report, group)):
        yield Heading(3, "The paper's claims")
        yield from claims
    if group.runs:
        yield Heading(3, "Runs")
        yield run_sheet(group.runs)
        yield from ledger_blocks(group.runs)


def _protocol(group: Group) -> str:
    """What the columns of the tables mean."""
    said = (
        "Errors in per cent on the validation split, every image counted once; interval: 95 %, Wilson. Dense: the "
        "uncropped image, class scores averaged over positions. Multicrop: a grid of 5 x 5 crops. Both: the mean of "
        "the two. Posteriors are averaged over Q, and over the image and its mirror image unless the method says "
        "otherwise."
    )
    agrees = " An error agrees where the sampling errors of both figures and the rounding of the printed one allow it."
    return said + (agrees if group.papers else "")


def _claim_blocks(report: Report, group: Group) -> Iterator[Block]:
    claims = [claim for claim in report.claims if claim.group == group.id and (group.papers or claim.n)]
    if claims:
        yield claim_sheet(claims)
        yield Text(f"{HOW} Section A: localisation errors in place of top-1 errors.")


def _notes(rows: list[Row], group: Group) -> Iterator[str]:
    """Why a row differs, has nothing measured, or cannot have."""
    for row in rows:
        if row.verdict == "cannot be measured":
            yield f"{'test set' if row.split == 'test' else 'other systems'}: cannot be measured: {row.note}"
        elif row.run and row.note and (group.papers or row.verdict == "not measured"):
            yield row.note if row.verdict == "not measured" else f"{row.run}: {row.note}"


def _figures(report: Report, group: Group) -> Iterator[Block]:
    from vggrepro.reporting import figures  # imports matplotlib when it draws

    for title, png in figures.of_report(report, group.id).values():
        yield Figure(png, title)


def _count_sheet(rows: list[Row]) -> Sheet:
    return Sheet(
        header=("net", "printed", "ours", "verdict"),
        rows=[
            (row.net, f"{row.printed_count:,}" + (" million" if row.table == 2 else ""), f"{row.measured_count:,}",
             row.verdict)
            for row in rows
        ],
        numbers=frozenset({1, 2}),
    )  # fmt: skip


def _printed(error: float | None, group: Group) -> str:
    return printed_text(error_text(error), yardstick=group.papers)


def _error_sheet(rows: list[Row], group: Group) -> Sheet:
    columns: Columns = {
        "net": ([row.net + (", test set" if row.split == "test" else "") for row in rows], False),
        "S": ([row.S or DASH for row in rows], False),
        "Q": ([row.Q or DASH for row in rows], False),
        "method": ([_method(row) for row in rows], False),
        "top-1 printed": ([_printed(row.printed_top1, group) for row in rows], True),
        "top-1 measured": ([error_text(row.measured_top1) for row in rows], True),
        "top-1 difference": ([signed_text(row.difference_top1) for row in rows], True),
        "top-1 95 % interval": ([interval_text(row.interval_top1) for row in rows], True),
        "top-5 printed": ([_printed(row.printed_top5, group) for row in rows], True),
        "top-5 measured": ([error_text(row.measured_top5) for row in rows], True),
        "top-5 difference": ([signed_text(row.difference_top5) for row in rows], True),
        "top-5 95 % interval": ([interval_text(row.interval_top5) for row in rows], True),
        "n": ([count_text(row.n) for row in rows], True),
        "verdict": ([row.verdict for row in rows], False),
        "departures": ([count_text(row.departures) for row in rows], True),
        "run": ([row.run or DASH for row in rows], False),
    }
    if not group.papers:  # no difference is taken there
        columns = {title: column for title, column in columns.items() if not title.endswith("difference")}
    return sheet_of(columns, "top-1 measured")


def _method(row: Row) -> str:
    """With what makes the test another one than the paper's."""
    words = [row.method or DASH]
    if row.flip is False and row.method != "centre":
        words.append("no mirror images")
    if row.precision not in (None, "fp32"):
        words.append(row.precision)
    return ", ".join(words)


def _csv(report: Report) -> str:
    out = io.StringIO()
    titles = {group.id: group.title for group in report.groups}
    kinds = (Row, BoxRow, TransferRow)  # a cell is empty where a table has none
    fields = list(dict.fromkeys(field for kind in kinds for field in kind.model_fields))
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    rows: list[Row | BoxRow | TransferRow] = [*report.rows, *report.boxes, *report.transfer]
    for row in rows:
        cells = {
            field: " to ".join(f"{end:.4f}" for end in one) if isinstance(one, tuple) else one for field, one in row
        }
        writer.writerow(cells | {"group": titles.get(getattr(row, "group", None) or "", "")})
    return out.getvalue()


def _spread_sheet(spreads: list[Spread], group: Group) -> Sheet:
    columns: Columns = {
        "net": ([one.net for one in spreads], False),
        "S": ([one.S for one in spreads], False),
        "Q": ([one.Q for one in spreads], False),
        "method": ([one.method for one in spreads], False),
        "seeds": ([str(one.seeds) for one in spreads], True),
        "top-1 printed": ([_printed(one.printed_top1, group) for one in spreads], True),
        "top-1 mean": ([f"{one.mean_top1:.2f}" for one in spreads], True),
        "top-1 sd": ([f"{one.spread_top1:.2f}" for one in spreads], True),
        "top-5 printed": ([_printed(one.printed_top5, group) for one in spreads], True),
        "top-5 mean": ([f"{one.mean_top5:.2f}" for one in spreads], True),
        "top-5 sd": ([f"{one.spread_top5:.2f}" for one in spreads], True),
        "runs": ([", ".join(one.runs) for one in spreads], False),
    }
    return sheet_of(columns, "top-1 mean")


def _gains(report: Report, group: Group) -> Iterator[Block]:
    """A sentence each: what the dense test gained over the centre crop, and the start from another net over none."""
    for lead, claims in (
        ("Dense over the centre crop, the same net at the same Q", report.dense_over_centre),
        ("The start from another net over random weights", report.start_from_parent),
    ):
        told = []
        for one in claims:
            if one.group != group.id:
                continue
            assert one.effect is not None
            assert one.interval is not None
            low, high = one.interval
            over = f"over {one.seeds} seeds" if one.over == "seeds" else f"p {_p_phrase(one.p_value)}"
            told.append(f"{one.better} {one.effect:+.1f} ({low:+.1f} to {high:+.1f}, {over})")
        if told:
            yield Text(f"{lead}, in points of top-1 error gained, with the 95 % interval: {'; '.join(told)}.")


def _p_phrase(p: float | None) -> str:
    return p_text(p) if p is not None and p < 1e-4 else f"= {p_text(p)}"
