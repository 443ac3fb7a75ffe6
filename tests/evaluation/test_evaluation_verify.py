"""The authors' nets against the paper: rows, verdicts, readings."""

import numpy as np
import pytest

from vggrepro.evaluation.measure import Scored, fuse
from vggrepro.evaluation.verify import METHODS, READINGS, rows_of, verify
from vggrepro.paper import facts
from vggrepro.reporting.documents.authors_nets import blocks_of
from vggrepro.reporting.documents.blocks import to_markdown

N = 50_000
LABELS = np.arange(N) % 10


def with_errors(top1: float, top5: float, method: str, Q: tuple[int, ...], seed: int) -> Scored:
    """Returns posteriors of 10 classes with exactly these errors, per cent."""
    random = np.random.default_rng(seed)
    values = random.random((N, 10)).astype(np.float32)
    rank = np.zeros(N, int)
    order = random.permutation(N)
    rank[order[: round(N * top1 / 100)]] = 3
    rank[order[: round(N * top5 / 100)]] = 7
    values.sort(axis=1)
    values = values[:, ::-1].copy()  # class c has rank c
    rows = np.arange(N)
    true_scores, ranked_scores = values[rows, LABELS].copy(), values[rows, rank].copy()
    values[rows, LABELS], values[rows, rank] = ranked_scores, true_scores
    return Scored(method, Q, values, LABELS)


def printed(net: str, method: str, Q: tuple[int, ...]) -> tuple[float, float]:
    for row in rows_of({"D": None, "E": None}):  # type: ignore[dict-item]
        if row.nets == (net,) and row.method == method and row.Q == Q:
            return row.top1, row.top5
    raise KeyError(net, method, Q)


def authors(net: str, method: str, Q: tuple[int, ...]) -> Scored:
    """Results of a faithful evaluation; the wrong readings are off by a point."""
    reading = "dense" if method in READINGS or method == "centre" else method
    top1, top5 = printed(net, reading, (384,) if method == "centre" else Q)
    worse = {"dense": 0.02, "multicrop": 0.0, "both": 0.0}.get(method, 1.0)
    return with_errors(top1 + worse, top5 + worse / 2, method, Q, seed=ord(net) + len(method) + sum(Q))


NETS = {net: (lambda method, Q, net=net: authors(net, method, Q)) for net in ("D", "E")}


def test_the_rows_are_the_papers() -> None:
    rows = rows_of(NETS)
    assert [(row.table, "+".join(row.nets), row.method) for row in rows] == [
        (3, "D", "dense"),
        (3, "E", "dense"),
        (4, "D", "dense"),
        (4, "E", "dense"),
        *((5, net, method) for net in "DE" for method in ("dense", "multicrop", "both")),
        *((6, "D+E", method) for method in ("dense", "multicrop", "both")),
    ]
    assert {row.S for row in rows} == {(256, 512)}
    assert len(rows_of({"D": NETS["D"]})) == 5
    assert all(row in facts().table(row.table) for row in rows)


def test_a_faithful_evaluator_agrees() -> None:
    found = verify(NETS)
    assert found["n"] == N
    alone = [row for row in found["rows"] if "+" not in row["net"]]
    assert {row["verdict_top1"] for row in alone} == {"equal"}
    assert {row["verdict_top5"] for row in alone} == {"equal"}
    first = alone[0]
    assert (first["table"], first["net"], first["Q"], first["printed_top1"]) == (3, "D", [384], 25.6)
    assert first["measured_top1"] == pytest.approx(25.62, abs=0.01)
    assert first["difference_top1"] == pytest.approx(0.02, abs=0.01)


def test_fusion_is_the_mean_of_the_nets() -> None:
    row = next(row for row in verify(NETS)["rows"] if row["net"] == "D + E" and row["method"] == "both")
    expected = fuse([NETS[net]("both", (256, 384, 512)) for net in ("D", "E")]).measured
    assert row["measured_top1"] == expected.top1.percent
    assert row["measured_top5"] == expected.top5.percent


def test_the_nearest_reading_is_found() -> None:
    readings = verify(NETS)["readings"]
    assert readings[0]["reading"] == "dense"
    assert readings[0]["mean_difference"] < 0.05
    assert readings[1]["mean_difference"] > 0.5
    assert {row["verdict_top1"] for row in readings[1]["rows"]} == {"higher"}


def test_the_output_has_all_results() -> None:
    text = to_markdown(blocks_of({"weights": {"D": "Caffe model"}} | verify(NETS)))
    assert "\nD: Caffe model\n" in text
    assert "| 3 | D | 384 | dense | 25.6 | 25.62 | +0.02 | equal | 8.1 | 8.11 | +0.01 | equal |" in text
    assert text.count("\n| ") == 13 + 2 + 3 + 2 + 2 + 2, "each table with its head and its rule"
    assert all(reading in text for reading in READINGS)
    assert set(METHODS) == {"centre", "multicrop", *READINGS}
    assert "these are of" not in text
