"""Effect of posteriors in half the bytes: ranks, guesses and errors of sets, means over Q, and nets fused.

    python benchmarks/half_posteriors.py RUN RUN... --out RESULT.json

The runs are of nets tested on the same images, at several Q. Each stored set is rounded as it would be stored, the
means are formed as always, and every image's rank of the true class, first guess and five guesses are compared with
those of the float32 set. Ways: IEEE's float16; bfloat16; and 65,536 steps of the logarithm down to 1e-14.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.bench.machine import name_of
from vggrepro.evaluation.posteriors import average
from vggrepro.evaluation.predictions import Predictions, StoredTest
from vggrepro.reporting.stored.find_runs import resolve

Values = NDArray[np.float32]
_SMALLEST = 1e-14
_TESTS = ("centre", "dense", "multicrop", "both")


def bfloat16(values: Values) -> Values:
    """Rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


def logarithm(values: Values) -> Values:
    """The nearest of 65,536 steps of the logarithm, 0.05 % apart; below the smallest it is 0."""
    step = -math.log(_SMALLEST) / 65534
    code = np.rint(-np.log(np.maximum(values, _SMALLEST * 0.99)) / step)
    return np.where(code > 65534, 0, np.exp(-step * code)).astype(np.float32)


WAYS: dict[str, Callable[[Values], Values]] = {
    "float16": lambda values: values.astype(np.float16).astype(np.float32),
    "bfloat16": bfloat16,
    "logarithm": logarithm,
}


def mean(tests: Sequence[StoredTest], rounded: Callable[[Values], Values]) -> Values:
    """The mean of rounded sets, as `StoredTest.blocks` forms it."""
    nets = []
    for test in tests:
        sets = [[rounded(np.load(key.file(test.run))["values"]) for key in over_Q] for over_Q in test.sets]
        nets.append(average([average(over_Q) for over_Q in sets]))
    return average(nets)


def compared(name: str, tests: Sequence[StoredTest]) -> Iterator[dict[str, Any]]:
    """A record for each way."""
    labels = tests[0].labels()
    exact = mean(tests, lambda values: values)
    before = Predictions.of(exact, labels)
    fifth = np.sort(exact, axis=1)[:, -5]
    for way, rounded in WAYS.items():
        now = Predictions.of(mean(tests, rounded), labels)
        yield {
            "test": name,
            "way": way,
            "n": len(labels),
            "other_rank": int((now.rank != before.rank).sum()),
            "other_rank_up_to_5": int(((now.rank != before.rank) & (np.minimum(now.rank, before.rank) < 5)).sum()),
            "other_first_guess": int((now.guess != before.guess).sum()),
            "other_five_guesses": int((now.guesses != before.guesses).any(axis=1).sum()),
            "top1_wrong": [before.top1.wrong, now.top1.wrong],
            "top5_wrong": [before.top5.wrong, now.top5.wrong],
            "fifth_below_6e-5": int((fifth < 6e-5).sum()),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories of nets tested on the same images")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = resolve(options.runs, [])
    records = []
    for method in _TESTS:
        for table, what in ((3, "one Q"), (4, "several Q")):
            found = {run.name: test for run in runs if (test := run.test(run.Q_of(table), method))}
            for name, test in found.items():
                records += compared(f"{name}: {method}, {what}", [test])
            if len(found) > 1:
                records += compared(f"{' + '.join(found)}: {method}, {what}", list(found.values()))
    made = {"command": shlex.join(["python", *sys.argv]), "device": name_of(torch.device("cpu")), "records": records}
    options.out.write_text(json.dumps(made, indent=1) + "\n")
    for record in records:
        print(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
