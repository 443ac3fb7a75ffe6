"""Tables 11 and 12 (Appendix B), measured beside printed. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from vggrepro.evaluation.asked import task_of
from vggrepro.evaluation.recognition import against_printed
from vggrepro.paper import TransferFigure, facts, value
from vggrepro.reporting import words
from vggrepro.reporting.report import Figure, Row, Verdict
from vggrepro.reporting.runs import StoredRun, departures_of
from vggrepro.reporting.stored_transfers import StoredTransfer, as_the_paper
from vggrepro.reporting.words import Q_text, fused


def transfer_rows(tests: Sequence[StoredTransfer]) -> list[Row]:
    """Every figure of the paper, and what was measured beside it; then what the paper has no figure of."""
    rows: list[Row] = []
    beside: set[int] = set()
    for figure in facts().transfer_figures:
        own = [one for one in tests if _is_of(one, figure)]
        beside |= {id(one) for one in own}
        rows += [_row(one, figure) for one in own] or [_without_test(figure)]
    rows += [_row(one, None) for one in tests if id(one) not in beside]
    order = {name: number for number, name in enumerate(facts().transfer)}
    return sorted(rows, key=lambda row: (row.table, order.get(row.set or "", len(order)), row.set))


def _is_of(one: StoredTransfer, figure: TransferFigure) -> bool:
    """Whether a test is what a figure of the paper is of: nets and protocol; its training may be another."""
    if (one.set, one.nets, one.found.protocol.boxes) != (figure.set, figure.nets, figure.boxes):
        return False
    return as_the_paper(one, facts().transfer[figure.set])


def _row(one: StoredTransfer, figure: TransferFigure | None) -> Row:
    asked, result, said = one.found.protocol, one.found.result, one.found.said
    note = _obstacle(one) if figure else "the paper has no such figure"
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
        table=task_of(one.set).table,
        set=one.set,
        data=asked.data,
        net=fused(one.nets),
        layer=fused((net.layer for net in asked.nets), alike_once=True),
        Q=fused((Q_text(net.Q) for net in asked.nets), alike_once=True),
        combine=asked.combine if any(len(net.Q) > 1 for net in asked.nets) else None,
        boxes=asked.boxes,
        measure=asked.measure,
        split=None,
        figures={
            "only": Figure(printed=printed, measured=result.mean, interval=result.interval, difference=difference)
        },
        printed_spread=figure.spread if figure else None,
        spread=result.spread,
        splits=len(result.tested),
        C=list(one.found.C),
        classes=said["classes"],
        train=said["train"],
        n=result.n,
        verdict=verdict,
        run=fused(run.name for run in one.runs),
        departures=departures_of(one.runs),
        note=note,
    )


def _obstacle(one: StoredTransfer) -> str:
    """Why the paper's figure is not about what was measured; empty where it is."""
    task, said = facts().transfer[one.set], one.found.said
    if not all(_is_the_papers_net(run) for run in one.runs):
        return f"{words.OTHER_SETTING} was learnt from"
    if task.unlabelled or one.set == "voc2012_action":
        return "measured on val: only the challenge's server has the labels of test; `--submission` writes its files"
    images = said["images"] + said["rejected"]
    if (said["classes"], images) != (task.classes, task.images):
        return f"{said['classes']} classes and {images:,} images, the data set has {task.classes} and {task.images:,}"
    return ""


def _is_the_papers_net(run: StoredRun) -> bool:
    """Whether a net is of the paper's classes and geometry; of one that was imported no more is known."""
    model = run.config.model
    trained = run.dataset.get("splits", {}).get("train") in (None, 0, value("train_images"))
    return trained and (model.classes, model.crop, model.width) == (value("classes"), value("crop"), 1.0)


def _without_test(figure: TransferFigure) -> Row:
    """A figure of the paper alone."""
    task = facts().transfer[figure.set]
    net = fused(figure.nets) or figure.method
    return Row(
        table=task.table,
        set=figure.set,
        net=net,
        boxes=figure.boxes,
        measure=task.measure,
        split=None,
        figures={"only": Figure(printed=figure.figure)},
        printed_spread=figure.spread,
        C=[],
        verdict="not measured" if figure.nets else "cannot be measured",
        note=f"no run of {net} was tested on {figure.set}" if figure.nets else words.OTHER_PAPER,
    )
