"""Ways to do the same, timed in turn: what all benchmarks that put ours beside the usual way have in common."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

Rates = dict[str, list[float]]
"""What each way does in a second, by round."""


def rates_in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int,
    amount: int,
    *clocks: Callable[[], float],
    prepare: Callable[[str], object] = lambda way: None,
) -> list[Rates]:
    """Rates by each of the clocks, in seconds: a turn is so many calls of a way, of that amount each.

    `prepare(way)` comes before each turn, and is not timed.
    """
    rates: list[Rates] = [{name: [] for name in ways} for _ in clocks]
    for number in range(rounds):
        order = list(ways.items())
        for name, way in order if number % 2 else reversed(order):  # nobody always comes after the same one
            prepare(name)
            started = [clock() for clock in clocks]
            for _ in range(calls):
                way()
            for by_clock, clock, start in zip(rates, clocks, started, strict=True):
                by_clock[name].append(calls * amount / (clock() - start))
    return rates


def ratios(ours: list[float], usual: list[float]) -> list[float]:
    """Ours to the usual, by round."""
    return [a / b for a, b in zip(ours, usual, strict=True)]


def result(
    name: str, ours: list[float], usual: list[float], unit: str, details: dict[str, Any], ceiling: float | None = None
) -> dict[str, Any]:
    """The keys of every benchmark, given rates by round: medians, and the median of the rounds' ratios."""
    return {
        "name": name,
        "ours": statistics.median(ours),
        "usual": statistics.median(usual),
        "ratio": statistics.median(ratios(ours, usual)),
        "unit": unit,
        "ceiling": ceiling,
        "details": details,
    }
