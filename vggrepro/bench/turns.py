"""Interleaved timing of implementations, common to all benchmarks beside the usual way."""

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
    """Measures rates by each clock: a turn is `calls` calls of an implementation, each of `amount` units.

    `prepare(way)` runs before each turn, untimed.
    """
    rates: list[Rates] = [{name: [] for name in ways} for _ in clocks]
    for number in range(rounds):
        order = list(ways.items())
        for name, way in order if number % 2 else reversed(order):  # alternates the order
            prepare(name)
            started = [clock() for clock in clocks]
            for _ in range(calls):
                way()
            for by_clock, clock, start in zip(rates, clocks, started, strict=True):
                by_clock[name].append(calls * amount / (clock() - start))
    return rates


def ratios(ours: list[float], usual: list[float]) -> list[float]:
    """Returns the ratio of ours to the usual way per round."""
    return [a / b for a, b in zip(ours, usual, strict=True)]


def result(
    name: str, ours: list[float], usual: list[float], unit: str, details: dict[str, Any], ceiling: float | None = None
) -> dict[str, Any]:
    """Returns the fields of every benchmark from rates per round: medians, and the median of the rounds' ratios."""
    return {
        "name": name,
        "ours": statistics.median(ours),
        "usual": statistics.median(usual),
        "ratio": statistics.median(ratios(ours, usual)),
        "unit": unit,
        "ceiling": ceiling,
        "details": details,
    }
