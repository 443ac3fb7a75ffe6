"""Selection of the stored boxes for the rows of Tables 8-10."""

import json
from pathlib import Path

import numpy as np
import pytest
from reporting_runs import BOTH, COARSE, FINE, box_run, find_centre, find_dense, report_of, rows_of

from vggrepro.errors import UserError
from vggrepro.evaluation.box_store import FoundKey, truth_file


@pytest.mark.usefixtures("paper_of_2000")
def test_three_nets_pooled_are_not_the_papers_two(root: Path) -> None:
    """Neither two seeds at S = 256 and one at S = 384, nor other Q, match the paper's row."""
    first, second, fine = box_run(root, 256), box_run(root, 256, seed=1), box_run(root)
    find_dense([(first, COARSE), (second, COARSE), (fine, BOTH)], 500)
    find_dense([(first, COARSE), (fine, (384, 416))], 510)
    pooled = [row for row in rows_of(root, 9) if row.main.measured is not None and row.run]
    assert [(row.net, row.Q, row.main.printed, row.main.measured) for row in pooled] == [
        ("D + D + D", "256 + 256 + 352, 384", None, 25.0),
        ("D + D", "256 + 384, 416", None, 25.5),
    ]
    (papers,) = [row for row in rows_of(root, 9) if row.main.printed == 26.9]
    assert (papers.verdict, papers.main.measured) == ("not measured", None)


@pytest.mark.usefixtures("paper_of_2000")
def test_nets_pooled_in_either_order_share_a_row(root: Path) -> None:
    coarse, fine = box_run(root, 256), box_run(root)
    find_dense([(fine, (384, 352)), (coarse, COARSE)], 538)
    (pooled,) = [row for row in rows_of(root, 9, split="val") if "+" in row.net]
    assert (pooled.S, pooled.Q, pooled.main.printed, pooled.main.measured) == (
        "256 + 384",
        "256 + 352, 384",
        26.9,
        26.9,
    )
    find_dense([(coarse, COARSE), (fine, BOTH)], 538)
    assert len([row for row in rows_of(root, 9, split="val") if "+" in row.net]) == 1


@pytest.mark.usefixtures("paper_of_2000")
def test_pooled_boxes_need_all_their_nets(root: Path) -> None:
    coarse, fine, lost = box_run(root, 256), box_run(root), box_run(root, 256, seed=7)
    find_dense([(coarse, COARSE), (fine, BOTH)], 538)
    find_dense([(fine, BOTH), (lost, COARSE)], 0)
    (lost.path / "config.yaml").unlink()
    (pooled,) = [row for row in rows_of(root, 9, split="val") if "+" in row.net]
    assert pooled.main.measured == 26.9
    assert len(rows_of(root, 9, Q="352, 384")) == 1  # a row of the one net that is left would be wrong


@pytest.mark.usefixtures("paper_of_2000")
def test_two_experiments_have_separate_tables(root: Path) -> None:
    """Pooled boxes of one experiment do not appear in the other."""
    for experiment, wrong in (("first", 500), ("second", 600)):
        coarse, fine = (box_run(root, S, experiment=experiment) for S in (256, 384))
        find_dense([(coarse, COARSE), (fine, BOTH)], wrong)
    report = report_of(root)
    pooled = {row.run: (row.group, row.main.measured) for row in report.rows if row.table == 9 and row.net == "D + D"}
    first, second = (group.id for group in report.groups)
    assert pooled["first:256-PCR-all-0 + first:384-PCR-all-0"] == (first, 25.0)
    assert pooled["second:256-PCR-all-0 + second:384-PCR-all-0"] == (second, 30.0)


@pytest.mark.usefixtures("paper_of_2000")
def test_a_copy_of_a_run_is_no_second_net(root: Path) -> None:
    coarse, fine = box_run(root, 256), box_run(root)
    copy = box_run(root, 256, name="copy")
    note = (coarse.path / "final.json").read_text()
    (copy.path / "final.json").write_text(note)
    find_dense([(coarse, COARSE), (fine, BOTH)], 538)
    (pooled,) = [row for row in rows_of(root, 9, split="val") if "+" in row.net]
    assert (pooled.run, pooled.main.printed) == ("paper:256-PCR-all-0 + paper:384-PCR-all-0", 26.9)


@pytest.mark.usefixtures("paper_of_2000")
def test_of_several_guesses_the_best_are_reported(root: Path) -> None:
    run = box_run(root)
    find_dense([(run, FINE)], 300, lost=300, guesses="parent")
    find_dense([(run, FINE)], 400, lost=100, guesses="best")
    find_dense([(run, FINE)], 100, lost=350, guesses="worst")  # of lower localisation error than the best
    (row,) = rows_of(root, 9, Q="384", split="val")
    assert (row.main.measured, row.guesses) == (25.0, "best (top-5 error 5.0 %)")


@pytest.mark.usefixtures("paper_of_2000")
@pytest.mark.parametrize(
    "other",
    [{"weights": "0" * 64}, {"data": "0" * 64}, {"boxes": "0" * 64}, {"precision": "bf16"}, {"merge_below": 0.25}],
    ids=lambda other: next(iter(other)),
)
def test_boxes_of_other_nets_and_data_are_not_used(root: Path, other: dict[str, object]) -> None:
    run = box_run(root)
    files, foreign, unused = {}, dict(other), []
    below = foreign.pop("merge_below", None)
    for Q in (FINE, BOTH):
        files[Q] = find_dense([(run, Q)], 500)
        file = find_dense([(run, Q)], 1, merge_below=below, guesses="foreign", **foreign)  # type: ignore[arg-type]
        unused.append(file)
    if below is None:
        unused.append(find_centre(run, 2, **foreign))
    if other.keys() & {"weights", "data"}:
        assert set(run.unused_results) >= {file.name for file in unused}
    assert not set(run.unused_results) & {file.name for file in files.values()}
    assert [row.main.measured for row in rows_of(root, 9, run="paper:384-PCR-all-0")] == [25.0, 25.0]
    assert [row.main.measured for row in rows_of(root, 8, run="paper:384-PCR-all-0")] == [None]
    for file in files.values():
        file.unlink()
    assert [row.main.measured for row in rows_of(root, 9, run="paper:384-PCR-all-0")] == [None, None]


@pytest.mark.usefixtures("paper_of_2000")
def test_later_true_boxes_change_nothing(root: Path) -> None:
    """A folder may have predictions for other true boxes as well: each is compared with the right ones."""
    run = box_run(root)
    find_centre(run, 500)
    find_centre(run, 500, boxes="0" * 64)
    other = truth_file(run.run_directory, "f" * 64, "0" * 64)
    with np.load(other) as content:
        changed = dict(content) | {"box": content["box"] + 40}
    np.savez(other, **changed)
    assert [row.main.measured for row in rows_of(root, 8, run="paper:384-PCR-all-0")] == [25.0]


@pytest.mark.usefixtures("paper_of_2000")
def test_unreadable_boxes_are_a_one_line_error(root: Path) -> None:
    run = box_run(root)
    file = find_centre(run, 500)
    content = file.read_bytes()
    places = truth_file(run.run_directory, "f" * 64, "b" * 64)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"boxes .*centre-Q384-.*npz cannot be read .*; remove the file and evaluate"):
        report_of(root)
    file.write_bytes(content)
    with np.load(places) as content:
        shorter = {"labels": content["labels"][:-1], "size": content["size"][:-1]}
        np.savez(places.with_suffix(".new.npz"), **dict(content) | shorter)
    places.with_suffix(".new.npz").replace(places)
    with pytest.raises(UserError, match="are for 2000 images, the stored true boxes for 1999; remove "):
        report_of(root)
    places.unlink()
    with pytest.raises(
        UserError, match=r"lack the true ones, truth-[0-9a-f]{16}.npz; remove the folder and test again"
    ):
        report_of(root)


@pytest.mark.usefixtures("paper_of_2000")
def test_a_run_that_knows_of_no_boxes_has_none(root: Path) -> None:
    run = box_run(root)
    described = json.loads((run.path / "dataset.json").read_text())
    del described["boxes"]
    (run.path / "dataset.json").write_text(json.dumps(described))
    (row,) = rows_of(root, 8, run="paper:384-PCR-all-0")
    assert row.verdict == "not measured"


def test_every_stored_set_is_listed_once(root: Path) -> None:
    run = box_run(root)
    files = {find_centre(run, 5), find_dense([(run, FINE)], 5), find_dense([(run, FINE)], 5, guesses="others")}
    listed = FoundKey.listed(run.run_directory)
    assert {key.file(run.run_directory) for key, _ in listed} == files
    assert sorted(note.get("guesses", "") for _, note in listed) == ["", "others", "parent"]
