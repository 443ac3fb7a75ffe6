"""Writes a report as Markdown, HTML, LaTeX, CSV or JSON."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from datetime import date
from enum import StrEnum
from pathlib import Path

from vggrepro.errors import UserError
from vggrepro.reporting.documents import blocks
from vggrepro.reporting.documents.blocks import Block, Bullets, Heading, Text
from vggrepro.reporting.documents.claim_blocks import HOW, claim_sheet, p_text
from vggrepro.reporting.documents.layout import (
    APPENDIX_A,
    APPENDIX_B,
    COUNTED,
    SECTION_4,
    Part,
    count_sheet,
    part_of,
    row_sheet,
    spread_sheet,
)
from vggrepro.reporting.documents.overview import claims_panel, group_picture, picture
from vggrepro.reporting.documents.run_notes import ledger_blocks, run_sheet
from vggrepro.reporting.tables import labels
from vggrepro.reporting.tables.report import Group, Report, Row


class Format(StrEnum):
    """Format of a report, by file extension."""

    markdown = ".md"
    html = ".html"
    latex = ".tex"
    csv = ".csv"
    json = ".json"


def format_of(file: Path) -> Format:
    """Returns the format of a file by its extension. Raises UserError."""
    if file.suffix not in set(Format):
        raise UserError(f"--out {file}: unknown ending {file.suffix!r}; use one of {', '.join(Format)}")
    return Format(file.suffix)


def render(report: Report, form: Format, title: str, *, counts: bool = True) -> str:
    """Renders a report; `counts` includes Tables 1 and 2, which need no run."""
    if form is Format.json:
        return report.model_dump_json(indent=2) + "\n"
    if form is Format.csv:
        return _csv(report)
    document = [Heading(1, title), *blocks_of(report, counts=counts, pictures=form is Format.html)]
    if form is Format.html:
        return blocks.to_html(title, document)
    return blocks.to_latex(document) if form is Format.latex else blocks.to_markdown(document)


def blocks_of(report: Report, *, counts: bool = True, pictures: bool = False) -> list[Block]:
    """Returns everything below the title. With pictures, these come first and Tables 1 and 2 last."""
    counted: list[Block] = []
    if counts:
        for number, heading in COUNTED.titles.items():
            rows = [row for row in report.rows if row.table == number]
            counted += [Heading(2, heading, folded=True), count_sheet(rows)]
    made = [] if pictures else counted
    for group in report.groups:
        made.append(Heading(2, group.title))
        if pictures:
            made.append(Text(f"Runs: {len(group.runs)}. Report written on {date.today().isoformat()}."))
            made += group_picture(report, group)
        if not group.papers:
            made.append(
                Text(
                    "The paper's figures, in parentheses, are of ILSVRC-2012 in the paper's geometry: no yardstick for "
                    "the errors beside them. Each is of the same net at the S of the same proportion to the crop; the "
                    "claims below are worded with that S."
                )
            )
        made += _group_blocks(report, group)
    made += _transfer_blocks(report, pictures=pictures)
    made += counted if pictures else []
    if report.left_out:
        made.append(Text(f"Not begun yet, and in no table: {', '.join(report.left_out)}."))
    return made


def in_brief(report: Report) -> list[Block]:
    """Returns a summary for a document: means over seeds and single runs, then the claims."""
    made: list[Block] = []
    for group in report.groups:
        made.append(Heading(3, group.title))
        for table in (3, 4, 5, 6):  # Table 7 repeats nets of the others
            rows = [row for row in report.rows if (row.group, row.table, row.split) == (group.id, table, "val")]
            spreads = [mean for mean in report.seeds if (mean.group, mean.table) == (group.id, table)]
            averaged = {(name, mean.method, mean.Q) for mean in spreads for name in mean.runs}
            single = [
                row for row in rows if row.top1.measured is not None and (row.run, row.method, row.Q) not in averaged
            ]
            if not (spreads or single):
                continue
            made.append(Heading(4, SECTION_4.titles[table]))
            made += [spread_sheet(spreads, group)] if spreads else []
            made += [row_sheet(single, group)] if single else []
        made += _gains(report, group)
        made += [Text(_protocol(group)), Heading(4, "The paper's claims"), *_claim_blocks(report, group)]
    return made


def _group_blocks(report: Report, group: Group) -> Iterator[Block]:
    for part in (SECTION_4, APPENDIX_A):
        yield from _part_blocks(report, part, group, papers=group.papers)
    if not group.papers:
        rows = [row for row in report.rows if row.group == group.id and row.split == "val" and not row.run]
        counts = Counter(row.table for row in rows if row.table < 7)
        listed = ", ".join(f"{n} of Table {table}" for table, n in counts.items())
        if listed:
            yield Text(f"Rows of the paper without a run here: {listed}.")
    yield Text(_protocol(group))
    if claims := list(_claim_blocks(report, group)):
        yield from (Heading(3, "The paper's claims"), *claims)
    if group.runs:
        yield from (Heading(3, "Runs", folded=True), run_sheet(group.runs), *ledger_blocks(group.runs))


def _transfer_blocks(report: Report, *, pictures: bool) -> Iterator[Block]:
    """Yields the tables, claims and runs of Appendix B, if any."""
    papers = any(group.papers for group in report.groups)
    yield from _part_blocks(report, APPENDIX_B, None, papers=papers)
    if claims := [claim for claim in report.transfer_claims if papers or claim.n]:
        yield Heading(3, "What Appendix B claims", folded=not any(claim.n for claim in claims))
        if pictures:
            yield from picture("Appendix B", claims_panel("Features on other data sets", claims))
        yield claim_sheet(claims)
        yield Text(
            "Effect: rise of the figure, in points; interval and p from the same random weights of the test samples on "
            "both sides; several seeds: over these (Student's t)."
        )
    if report.transfer_runs:
        yield Heading(3, "Runs of these tables alone", folded=True)
        yield from (run_sheet(report.transfer_runs), *ledger_blocks(report.transfer_runs))


def _part_blocks(report: Report, part: Part, group: Group | None, *, papers: bool) -> list[Block]:
    """Returns the tables of a part of the paper and the meaning of their columns."""
    made = [block for number in part.titles for block in _table_blocks(report, number, group, papers=papers)]
    return [*made, Text(part.about)] if made and part.about else made


def _table_blocks(report: Report, table: int, group: Group | None, *, papers: bool) -> Iterator[Block]:
    """Yields a table, its means over seeds and its notes.

    `papers`: whether the paper's figures apply; if not, its rows without a run are left out.
    """
    key = (group.id if group else None, table)
    rows = [row for row in report.rows if (row.group, row.table) == key]
    shown = [row for row in rows if papers or row.run or row.main.measured is not None]
    if not shown or (table == 10 and not papers):
        return
    nothing_measured = all(row.main.measured is None for row in shown)
    yield Heading(3 if group else 2, part_of(table).titles[table], folded=nothing_measured)
    yield row_sheet(shown, group)
    if group and (spreads := [mean for mean in report.seeds if (mean.group, mean.table) == key]):
        yield from (Text("Mean and standard deviation over seeds:"), spread_sheet(spreads, group))
    if group and table == 3:
        yield from _gains(report, group)
    if notes := list(dict.fromkeys(filter(None, (_note(row, papers) for row in shown)))):
        yield Bullets(notes)


def _note(row: Row, papers: bool) -> str:
    """Explains why a row differs, was not measured, or cannot be."""
    if row.verdict == "cannot be measured":
        return f"{'other systems' if row.note == labels.OTHER_PAPER else 'test set'}: cannot be measured: {row.note}"
    if row.verdict == "not measured":  # a row of Section 4 without a run needs no note
        return row.note if row.run or row.table not in SECTION_4.titles else ""
    if row.set:
        return f"{row.run} on {row.set}: {row.note}" if row.note and row.main.printed is not None else ""
    return f"{row.run}: {row.note}" if papers and row.run and row.note else ""


def _protocol(group: Group) -> str:
    """Explains the columns of the tables."""
    columns = (
        "Errors in per cent on the validation split, every image counted once; interval: 95 %, Wilson. Dense: the "
        "uncropped image, class scores averaged over positions. Multicrop: a grid of 5 x 5 crops. Both: the mean of "
        "the two. Posteriors are averaged over Q, and over the image and its mirror image unless the method says "
        "otherwise."
    )
    agrees = " An error agrees where the sampling errors of both figures and the rounding of the printed one allow it."
    return columns + (agrees if group.papers else "")


def _claim_blocks(report: Report, group: Group) -> Iterator[Block]:
    claims = [claim for claim in report.claims if claim.group == group.id and (group.papers or claim.n)]
    if claims:
        yield claim_sheet(claims)
        yield Text(f"{HOW} Section A: localisation errors in place of top-1 errors.")


def _csv(report: Report) -> str:
    titles = {group.id: group.title for group in report.groups}
    rows = [row.model_dump() for row in report.rows]  # flat, with an empty cell for a missing figure
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {
            key: " to ".join(f"{end:.4f}" for end in cell) if isinstance(cell, tuple) else cell
            for key, cell in row.items()
        }
        writer.writerow(cells | {"group": titles.get(row["group"], "")})
    return out.getvalue()


def _gains(report: Report, group: Group) -> Iterator[Block]:
    """Yields a sentence on dense testing over the centre crop, and one on the warm start over random weights."""
    for lead, claims in (
        ("Dense over the centre crop, the same net at the same Q", report.dense_over_centre),
        ("The start from another net over random weights", report.start_from_parent),
    ):
        gains = []
        for claim in claims:
            if claim.group == group.id and claim.effect is not None and claim.interval:
                low, high = claim.interval
                p = p_text(claim.p_value)
                over = (
                    f"over {claim.seeds} seeds"
                    if claim.over == "seeds"
                    else f"p {p if p.startswith('<') else f'= {p}'}"
                )
                gains.append(f"{claim.better} {claim.effect:+.1f} ({low:+.1f} to {high:+.1f}, {over})")
        if gains:
            yield Text(f"{lead}, in points of top-1 error gained, with the 95 % interval: {'; '.join(gains)}.")
