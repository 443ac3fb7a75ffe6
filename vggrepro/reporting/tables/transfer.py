"""Tables 11 and 12 (Appendix B), measured beside printed. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from vggrepro.config.settings import Model
from vggrepro.evaluation.feature_spec import scales_at, task_of
from vggrepro.evaluation.recognition import against_printed
from vggrepro.paper import TransferFigure, facts, value
from vggrepro.reporting.stored.runs import StoredRun, departures_of
from vggrepro.reporting.stored.stored_transfers import StoredTransfer
from vggrepro.reporting.tables import labels
from vggrepro.reporting.tables.labels import Q_text, fused
from vggrepro.reporting.tables.report import Measurement, Row, Verdict
from vggrepro.reporting.tables.rows import unmeasured


def transfer_rows(tests: Sequence[StoredTransfer]) -> list[Row]:
    """Returns every figure of the paper with the measured one beside it, then tests without a printed figure."""
    rows: list[Row] = []
    beside: set[int] = set()
    for figure in facts().transfer_figures:
        measured = [test for test in tests if _matches(test, figure)]
        beside |= {id(test) for test in measured}
        rows += [_row(test, figure) for test in measured] or [_without_test(figure)]
    rows += [_row(test, None) for test in tests if id(test) not in beside]
    order = {name: number for number, name in enumerate(facts().transfer)}
    return sorted(rows, key=lambda row: (row.table, order.get(row.set or "", len(order)), row.set))


def _matches(test: StoredTransfer, figure: TransferFigure) -> bool:
    """Whether nets and protocol of a test match a printed figure, apart from training; scales follow the crop."""
    protocol, task = test.found.protocol, facts().transfer[figure.set]
    drawn = ("splits", "train_per_class", "test_per_class")
    return (
        (test.set, test.nets, protocol.boxes, protocol.combine) == (figure.set, figure.nets, figure.boxes, task.combine)
        and [net.Q for net in protocol.nets] == [scales_at(run.config.model.crop, task.scales) for run in test.runs]
        and all(net.flip for net in protocol.nets)
        and (task.splits is None or all(protocol.drawing[name] == getattr(task, name) for name in drawn))
    )


def _row(test: StoredTransfer, figure: TransferFigure | None) -> Row:
    protocol, result, counts = test.found.protocol, test.found.result, test.found.note
    note = _obstacle(test) if figure else "the paper has no such figure"
    verdict: Verdict = "not comparable"
    difference = None
    if figure and not note:
        difference = result.mean - figure.figure
        against = against_printed(
            result.mean, result.spread, len(result.tested), figure.figure, figure.spread, result.interval
        )
        verdict, note = ("differs", against) if against in ("lower", "higher") else ("agrees", "")
    printed = figure.figure if figure else None
    return Row(
        table=task_of(test.set).table,
        set=test.set,
        data=protocol.data,
        net=fused(test.nets),
        layer=fused((net.layer for net in protocol.nets), alike_once=True),
        Q=fused((Q_text(net.Q) for net in protocol.nets), alike_once=True),
        combine=protocol.combine if any(len(net.Q) > 1 for net in protocol.nets) else None,
        boxes=protocol.boxes,
        measure=protocol.measure,
        split=None,
        figures={
            "only": Measurement(printed=printed, measured=result.mean, interval=result.interval, difference=difference)
        },
        printed_spread=figure.spread if figure else None,
        spread=result.spread,
        splits=len(result.tested),
        C=list(test.found.C),
        classes=counts["classes"],
        train=counts["train"],
        n=result.n,
        verdict=verdict,
        run=fused(run.name for run in test.runs),
        departures=departures_of(test.runs),
        note=note,
    )


def _obstacle(test: StoredTransfer) -> str:
    """Returns why a test is not comparable with the printed figure; empty if it is."""
    task, counts = facts().transfer[test.set], test.found.note
    if not all(_is_the_papers_net(run) for run in test.runs):
        return f"{labels.OTHER_SETTING} was learnt from"
    if task.unlabelled or test.set == "voc2012_action":
        return "measured on val: only the challenge's server has the labels of test; `--submission` writes its files"
    images = counts["images"] + counts["rejected"]
    if (counts["classes"], images) != (task.classes, task.images):
        return f"{counts['classes']} classes and {images:,} images, the data set has {task.classes} and {task.images:,}"
    return ""


def _is_the_papers_net(run: StoredRun) -> bool:
    """Whether a net has the paper's classes and geometry; an imported one's training set is unknown."""
    model = run.config.model
    trained = run.dataset.get("splits", {}).get("train") in (None, 0, value("train_images"))
    papers = Model(net=model.net)
    return trained and (model.classes, model.geometry) == (papers.classes, papers.geometry)


def _without_test(figure: TransferFigure) -> Row:
    """Returns the row of a printed figure without a test."""
    task = facts().transfer[figure.set]
    if figure.nets:
        net = fused(figure.nets)
        judged = unmeasured({"only": figure.figure}, f"no run of {net} was tested on {figure.set}")
    else:
        net, judged = figure.method, unmeasured({"only": figure.figure}, labels.OTHER_PAPER, "cannot be measured")
    return Row(
        table=task.table,
        set=figure.set,
        boxes=figure.boxes,
        measure=task.measure,
        net=net,
        split=None,
        printed_spread=figure.spread,
        C=[],
        **judged,
    )
