"""Evidence: it is small and gives the same tables and claims, and the committed evidence the committed ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import Command, modules_imported_by
from reporting_runs import IMAGES, box_run, dense, make_run, posteriors_with
from tiny import REPOSITORY

from vggrepro.errors import UserError
from vggrepro.reporting.documents.archive import archive_evidence
from vggrepro.reporting.documents.compare import compare
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored import evidence
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Report

JITTER = (256, 512)
COMMITTED = sorted(file.parent for file in (REPOSITORY / "benchmarks" / "results").glob(f"*/{evidence.RUNS}"))
PLACE = "/srv/secret"


def grid(wrong: int, first: int = 0) -> dict[tuple[str, int], Any]:
    """Makes D or E at [256;512], dense and multi-crop at three Q, each with errors on other images."""
    return {
        (method, Q): posteriors_with(wrong, wrong // 4, first + 40 * n + shift)
        for n, Q in enumerate((256, 384, 512))
        for method, shift in (("dense", 0), ("multicrop", 300))
    }


@pytest.fixture
def runs(root: Path) -> Path:
    """Two seeds of A and B, one of D and E with all tests of Sections 4.3 and 4.4, and D from random weights."""
    for seed in (0, 1):
        for net, wrong in (("A", 600), ("B", 560)):
            results = dense(224, 256, 288, wrong1=wrong + 7 * seed, wrong5=100) | {
                ("centre", 256): posteriors_with(wrong + 60, 150)
            }
            run = make_run(root, net, name=f"{net}-{seed}", seed=seed, posteriors=results)
            run.write_json("environment.json", {"git_commit": "c" * 40, "command": f"{PLACE}/bin/python -m vggrepro"})
            run.write_json("mlflow.json", {"run_id": "abcdef0123456789"})
            for step in range(200, 4000, 20):
                run.append({"kind": "train", "step": step, "loss": 1.0, "learning_rate": 0.01, "memory_gib": 1.5})
            run.append({"kind": "validation", "step": 4000, "top1_error": 30.0, "top5_error": 9.0, "n": IMAGES})
    for net, wrong, first in (("D", 500, 0), ("E", 480, 100)):
        make_run(root, net, JITTER, name=f"{net}-jitter", posteriors=grid(wrong, first))
        make_run(root, net, name=f"{net}-256", parent="A-0", posteriors=dense(256, wrong1=wrong, wrong5=90))
    make_run(root, "D", name="D-scratch", posteriors=dense(256, wrong1=530, wrong5=90))
    return root


def contents_of(report: Report) -> dict[str, Any]:
    """Returns a report without the paths of the runs."""
    content = report.model_dump(mode="json")
    for group in content["groups"]:
        for run in group["runs"]:
            del run["directory"], run["mlflow_run"]
    return content


def test_evidence_gives_the_same_report_as_the_runs(runs: Path, tmp_path: Path) -> None:
    stored = build_report(find_runs([runs]))
    archive_evidence(find_runs([runs]), tmp_path / "kept", "title")
    archived = build_report(find_runs([tmp_path / "kept"]))
    assert contents_of(archived) == contents_of(stored)
    assert len([row for row in archived.rows if row.top1.measured is not None]) > 20
    assert {claim.section for claim in archived.claims if claim.n} == {"4.1", "4.2", "4.3", "4.4"}
    assert archived.start_from_parent
    assert archived.dense_over_centre
    notes = [row.note for row in archived.rows if row.verdict == "not measured" and "lacks" in row.note]
    assert notes, "what is missing is named from evidence, too"


def test_each_Q_of_a_net_is_stored_separately(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), tmp_path / "kept", "title")
    (D,) = (run for run in evidence.read(tmp_path / "kept") if run.config.name == "D-jitter")
    for Q in (256, 384, 512):
        for method in ("dense", "multicrop", "both"):
            assert D.has(method, Q), (method, Q)
    assert not D.has("centre", 256)
    assert not D.has("dense", 300)


def test_it_is_small_and_free_of_machine_facts(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), tmp_path / "kept", "title")
    files = {file.name: file for file in (tmp_path / "kept").iterdir()}
    assert {evidence.RUNS, evidence.RANKS, "tables.md", "error_by_depth.png", "effect_of_fusion.png"} <= files.keys()
    with np.load(files[evidence.RANKS]) as content:
        (ranks,) = (content[name] for name in content.files if name.endswith(".ranks"))
    assert ranks.dtype == np.uint8
    assert ranks.shape[1] == IMAGES
    lines = files[evidence.RUNS].read_text()
    for text in (lines, files["tables.md"].read_text()):
        assert str(tmp_path) not in text
        assert PLACE not in text
    first = json.loads(lines.splitlines()[0])
    assert first["environment.json"]["command"] == "python -m vggrepro"
    assert "cluster" not in first["config"]
    assert "tracking" not in first["config"]
    curve = [record["step"] for record in first["metrics.jsonl"] if record["kind"] == "train"]
    assert 30 < len(curve) <= 40


def test_written_again_it_is_the_same_byte_for_byte(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), tmp_path / "one", "title")
    archive_evidence(find_runs([runs]), tmp_path / "two", "title")
    archive_evidence(find_runs([tmp_path / "one"]), tmp_path / "three", "title")
    for name in (evidence.RUNS, evidence.RANKS, "tables.md", "effect_of_nets.png", "learning_curves.png"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("one", "two", "three")}) == 1, name


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_seeds_add_up_over_visits(runs: Path, tmp_path: Path, order: tuple[int, int]) -> None:
    everything = find_runs([runs])
    archive_evidence(everything, tmp_path / "at once", "title")
    for seed in order:
        of_seed = [run for run in everything if run.config.run.seed == seed]
        archive_evidence(of_seed, tmp_path / "in parts", "title")
    for file in (tmp_path / "at once").iterdir():
        assert (tmp_path / "in parts" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_stored_test_stays_when_its_posteriors_are_removed(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), tmp_path / "kept", "title")
    content = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    (removed,) = runs.glob("*/D-jitter/posteriors/multicrop*Q256*") or [None]
    removed.unlink()
    archive_evidence(find_runs([runs]), tmp_path / "kept", "title")
    assert {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == content


CONTRADICTIONS = {
    "another net": "paper:A-256 is another net there; to replace it, remove its line from",
    "other results": "the dense test of paper:A-256 at Q = 224 has other results there; to replace it, remove its line",
    "another recipe": "paper:A-256 and paper:A-256-seed1 are seeds of one stage, but differ in train.learning_rate; ",
    "another start": "paper:A-256 and paper:A-256-seed1 are seeds of one stage, but differ in run.parent; choose",
    "other images": "paper:A-256 and paper:A-256-seed1 are seeds of one stage, but differ in images; choose",
}


@pytest.mark.parametrize("change", CONTRADICTIONS)
def test_contradictions_leave_the_folder_as_it_is(tmp_path: Path, command: Command, change: str) -> None:
    first, second, folder = tmp_path / "first", tmp_path / "second", tmp_path / "kept"
    tested = dense(224, 256, 288, wrong1=600, wrong5=10)
    make_run(first, "A", posteriors=tested)
    assert command("tables", "--runs", first, "--keep", folder)[0] == 0
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    seed = {} if change in ("another net", "other results") else {"name": "A-256-seed1", "seed": 1}
    run = make_run(
        second,
        "A",
        posteriors=dense(224, 256, 288, wrong1=601, wrong5=10) if change == "other results" else tested,
        fingerprint=("e" if change == "other images" else "f") * 64,
        parent="B" if change == "another start" else None,
        **seed,
    )
    if change == "another net":
        weights = run.read_json("final.json")["weights"]
        for file in run.posteriors.iterdir():
            file.rename(file.with_name(file.name.replace(weights[:12], "b" * 12)))
        run.write_json("final.json", {"weights": "b" * 64, "step": 1})
    if change == "another recipe":
        config = (run.path / "config.yaml").read_text()
        run.write_text("config.yaml", config.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert CONTRADICTIONS[change] in command.mistake("tables", "--runs", second, "--keep", folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == content


def test_a_run_replaces_the_stored_one_once_its_line_is_removed(tmp_path: Path) -> None:
    for name, wrong in (("first", 600), ("second", 500)):
        make_run(tmp_path / name, "A", posteriors=dense(256, wrong1=wrong, wrong5=10))
        make_run(tmp_path / name, "B", posteriors=dense(256, wrong1=400, wrong5=10))
        archive_evidence(find_runs([tmp_path / name]), tmp_path / name / "kept", "title")
    file = tmp_path / "first" / "kept" / evidence.RUNS
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"net": "A"' not in line))
    archive_evidence(find_runs([tmp_path / "second"]), file.parent, "title")
    for stored in (evidence.RUNS, evidence.RANKS, "tables.md"):
        assert (file.parent / stored).read_bytes() == (tmp_path / "second" / "kept" / stored).read_bytes()


def test_a_run_that_is_there_itself_counts_once(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), runs / "kept", "title")
    assert contents_of(build_report(find_runs([runs]))) == contents_of(build_report(find_runs([runs / "paper"])))
    assert len(find_runs([runs, runs / "kept"])) == len(find_runs([runs / "paper"]))


def test_two_data_sets_in_a_folder(root: Path, tmp_path: Path) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=600, wrong5=10))
    other = {("dense", 256): posteriors_with(30, 10, images=100)}
    make_run(root, "A", experiment="small", fingerprint="e" * 64, images=100, posteriors=other)
    archive_evidence(find_runs([root]), tmp_path / "kept", "title")
    assert contents_of(build_report(find_runs([tmp_path / "kept"]))) == contents_of(build_report(find_runs([root])))
    assert len(list((tmp_path / "kept").glob("*error_by_depth.png"))) == 2


def test_ranks_beyond_a_byte_stay_wrong(tmp_path: Path, root: Path) -> None:
    run = make_run(root, "A", posteriors=dense(256, wrong1=600, wrong5=10))
    (stored,) = find_runs([root])
    ranks = evidence.Ranks(np.arange(4), np.array([0, 4, 255, np.iinfo(np.int64).max]))
    evidence.add([stored], {(((stored, (256,)),), "dense"): ranks}, tmp_path / "kept")
    (archived,) = evidence.read(tmp_path / "kept")
    found = archived.evidence.ranks([(archived, (256,))], "dense")
    assert found is not None
    assert found.rank.tolist() == [0, 4, 255, 255]
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert archived.weights == run.read_json("final.json")["weights"]


def test_only_tested_classification_nets_are_stored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(root, "A", posteriors=dense(256, wrong1=600, wrong5=10))
    make_run(root, "B", finished=False)
    box_run(root, name="boxes")
    transfers = root / "paper" / "A-256" / "transfers"
    transfers.mkdir()
    (transfers / "truth-d.npz").touch()
    archive_evidence(find_runs([root]), tmp_path / "kept", "title")
    assert [run.name for run in evidence.read(tmp_path / "kept")] == ["paper:A-256"]
    assert capsys.readouterr().err.splitlines() == [
        "no evidence of paper:A-256 on other data sets: Tables 11 and 12 are not kept",
        "no evidence of paper:B-256: it is not tested yet",
        "no evidence of paper:boxes: it predicts boxes, and Tables 8 to 10 are not kept",
    ]


def test_nothing_tested_is_a_mistake(root: Path, tmp_path: Path, command: Command) -> None:
    make_run(root, "A")
    message = command.mistake("tables", "--runs", root, "--keep", tmp_path / "kept")
    assert "vggrepro evaluate" in message
    assert not (tmp_path / "kept").exists()


def test_two_runs_with_the_same_name_are_refused(root: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        make_run(root / folder, "A", posteriors=dense(256, wrong1=600, wrong5=10))
    with pytest.raises(UserError, match="two runs are called paper:A-256"):
        archive_evidence(find_runs([root / "one", root / "two"]), tmp_path / "kept", "title")


def test_guesses_are_not_stored(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), tmp_path / "kept", "title")
    with pytest.raises(UserError, match="no guesses; name a run directory"):
        compare(find_runs([tmp_path / "kept"])[:2], None)


def test_the_command(runs: Path, tmp_path: Path, command: Command) -> None:
    status, out, err = command("tables", "--runs", runs, "--keep", tmp_path / "kept")
    assert (status, out) == (0, ""), err
    status, out, _ = command("tables", "--runs", tmp_path / "kept")
    assert status == 0
    assert "## paper, on images" in out
    assert "| paper:D-jitter + paper:E-jitter |" in out


@pytest.mark.parametrize("name", [evidence.RUNS, evidence.RANKS])
@pytest.mark.parametrize("harm", ["cut", "empty", "noise", "removed"])
def test_damage_is_a_one_line_error(runs: Path, tmp_path: Path, command: Command, name: str, harm: str) -> None:
    folder = tmp_path / "kept"
    archive_evidence(find_runs([runs]), folder, "title")
    file = folder / name
    content = file.read_bytes()
    match harm:
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "empty":
            file.write_bytes(b"")
        case "noise":
            file.write_bytes(np.random.default_rng(0).bytes(len(content)))
        case "removed":
            file.unlink()
    if name == evidence.RUNS and harm in ("empty", "removed"):
        assert find_runs([folder]) == []  # a folder like any other
        return
    assert str(file) in command.mistake("tables", "--runs", folder)


def test_a_run_of_another_version_is_a_one_line_error(runs: Path, tmp_path: Path) -> None:
    archive_evidence(find_runs([runs]), tmp_path, "title")
    file = tmp_path / evidence.RUNS
    for change in (('"model": {', '"net_of": {'), ('"final.json"', '"finale.json"'), ('"net": "A"', '"net": 7')):
        text = file.read_text()
        file.write_text(text.replace(*change))
        with pytest.raises(UserError, match=evidence.RUNS):
            evidence.read(tmp_path)
        file.write_text(text)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_evidence_gives_the_committed_tables(folder: Path) -> None:
    report = build_report(find_runs([folder]))
    archived = (folder / "tables.md").read_text()
    title = archived.splitlines()[0].removeprefix("# ")
    assert render(report, Format.markdown, title, counts=False) == archived
    assert any(row.top1.measured is not None for row in report.rows)
    assert not any(run.git_dirty for group in report.groups for run in group.runs), "made by code that is committed"


def test_evidence_needs_no_torch() -> None:
    assert not {"torch", "mlflow"} & modules_imported_by(
        "import vggrepro.reporting.stored.evidence, vggrepro.reporting.documents.archive"
    )
