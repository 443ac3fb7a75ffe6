"""Threshold for merging boxes, and the cost of merging at the paper's size.

    python benchmarks/merging.py RUN [RUN ...]

RUN is the run directory of a finished net that predicts boxes. Its stored boxes of the true class at every place, at
all Q of its test, are merged at several values of `localisation.merge_below`; the error is that of the true class's
box, on the validation images. With merging left out (0) the surest place's box is the prediction.

The time is that of random boxes, in sets as large as those of ILSVRC: 36 + 25 places of a square image at Q = 384 and
352, or 60 + 45 of one with sides 3:4.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from vggrepro.bench.machine import conditions
from vggrepro.evaluation.box_store import DENSE, FoundKey, Places, load_truth, merge_places
from vggrepro.evaluation.boxes import error_of
from vggrepro.evaluation.merging import merge
from vggrepro.storage.directory import RunDirectory

VALUES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)
SETS = 1200  # of 50,000 images with six classes each


def sweep(run: Path) -> None:
    """Prints the error of the true class's box at each value."""
    stored = [key for key, _ in FoundKey.listed(RunDirectory(run)) if key.method == DENSE]
    alone = [key for key in stored if len({part.weights for part in key.parts}) == 1]
    several = max(alone, key=lambda key: len(key.parts))
    truth = load_truth(RunDirectory(run), several.parts[0].data, several.parts[0].boxes)
    sets = []
    for part in several.parts:
        places = part.load(RunDirectory(run))
        assert places is not None
        sets.append(Places(places.start, places.values[:, -1:], places.classes[:, -1:]))
    Q = ", ".join(str(part.Q) for part in several.parts)
    print(f"{run.name}, Q = {Q}, n = {len(truth.labels):,}: error of the true class's box, per cent")
    for below in VALUES:
        error = error_of(merge_places(sets, below).right_given_class(truth))
        low, high = error.interval
        print(f"| {below:g} | {error.percent:.1f} | {low:.1f} to {high:.1f} |")


def cost() -> None:
    """Prints the seconds that the merging of ILSVRC's validation images takes, from a share of them."""
    random = np.random.default_rng(0)
    for places in (61, 105):
        centres, half = random.normal(200, 25, (SETS, places, 2)), random.normal(80, 8, (SETS, places, 2))
        boxes = np.concatenate([centres - half, centres + half], axis=2)
        scores = random.random((SETS, places))
        started = time.perf_counter()
        merge(boxes, scores, below=0.5)
        seconds = time.perf_counter() - started
        full_size = seconds / SETS * 300_000
        print(f"{places} places: {1000 * seconds / SETS:.2f} ms a set, {full_size:,.0f} s for ILSVRC's 50,000 images")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    for folder in parser.parse_args().runs:
        sweep(folder)
    cost()
    print(conditions(torch.device("cpu")))
