"""Tables 11 and 12 (Appendix B), measured beside printed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vggrepro.evaluation.feature_spec import task_of
from vggrepro.evaluation.recognition import against_printed
from vggrepro.paper import TransferFigure, facts, value
from vggrepro.reporting import words
from vggrepro.reporting.report import TransferRow
from vggrepro.reporting.runs import StoredRun, departures_of
from vggrepro.reporting.stored_transfers import StoredTransfer, as_the_paper

TRANSFER_TITLES = {
    11: "Table 11: features on other data sets (Appendix B)",
    12: "Table 12: actions of PASCAL VOC 2012 (Appendix B)",
}


def transfer_rows(tests: Sequence[StoredTransfer]) -> list[TransferRow]:
    """Every figure of the paper, and what was measured beside it; then what the paper has no figure of."""
    rows: list[TransferRow] = []
    beside: set[int] = set()
    for figure in facts().transfer_figures:
        own = [one for one in tests if _is_of(one, figure)]
        beside |= {id(one) for one in own}
        rows += [_row(one, figure) for one in own] or [_unmeasured(figure)]
    rows += [_row(one, None) for one in tests if id(one) not in beside]
    order = list(facts().transfer)
    return sorted(rows, key=lambda row: (row.table, order.index(row.set) if row.set in order else len(order), row.set))


def _is_of(one: StoredTransfer, figure: TransferFigure) -> bool:
    """Whether a test is what a figure of the paper is of: nets and protocol; its training may be another."""
    if (one.set, one.nets, one.found.protocol.boxes) != (figure.set, figure.nets, figure.boxes):
        return False
    return as_the_paper(one, facts().transfer[figure.set])


def _row(one: StoredTransfer, figure: TransferFigure | None) -> TransferRow:
    asked, result, said = one.found.protocol, one.found.result, one.found.said
    obstacle = _obstacle(one) if figure else "the paper has no such figure"
    named: dict[str, Any] = {
        "table": task_of(one.set).table,
        "set": one.set,
        "data": asked.data,
        "net": words.FUSED.join(one.nets),
        "layer": words.FUSED.join(dict.fromkeys(net.layer for net in asked.nets)),
        "Q": words.FUSED.join(dict.fromkeys(", ".join(map(str, net.Q)) for net in asked.nets)),
        "combine": asked.combine if any(len(net.Q) > 1 for net in asked.nets) else None,
        "boxes": asked.boxes,
        "measure": asked.measure,
        "printed": figure.figure if figure else None,
        "printed_spread": figure.spread if figure else None,
        "measured": result.mean,
        "spread": result.spread,
        "interval": result.interval,
        "splits": len(result.tested),
        "C": list(one.found.C),
        "classes": said["classes"],
        "train": said["train"],
        "n": result.n,
        "run": words.FUSED.join(run.name for run in one.runs),
        "departures": departures_of(one.runs),
    }
    if figure is None or obstacle:
        return TransferRow(verdict="not comparable", note=obstacle, **named)
    held = against_printed(
        result.mean, result.spread, len(result.tested), figure.figure, figure.spread, result.interval
    )
    off = held in ("lower", "higher")
    return TransferRow(
        difference=result.mean - figure.figure,
        verdict="differs" if off else "agrees",
        note=held if off else "",
        **named,
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


def _unmeasured(figure: TransferFigure) -> TransferRow:
    named: dict[str, Any] = {
        "table": facts().transfer[figure.set].table,
        "set": figure.set,
        "net": words.FUSED.join(figure.nets) or figure.method,
        "boxes": figure.boxes,
        "measure": facts().transfer[figure.set].measure,
        "printed": figure.figure,
        "printed_spread": figure.spread,
    }
    if not figure.nets:
        return TransferRow(verdict="cannot be measured", note=words.OTHER_PAPER, **named)
    return TransferRow(verdict="not measured", note=f"no run of {named['net']} was tested on {figure.set}", **named)
