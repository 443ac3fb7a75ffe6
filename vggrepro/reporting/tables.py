"""Tables 3 and 4 in the paper's layout, measured beside printed, from stored posteriors. No torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from vggrepro.config import Config
from vggrepro.evaluation.measure import Measured, measure
from vggrepro.ledger import Departure
from vggrepro.paper import Row, facts, value
from vggrepro.tracking import RunDirectory

_TITLES = {
    3: "Table 3: one test scale (Section 4.1)",
    4: "Table 4: several test scales (Section 4.2)",
}


def measured_rows(stages: list[Config]) -> list[dict[str, Any]]:
    """One row for each stage and table that its posteriors allow, in the paper's order.

    Keys: table, net, S, Q, method, measured_top1, measured_top5, interval_top1, n, printed_top1, printed_top5, run.
    Errors are in per cent. `printed_*` is the paper's row for the net and the kind of S, None where it prints none.
    """
    rows = []
    for table in _TITLES:
        for config in stages:
            run = RunDirectory(config.directory)
            weights, data = run.read_json("final.json"), run.read_json("dataset.json")
            if not (weights and data):
                continue
            Q = config.single_Q if table == 3 else config.multi_Q
            if result := measure(config, weights["weights"], data["fingerprint"], run, Q):
                rows.append(_row(table, config, result))
    return rows


def to_markdown(title: str, stages: list[Config], rows: list[dict[str, Any]]) -> str:
    """The tables with the protocol of every number and the fidelity ledger of every run."""
    lines = [f"# {title}: measured beside printed", ""]
    for table, heading in _TITLES.items():
        lines += [
            f"## {heading}",
            "",
            "| ConvNet | S | Q | top-1 error % | 95 % interval | top-5 error % | n | paper top-1 | paper top-5 | run |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row["table"] != table:
                continue
            low, high = row["interval_top1"]
            cells = (
                row["net"],
                row["S"],
                row["Q"],
                f"**{row['measured_top1']:.1f}**",
                f"{low:.1f} - {high:.1f}",
                f"{row['measured_top5']:.1f}",
                f"{row['n']:,}",
                _printed(row["printed_top1"]),
                _printed(row["printed_top5"]),
                row["run"],
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "Protocol: dense, uncropped, on the validation split; the posteriors of the Q values"
        + (" and of the mirrored pictures" if stages[0].evaluation.flip else "")
        + " are averaged. Intervals: Wilson.",
        "The paper's figures are for ILSVRC-2012 at 224 px, of the same net trained at a fixed S or with scale jitter.",
        "",
        *_ledger_lines(stages),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(table: int, config: Config, result: Measured) -> dict[str, Any]:
    printed = _printed_row(table, config)
    return {
        "table": table,
        "net": config.model.net,
        "S": config.data.S_text,
        "Q": ", ".join(map(str, result.Q)),
        "method": result.method,
        "measured_top1": result.top1.percent,
        "measured_top5": result.top5.percent,
        "interval_top1": list(result.top1.interval),
        "n": result.top1.n,
        "printed_top1": printed.top1 if printed else None,
        "printed_top5": printed.top5 if printed else None,
        "run": str(config.directory),
    }


def _printed_row(table: int, config: Config) -> Row | None:
    """The paper's row for the net: at the same S, or, at reduced geometry, at the S that this one stands for."""
    S = config.data.S
    if config.model.crop != value("crop"):
        S = value("jitter") if isinstance(S, tuple) else value("scales")[0]
    found = [row for row in facts().table(table) if row.nets == (config.model.net,) and row.S == S]
    return found[0] if found else None


def _printed(error: float | None) -> str:
    return "-" if error is None else f"{error:.1f}"


def _ledger_lines(stages: list[Config]) -> list[str]:
    """The departures, those of all runs first and then each run's own."""
    ledgers = {config.name: RunDirectory(config.directory).read_json("ledger.json") or [] for config in stages}
    texts = {name: [str(Departure(**line)) for line in lines] for name, lines in ledgers.items()}
    if not any(texts.values()):
        return ["Departures from the paper: none."]
    counts = Counter(text for lines in texts.values() for text in lines)
    common = [text for text, n in counts.items() if n == len(stages)]
    lines = ["## Departures from the paper (fidelity ledger)", "", "These runs cannot be held against its figures:", ""]
    lines += [f"- {text}" for text in common]
    for name, own in texts.items():
        lines += [f"- {name}: {text}" for text in own if text not in common]
    return lines
