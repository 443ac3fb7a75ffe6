"""How large a training crop has to be before the dense test of Section 3.2 can be trusted.

A net is trained on crops with zero padding around them. In the dense test the neighbouring pixels stand where those
zeros were: more context, as the paper says, but also inputs that training never had. The smaller the crop, the larger
the share of the last pooling map that the padding reaches. A and D from A are trained at several crops, everything else
equal, with S = crop + 32 px, so that the dense map has 2 x 2 places at Q = S; each is then tested at Q = crop, crop +
32 and crop + 64 on the centre crop and densely, and at Q = S on 50 crops, too. Many crops see as much of the image as
the dense test, but with the padding of training around each: dense minus multi-crop is the price of its absence.
Thirty epochs for each net, not as many as the recipe has: the effect is there long before a net is trained out.

    python benchmarks/padding.py --images FOLDER [--crops 64,96,128] [--set section.key=value]

FOLDER has train/<class>/* and val/<class>/* with ten classes. What is trained and tested already is taken from --runs.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from vggrepro.config.recipes import Graph, load_graph
from vggrepro.config.settings import Config
from vggrepro.evaluation.measure import Scored
from vggrepro.evaluation.significance import Paired, paired_right
from vggrepro.models.dense import receptive_field
from vggrepro.models.table1 import architecture_of
from vggrepro.pipeline.evaluate import evaluate_nets
from vggrepro.pipeline.graph import reproduce
from vggrepro.reporting.documents.figures import lines

RECIPE = Path(__file__).parents[1] / "configs" / "reduced" / "imagenette.yaml"
NETS = ("A", "D")
METHODS = ("centre", "dense", "multicrop")
STEPS = 3
"""Q values at which each net is tested, 32 px apart."""

LENGTH = [
    "train.iterations=4440",
    "train.validate_every=10",
    "train.schedule.kind=fixed",
    "train.schedule.drops_at=[2960,3950]",
]


@dataclass(frozen=True)
class Point:
    """One net at one Q: the posteriors by method; on 50 crops only at Q = S, for they cost 50 passes an image."""

    net: str
    config: Config
    Q: int
    by: dict[str, Scored]

    def against(self, method: str) -> Paired | None:
        """Dense held against another method, top-1."""
        if method not in self.by:
            return None
        return paired_right(self.by["dense"].ranks.right1, self.by[method].ranks.right1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--crops", default="64,96,128")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    arguments = parser.parse_args()
    places = [f"data.root={arguments.images}", f"run.root={arguments.runs}"]
    points = [
        point
        for crop in map(int, arguments.crops.split(","))
        for point in points_of(graph_at(crop, [*places, *arguments.changes]))
    ]
    print("\n".join(table(points)))
    if arguments.figure:
        arguments.figure.write_bytes(figure(points))


def graph_at(crop: int, changes: list[str]) -> Graph:
    """A, and D from A, at a crop."""
    S = crop + 32
    geometry = [f"model.crop={crop}", f"data.S={S}", f"evaluation.multi_Q=[{crop},{S}]"]
    whole = load_graph(RECIPE, [*LENGTH, *geometry, f"run.experiment=padding-crop{crop}", *changes])
    return replace(whole, stages={net: whole.stages[net] for net in NETS})


def points_of(graph: Graph) -> list[Point]:
    """Trains what is missing, and tests each net at every Q by every method."""
    reproduce(graph)
    points = []
    for net, config in graph.stages.items():
        scales = tuple(config.model.crop + 32 * step for step in range(STEPS))
        (tested,) = evaluate_nets([config.directory], ("centre", "dense"), scales) or []
        (crops,) = evaluate_nets([config.directory], ("multicrop",), config.single_Q) or []
        for Q in scales:
            by = {method: tested.scored(method, (Q,)) for method in ("centre", "dense")}
            if (Q,) == config.single_Q:
                by["multicrop"] = crops.scored("multicrop", (Q,))
            points.append(Point(net, config, Q, by))
    return points


def table(points: list[Point]) -> list[str]:
    """Markdown."""
    titles = ("crop", "net", "one place sees", "Q", "places", *METHODS, "dense - centre", "dense - multicrop")
    rows = [f"| {' | '.join(titles)} |", "|" + "--:|" * len(titles)]
    for point in points:
        net = architecture_of(point.config)
        low, high = receptive_field(net, 0, net.fc6_kernel - 1)
        errors = [f"{point.by[one].measured.top1.percent:.1f}" if one in point.by else "-" for one in METHODS]
        against = [_signed(point.against(method)) for method in ("centre", "multicrop")]
        places = round(point.config.dense_places(point.Q) ** 0.5)
        cells = [point.config.model.crop, point.net, f"{high - low + 1} px", point.Q, f"{places} x {places}"]
        rows.append(f"| {' | '.join(map(str, [*cells, *errors, *against]))} |")
    return rows


def _signed(test: Paired | None) -> str:
    if test is None:
        return "-"
    low, high = test.interval
    return f"{test.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def figure(points: list[Point]) -> bytes:
    """Dense minus the centre crop over Q / crop and, at Q = S, dense minus 50 crops over the crop."""
    over_Q: dict[str, tuple[list[float], list[float]]] = {}
    over_crop: dict[str, tuple[list[float], list[float]]] = {}
    for point in points:
        crop = point.config.model.crop
        if centre := point.against("centre"):
            _add(over_Q, f"{point.net}, crop {crop}", point.Q / crop, centre.difference)
        if crops := point.against("multicrop"):
            _add(over_crop, point.net, crop, crops.difference)
    panels = {"dense - centre crop, over Q / crop": over_Q, "dense - multi-crop at Q = S, over the crop": over_crop}
    return lines(panels, "", "points of top-1 error")


def _add(curves: dict[str, tuple[list[float], list[float]]], name: str, x: float, y: float) -> None:
    xs, ys = curves.setdefault(name, ([], []))
    xs.append(x)
    ys.append(y)


if __name__ == "__main__":
    main()
