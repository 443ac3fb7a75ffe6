"""Generated sections are made anew between their markers, and are never stale in the repository."""

from dataclasses import replace
from pathlib import Path

import pytest
from reporting_runs import box_run, dense, find_centre, find_dense, make_run
from tiny import REPOSITORY

from vggrepro.errors import UserError
from vggrepro.paper import facts
from vggrepro.reporting.documents.archive import archive_evidence
from vggrepro.reporting.documents.document import renew, report_of_evidence, update_document
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables import classification, localisation
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Report


def is_fresh(document: Path) -> bool:
    """Whether its sections are what the kept report gives today, and that has the paper's figures as of today."""
    text, archived, papers = document.read_text(encoding="utf-8"), report_of_evidence(document), build_report([])
    report = Report.model_validate_json(archived.read_text(encoding="utf-8")) if archived.exists() else papers
    return of_the_paper(papers) <= of_the_paper(report) and renew(text, report, document.parent) == text


def of_the_paper(report: Report) -> set[tuple[object, ...]]:
    """Returns the paper's figures and claims in a report."""
    return {
        *(
            (
                row.table,
                row.set,
                row.net,
                row.regression,
                row.fine_tune,
                row.boxes,
                name,
                figure.printed,
                row.printed_spread,
            )
            for row in report.rows
            for name, figure in row.figures.items()
            if figure.printed is not None
        ),
        *((row.table, row.net, row.printed_count) for row in report.rows if row.printed_count),
        *((claim.section, claim.claim) for claim in (*report.claims, *report.transfer_claims)),
    }


@pytest.mark.parametrize(
    "name", ["docs/evidence.md", "REPRODUCTION.md", "benchmarks/results/2026-11-27-imagenette/README.md"]
)
def test_the_documents_are_fresh(name: str) -> None:
    assert is_fresh(REPOSITORY / name), (
        f"a generated section of {name} is stale or was edited; renew it with "
        f"`vggrepro tables --runs runs/paper --update {name}`"
    )


@pytest.fixture
def document(root: Path, tmp_path: Path, paper_of_2000: None) -> Path:
    make_run(root, "A", posteriors=dense(256, wrong1=592, wrong5=208))
    file = tmp_path / "notes.md"
    file.write_text("before\n<!-- vggrepro:tables -->\nold\n<!-- /vggrepro:tables -->\nafter\n")
    update_document(file, build_report(find_runs([root])))
    return file


def test_only_the_section_is_renewed(document: Path) -> None:
    text = document.read_text()
    assert text.startswith("before\n<!-- vggrepro:tables -->\n")
    assert text.endswith("<!-- /vggrepro:tables -->\nafter\n")
    assert "old" not in text
    assert "| A | 256 | 256 | dense | 29.6 | **29.6** |" in text
    assert is_fresh(document)


def test_an_edit_by_hand_is_noticed(document: Path) -> None:
    document.write_text(document.read_text().replace("**29.6**", "**28.6**"))
    assert not is_fresh(document)


def test_words_outside_the_section_are_free(document: Path) -> None:
    document.write_text(document.read_text() + "\nand more\n")
    assert is_fresh(document)


def test_another_report_makes_it_stale(document: Path) -> None:
    archived = report_of_evidence(document)
    archived.write_text(archived.read_text().replace("29.6", "29.5"))
    assert not is_fresh(document)


def test_other_figures_of_the_paper_make_it_stale(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept report has the figures that `facts.yaml` had when it was made."""
    assert is_fresh(document)
    rows = tuple(replace(row, top1=28.6) if row.nets == ("B",) else row for row in facts().table(3))
    corrected = replace(facts(), tables={**facts().tables, 3: rows})
    monkeypatch.setattr(classification, "facts", lambda: corrected)
    assert not is_fresh(document)


def test_other_figures_of_appendix_a_make_it_stale(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_fresh(document)
    rows = tuple(replace(row, regression="PCR") if row.regression == "SCR" else row for row in facts().localisation[8])
    corrected = replace(facts(), localisation={**facts().localisation, 8: rows})
    monkeypatch.setattr(localisation, "facts", lambda: corrected)
    assert not is_fresh(document)


@pytest.mark.parametrize("crop", [32, 224])
def test_boxes_that_were_measured_keep_it_fresh(root: Path, tmp_path: Path, crop: int, paper_of_2000: None) -> None:
    """S and Q of another geometry, and nets pooled in another order, are none of the paper's figures."""
    small = crop == 32
    coarse, fine = (box_run(root, S, crop=crop) for S in ((37, 55) if small else (256, 384)))
    find_centre(fine, 600)
    find_dense([(fine, fine.config.multi_Q), (coarse, coarse.config.multi_Q)], 538)
    file = tmp_path / "notes.md"
    file.write_text("<!-- vggrepro:tables -->\n<!-- /vggrepro:tables -->\n")
    update_document(file, build_report(find_runs([root])))
    assert "| **26.9** |" in file.read_text()
    assert is_fresh(file)
    file.write_text(file.read_text().replace("**26.9**", "**25.9**"))
    assert not is_fresh(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no section", "has no section to renew"),
        ("<!-- vggrepro:poems -->\n<!-- /vggrepro:poems -->", "vggrepro:poems is not one that is generated"),
    ],
)
def test_mistakes_change_nothing(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "notes.md"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        update_document(file, build_report([]))
    assert file.read_text() == text
    assert not report_of_evidence(file).exists()
    with pytest.raises(UserError, match="cannot be read"):
        update_document(tmp_path / "nowhere.md", build_report([]))


@pytest.fixture
def in_short(root: Path, tmp_path: Path) -> Path:
    """A document with the two sections that are made of evidence beside it."""
    for seed in (0, 1):
        for net, wrong in (("A", 592), ("B", 560)):
            results = dense(256, wrong1=wrong + 4 * seed, wrong5=208)
            if net == "B" and not seed:  # one seed has more tests than the other
                results |= dense(224, 288, wrong1=560, wrong5=200)
            make_run(root, net, name=f"{net}-{seed}", seed=seed, posteriors=results)
    make_run(root, "D", posteriors=dense(256, wrong1=500, wrong5=208))
    archive_evidence(find_runs([root]), tmp_path / "results" / "one", "title")
    file = tmp_path / "page.md"
    sections = (f"<!-- vggrepro:{name} results/one -->\n<!-- /vggrepro:{name} -->\n" for name in ("evidence", "claims"))
    file.write_text("before\n" + "between\n".join(sections) + "after\n")
    update_document(file, build_report([]))
    return file


def test_sections_are_made_of_committed_evidence(in_short: Path) -> None:
    text = in_short.read_text()
    assert text.startswith("before\n<!-- vggrepro:evidence results/one -->\n")
    assert "| A | 256 | 256 | dense | 2 | (29.6) | **29.70** | 0.14 |" in text
    assert "| D | 256 | 256 | dense | (27.0) | **25.0** |" in text, "one seed has no mean"
    assert "| 4.1 | Error falls with depth | 2 | - | - | - | +1.6 to +4.6 |" in text
    assert "| B | 256 | 224, 256, 288 | dense | (28.2) | **28.0** |" in text
    assert "directory" not in text
    assert not report_of_evidence(in_short).exists(), "nothing in it is of the report that was given"
    assert is_fresh(in_short)


@pytest.mark.parametrize("old", ["**29.70**", "+1.6 to +4.6"])
def test_an_edit_of_a_section_of_evidence_is_noticed(in_short: Path, old: str) -> None:
    in_short.write_text(in_short.read_text().replace(old, "1"))
    assert not is_fresh(in_short)


def test_a_section_of_evidence_names_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    for marker, message in (("evidence", "names its folder"), ("evidence nowhere", "is not a folder")):
        file.write_text(f"<!-- vggrepro:{marker} -->\n<!-- /vggrepro:evidence -->\n")
        with pytest.raises(UserError, match=message):
            update_document(file, build_report([]))
