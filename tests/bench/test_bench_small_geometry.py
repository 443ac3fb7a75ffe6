"""`benchmarks/small_geometry.py`: the committed table is made of the committed evidence."""

import re

from test_bench_gpu_script import load
from tiny import REPOSITORY

small_geometry = load("small_geometry")
EVIDENCE = [
    REPOSITORY / "benchmarks" / "results" / name for name in ("2026-11-27-imagenette", "2026-11-30-small-geometry")
]


def test_the_documentations_table_is_of_the_evidence() -> None:
    page = (REPOSITORY / "docs" / "evaluation.md").read_text()
    made = re.search(r"<!-- made by benchmarks/small_geometry.py -->\n(.*?)\n<!-- /made -->", page, re.DOTALL)
    assert made
    points = small_geometry.points_of(EVIDENCE)
    assert made[1].splitlines() == small_geometry.table(points)
    assert {(len(point.net.blocks), point.net.crop) for point in points} == {(5, 96), (3, 56)}


def test_what_a_place_sees_decides() -> None:
    """Conclusions of the page: ahead below twice the crop, behind the centre crop from 2.9 times."""
    points = small_geometry.points_of(EVIDENCE)
    assert all(point.gain.effect > 0 for point in points if point.proportion < 2)
    assert all(point.gain.effect < 0 for point in points if point.proportion > 2.5)
    assert small_geometry.figure(points).startswith(b"\x89PNG")
