"""What the paper claims in Appendix B, as paired comparisons of stored tests. No torch.

The effect is the rise of the figure that a claim asserts, in points of mean average precision or of mean class recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vggrepro.evaluation.feature_spec import task_of
from vggrepro.evaluation.recognition import compare
from vggrepro.paper import facts, value
from vggrepro.reporting.claims import MARGIN, Claim, Kind, judge
from vggrepro.reporting.runs import StoredRun, chosen_by, departures_of
from vggrepro.reporting.stored_transfers import StoredTransfer

TRANSFER = "transfer"  # the group of these claims, which are of other images than those that nets were trained on
_D, _E, _BOTH = ("D",), ("E",), ("D", "E")


@dataclass(frozen=True)
class _Side:
    """One protocol that a claim speaks of."""

    nets: tuple[str, ...]
    how: str
    fits: Callable[[StoredTransfer], bool]

    def __str__(self) -> str:
        return f"{' + '.join(self.nets)}: {self.how}"


@dataclass(frozen=True)
class _Statement:
    text: str
    better: _Side
    worse: _Side
    kind: Kind = "better"


def _statements(name: str) -> Iterator[_Statement]:
    """What is claimed of a data set; of a folder of classes that the paper does not know, what it says of Caltech."""
    task = task_of(name)
    several, combine = len(task.scales), task.combine
    boxes = task.table == 12

    def side(nets: tuple[str, ...], how: str, *, scales: int = several, by: str = combine, box: bool = boxes) -> _Side:
        def fits(one: StoredTransfer) -> bool:
            asked = one.found.protocol
            return one.nets == nets and (len(asked.nets[0].Q), asked.combine, asked.boxes) == (scales, by, box)

        return _Side(nets, f"{how} on {name}", fits)

    main = f"{several} Q, {combine}"
    if boxes:
        yield _Statement(
            f"{name}: the person's box beside the image is better than the image alone, D and E stacked",
            side(_BOTH, "image and box"),
            side(_BOTH, "image", box=False),
        )
        return
    yield _Statement(
        f"{name}: D and E are about as good, within {MARGIN} points", side(_E, main), side(_D, main), "about as good"
    )
    for net in (_D, _E):
        yield _Statement(f"{name}: D and E stacked are better than {net[0]}", side(_BOTH, main), side(net, main))
    for net in (_D, _E):
        if combine == "average":
            yield _Statement(
                f"{name}: five scales are better than three, {net[0]}", side(net, main), side(net, "3 Q", scales=3)
            )
            yield _Statement(
                f"{name}: averaging over scales is about as good as stacking, {net[0]}",
                side(net, main),
                side(net, f"{several} Q, stack", by="stack"),
                "about as good",
            )
        else:
            yield _Statement(
                f"{name}: stacking over scales is better than averaging, {net[0]}",
                side(net, main),
                side(net, f"{several} Q, average", by="average"),
            )


def check_transfer_claims(tests: Sequence[StoredTransfer]) -> list[Claim]:
    """Every claim of Appendix B, tested where the runs allow it. Raises UserError."""
    own = dict.fromkeys(one.set for one in tests if one.set not in facts().transfer)
    claims = []
    for name in (*facts().transfer, *own):
        of_set = [one for one in tests if one.set == name]
        for experiment in dict.fromkeys(one.runs[0].config.run.experiment for one in of_set) or [""]:
            some = _of_one_recipe([one for one in of_set if one.runs[0].config.run.experiment == experiment])
            claims += [_check(statement, some) for statement in _statements(name)]
    return claims


def _of_one_recipe(tests: Sequence[StoredTransfer]) -> list[StoredTransfer]:
    """The tests of one recipe of each net: with scale jitter where there is one, with the fewest departures."""
    runs = {run.name: run for one in tests for run in one.runs}
    recipes = chosen_by(lambda run: (run.net, run.S), runs.values())
    chosen: dict[str, list[StoredRun]] = {}
    for (net, S), same in recipes.items():
        if net not in chosen or S == value("jitter"):
            chosen[net] = same
    names = {run.name for same in chosen.values() for run in same}
    return [one for one in tests if all(run.name in names for run in one.runs)]


def _check(statement: _Statement, tests: Sequence[StoredTransfer]) -> Claim:
    pairs: dict[tuple[int, ...], tuple[StoredTransfer, StoredTransfer]] = {}
    for better in filter(statement.better.fits, tests):
        for worse in filter(statement.worse.fits, tests):
            if better.samples == worse.samples and _seed(better) == _seed(worse):
                pairs.setdefault(_seed(better), (better, worse))
    named: dict[str, Any] = {
        "group": TRANSFER,
        "section": "B",
        "claim": statement.text,
        "better": str(statement.better),
        "worse": str(statement.worse),
    }
    if not pairs:
        lacking = [str(side) for side in (statement.better, statement.worse) if not any(map(side.fits, tests))]
        note = f"nothing stored of {'; '.join(lacking)}" if lacking else "both sides are of other samples or seeds"
        return Claim(verdict="not measured", note=note, **named)
    compared = [compare(worse.found.result, better.found.result) for better, worse in pairs.values()]
    for number, key in enumerate(("better", "worse")):
        told = ", ".join(" + ".join(run.name for run in pair[number].runs) for pair in pairs.values())
        named[key] = f"{told}: {getattr(statement, key).how}"
    runs = [run for pair in pairs.values() for one in pair for run in one.runs]
    return Claim(**judge(statement.kind, compared), departures=departures_of(runs), **named)


def _seed(one: StoredTransfer) -> tuple[int, ...]:
    return tuple(sorted({run.config.run.seed for run in one.runs}))
