"""The HTML report's picture and its sections that fold."""

import math
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import pytest

from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.documents.overview import claims_panel, errors_panel, group_picture
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.tables.report import Group, Report, Row, Spread

GROUP = Group(id="g", title="digits: 10 classes", papers=False, runs=[])
LOW, HIGH = 262, 466  # of the axis in the template, user units


def claim(text: str, effect: float | None, interval: tuple[float, float] | None, verdict: str) -> Claim:
    sides = {"better": "B", "worse": "A"}
    return Claim(group="g", section="4.1", claim=text, verdict=verdict, effect=effect, interval=interval, **sides)


CLAIMS = [
    claim("Depth helps: B is better than A, which has fewer layers, by some", 2.0, (1.0, 3.0), "supported"),
    claim("Depth helps: C is better than B", -4.0, (-6.0, -2.0), "not supported"),
    claim("Depth helps: D is better than C", 0.5, (-1.0, 2.0), "undecided at this n"),
    claim("Depth helps: E is better than D", None, None, "not measured"),
    claim("Depth helps: F is better than E", math.nan, (math.nan, math.nan), "undecided at this n"),
]


def row(net: str, S: str, measured: float | None, run: str | None, table: int = 3, **more: Any) -> Row:
    error = {"measured_top1": measured, "interval_top1": measured and (measured - 1, measured + 1)}
    verdict = "not measured" if measured is None else "not comparable"
    return Row(group="g", table=table, net=net, S=S, verdict=verdict, run=run, printed_top1=29.6, **error, **more)


ROWS = [
    row("A", "64", 30.0, "x:A"),
    row("A", "64", 32.0, "x:A-seed1"),
    row("D", "64", 25.0, "x:D"),
    row("D", "64", 27.0, "x:D-scratch"),
    row("D", "64", 24.0, "x:D", table=4),
    row("E", "[48;64]", None, None),
]
SEEDS = [Spread(group="g", table=3, net="A", seeds=2, runs=["x:A", "x:A-seed1"])]


def report(group: Group = GROUP, **parts: Any) -> Report:
    return Report(**({"groups": [group], "rows": [], "seeds": [], "claims": [], "left_out": []} | parts))


def page_of(made: Report) -> tuple[str, list[ElementTree.Element]]:
    """The page and the panels of its picture."""
    text = render(made, Format.html, "t", counts=False)
    return text, [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def marks_of(panel: ElementTree.Element) -> Mapping[str, tuple[float, float, float, str]]:
    """Returns left end, mark, right end and class by label."""
    found = {}
    for group in panel.iter("g"):
        line, (mark, *_) = group.find("line"), [*group.iter("circle"), *group.iter("rect")]
        x = float(mark.get("cx") or float(mark.get("x", "")) + 3.8)
        assert line is not None
        label = str(group.findtext("title")).partition(":")[0]
        found[label] = float(line.get("x1", "")), x, float(line.get("x2", "")), str(mark.get("class"))
    return found


def test_effects_are_drawn_where_their_numbers_are() -> None:
    (picture,) = group_picture(report(claims=CLAIMS), GROUP)
    assert [panel.ticks for panel in picture.panels] == [[-6.0, -4.0, -2.0, 0.0, 2.0, 4.0]]
    text, (panel,) = page_of(report(claims=CLAIMS))
    unit = (HIGH - LOW) / 10

    def x(*points: float) -> list[float]:
        return [LOW + (point + 6) * unit for point in points]

    drawn = marks_of(panel)
    expected = {
        "B is better than A, which has fewer layers, by some": (x(1, 2, 3), "good"),
        "C is better than B": (x(-6, -4, -2), "bad"),
        "D is better than C": (x(-1, 0.5, 2), "open hollow"),
    }
    assert drawn.keys() == expected.keys()  # neither the missing nor the undefined effect
    for label, (places, kind) in expected.items():
        assert drawn[label][:3] == pytest.approx(places, abs=0.02)
        assert drawn[label][3] == kind
    zero = panel.find("line[@class='zero']")
    assert zero is not None
    assert float(zero.get("x1", "")) == pytest.approx(x(0)[0], abs=0.02)
    assert "1 supported, 1 not supported, 2 undecided at this n, 1 not measured" in text
    assert [node.text for node in panel.iter("text") if node.get("class") == "value"] == ["+2.0", "-4.0", "+0.5"]


def test_errors_are_drawn_by_training_scale_and_recipe() -> None:
    panel = errors_panel(report(rows=ROWS, seeds=SEEDS), GROUP, (3, 4), "errors")
    assert panel is not None
    marks = {
        (heading, label): [(mark.kind, mark.value, mark.interval) for mark in found]
        for heading, labels in panel.rows.items()
        for label, found in labels.items()
    }
    assert marks == {
        ("S = 64", "A"): [("one Q", 31.0, (30.0, 32.0))],  # over seeds: mean and range
        ("S = 64", "D"): [("one Q", 25.0, (24.0, 26.0)), ("several Q", 24.0, (23.0, 25.0))],
        ("S = 64", "D-scratch"): [("one Q", 27.0, (26.0, 28.0))],
    }
    assert "not drawn" in panel.note


def test_printed_errors_are_drawn_if_they_apply() -> None:
    panel = errors_panel(report(rows=ROWS), GROUP.model_copy(update={"papers": True}), (3, 4), "errors")
    assert panel is not None
    assert [mark.kind for mark in panel.rows["S = 64"]["D"]] == ["the paper", "one Q", "the paper", "several Q"]
    assert [(mark.kind, mark.value) for mark in panel.rows["S = [48;64]"]["E"]] == [("the paper", 29.6)]


def test_localisation_errors_have_their_labels() -> None:
    cells: dict[str, Any] = {"S": "256", "Q": "256", "regression": "PCR", "fine_tune": "all", "verdict": "differs"}
    boxes = [Row(group="g", table=8, net="D", run="x:D", measured=34.0, interval=(33.0, 35.0), **cells)]
    panel = errors_panel(report(rows=boxes), GROUP, (8, 9), "errors")
    assert panel is not None
    (labels,) = panel.rows.values()
    assert list(labels) == ["D, 256, 256, PCR, all"]


def test_nothing_measured_draws_nothing() -> None:
    assert claims_panel("claims", CLAIMS[3:]) is None
    assert errors_panel(report(rows=ROWS[-1:]), GROUP, (3, 4), "errors") is None
    assert group_picture(report(), GROUP) == []
    assert page_of(report())[1] == []


def test_equal_values_have_an_axis() -> None:
    panel = claims_panel("claims", [claim("Depth helps: B is better than A", 0.0, (0.0, 0.0), "supported")])
    assert panel is not None
    assert panel.ticks[0] <= 0.0 < panel.ticks[-1]


def test_sections_fold_and_the_list_of_contents_names_them() -> None:
    text, _ = page_of(report(rows=[*ROWS, row("A", "64", None, "x:A", table=5)], claims=CLAIMS))
    assert text.count("<details") == text.count("</details>") == text.count("<summary>")
    sections = [("open", "digits"), ("open", "Table 3"), ("open", "Table 4"), ("", "Table 5")]
    assert re.findall(r"<details ?(open)?><summary><h\d>(Table \d|\w+)", text) == sections
    links = re.findall(r'<a href="#(section-\d+)">(.*?)</a>', text)
    assert [name for _, name in links][:4] == ["digits", "Table 3", "Table 4", "Table 5"]
    assert all(text.count(f'id="{place}"') == 1 for place, _ in links)
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
