"""Gain of the dense test over the centre crop against a net's receptive field (Sections 3.2 and 4.1).

A net is trained on crops with zeros around them; in the dense test the image goes on there, which is more context, and
also input that training never had. How much of it there is, the proportion of a place's field of view to the crop says.
The points are the nets of kept evidence (`vggrepro tables --keep`) of several geometries; nothing is trained.

    python benchmarks/small_geometry.py [--figure PNG] EVIDENCE ...

prints a table in Markdown.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vggrepro.models.table1 import Architecture, architecture_of
from vggrepro.paper import Scale, scale_text
from vggrepro.reporting.claims.claim import Claim
from vggrepro.reporting.claims.class_claims import dense_over_centre
from vggrepro.reporting.documents.figures import lines
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.stored.predictions import PredictionCache
from vggrepro.reporting.stored.runs import chosen_by, recipe_of

TITLES = ("net", "crop", "poolings", "a place sees", "of the crop", "the paper's S", "gain", "interval", "seeds")


@dataclass(frozen=True)
class Point:
    """A net at a training scale: what its dense test at Q = S gains, in points of top-1 error."""

    net: Architecture
    S: Scale
    """The paper's that it stands for."""
    gain: Claim

    @property
    def proportion(self) -> float:
        """Returns the receptive field of a position, divided by the crop."""
        return self.net.field_of_view / self.net.crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    points = points_of(arguments.evidence)
    print("\n".join(table(points)))
    if arguments.figure:
        arguments.figure.write_bytes(figure(points))


def points_of(folders: Sequence[Path]) -> list[Point]:
    """Every net of the folders that was tested both ways, by what it sees."""
    points = [point for folder in folders for point in _points_of(folder)]
    return sorted(points, key=lambda point: (point.proportion, point.net.name, scale_text(point.S)))


def _points_of(folder: Path) -> Iterator[Point]:
    cache = PredictionCache()
    for recipe, runs in chosen_by(recipe_of, find_runs([folder])).items():
        for gain in dense_over_centre("", {recipe: runs}, cache):
            yield Point(architecture_of(runs[0].config), runs[0].S, gain)


def table(points: Sequence[Point]) -> list[str]:
    """Lines of Markdown, a row per net and S."""
    rows = [f"| {' | '.join(TITLES)} |", "|---|" + "--:|" * (len(TITLES) - 1)]
    for point in points:
        net, gain = point.net, point.gain
        assert gain.effect is not None
        assert gain.interval is not None
        low, high = gain.interval
        cells = [net.name, net.crop, len(net.blocks), f"{net.field_of_view} px", f"{point.proportion:.2f}"]
        cells += [scale_text(point.S), f"{gain.effect:+.1f}", f"{low:+.1f} to {high:+.1f}", gain.seeds]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def figure(points: Sequence[Point]) -> bytes:
    """PNG: a curve per S, over what one place sees."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for point in points:
        assert point.gain.effect is not None
        across, up = curves.setdefault(f"S = {scale_text(point.S)} of the paper", ([], []))
        across.append(point.proportion)
        up.append(point.gain.effect)
    title = "Dense test over the centre crop, Q = S"
    return lines({title: curves}, "what one place sees / crop", "points of top-1 error gained")


if __name__ == "__main__":
    main()
