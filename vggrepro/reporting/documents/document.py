"""Generated sections of a hand-written document, between markers::

    <!-- vggrepro:tables -->
    ...
    <!-- /vggrepro:tables -->

`tables` shows the given report, `recipes` the paper's stages. `evidence FOLDER` and `claims FOLDER` summarise committed
evidence: its tables with the claims, or the claims alone. The given report is stored beside the document, and a test
renders the sections from it again.
"""

import re
from pathlib import Path

from vggrepro.config.recipes import load_graph
from vggrepro.errors import UserError
from vggrepro.paper import facts
from vggrepro.reporting.documents.blocks import DASH, Block, Bullets, Sheet, Text, to_markdown
from vggrepro.reporting.documents.claim_blocks import claims_in_brief
from vggrepro.reporting.documents.render import blocks_of, in_brief
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Report
from vggrepro.storage.ledger import ledger

_SECTION = re.compile(r"<!-- vggrepro:(\S+)(?: (\S+))? -->\n.*?<!-- /vggrepro:\1 -->", re.DOTALL)
_REPORT_SECTION = "<!-- vggrepro:tables -->"
_RECIPES = Path("configs") / "reproduce.yaml"


def update_document(document: Path, report: Report) -> None:
    """Renders every generated section of a document and stores the report beside it. Raises UserError."""
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read: {error.strerror}; name an existing file") from None
    renewed = renew(text, report, document.parent)
    if _REPORT_SECTION in text:
        stored = report.model_dump_json(indent=1, exclude_defaults=True) + "\n"
        report_of_evidence(document).write_text(stored, encoding="utf-8")
    document.write_text(renewed, encoding="utf-8")


def report_of_evidence(document: Path) -> Path:
    """Returns the file that stores the report behind a document."""
    return document.with_suffix(".json")


def renew(text: str, report: Report, root: Path) -> str:
    """Returns the text with rendered sections; `root` is the folder that contains `configs/`. Raises UserError."""

    def section(match: re.Match[str]) -> str:
        name, folder = match.groups()
        blocks = _blocks(name, folder, report, root)
        notice = "<!-- made by `vggrepro tables --update`; edits are lost -->"
        begin = f"<!-- vggrepro:{name}{f' {folder}' if folder else ''} -->"
        return f"{begin}\n{notice}\n\n{to_markdown(blocks)}\n<!-- /vggrepro:{name} -->"

    renewed, n = _SECTION.subn(section, text)
    if not n:
        raise UserError("the document has no section to renew; put <!-- vggrepro:tables --> and its end marker into it")
    return renewed


def _blocks(name: str, folder: str | None, report: Report, root: Path) -> list[Block]:
    """Returns the content of a section."""
    if name == "tables":
        return blocks_of(report)
    if name == "recipes":
        return _recipes(root)
    if name not in ("evidence", "claims"):
        raise UserError(
            f"section vggrepro:{name} is not one that is generated; known: tables, recipes, evidence, claims"
        )
    if not folder:
        raise UserError("a section of evidence names its folder: <!-- vggrepro:evidence FOLDER -->")
    made = build_report(find_runs([root / folder]))
    return in_brief(made) if name == "evidence" else [claims_in_brief([*made.claims, *made.transfer_claims])]


def _recipes(root: Path) -> list[Block]:
    """Returns a row per stage of the paper, with its printed errors and recipe, and the departures of the recipes."""
    graph = load_graph(root / _RECIPES)
    rows, departures = [], []
    for name, stage in graph.stages.items():
        parent = graph.parents[name]
        printed = [
            f"{table}: {row.top1} / {row.top5}"
            for table in (3, 4)
            for row in facts().table(table)
            if row.nets == (stage.model.net,) and row.S == stage.data.S
        ]
        rows.append((name, stage.data.S_text, parent or DASH, "; ".join(printed), f"configs/{_file(root, name)}"))
        departures += [f"{name}: {departure}" for departure in ledger(stage, graph.stages[parent] if parent else None)]
    header = ("stage", "S", "starts from", "table: printed top-1 / top-5", "recipe")
    made: list[Block] = [Sheet(header, rows)]
    made.append(
        Text("Departures from the paper that the recipes themselves make:" if departures else
             "No recipe departs from the paper; a run lists its own departures.")
    )  # fmt: skip
    return [*made, Bullets(departures)] if departures else made


def _file(root: Path, stage: str) -> str:
    """Returns the recipe that ends with a stage."""
    for file in sorted((root / "configs").glob("vgg_*.yaml")):
        if list(load_graph(file).stages)[-1] == stage:
            return file.name
    raise UserError(f"stage {stage} of {_RECIPES} has no recipe configs/vgg_*.yaml; add one")
