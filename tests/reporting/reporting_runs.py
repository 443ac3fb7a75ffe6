"""Run directories with fabricated posteriors and boxes, so that every error rate is known beforehand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import Config, Data, Evaluation, Localisation, Model, Precision, Run
from vggrepro.data.boxes.box_set import Boxes
from vggrepro.evaluation.box_store import CENTRE, DENSE, FoundKey, PlacesKey, save_truth
from vggrepro.evaluation.boxes import Found, Truth
from vggrepro.evaluation.posteriors import Posteriors, PosteriorsKey
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Measurement, Report, Row
from vggrepro.storage.directory import RunDirectory

CLASSES = 10
IMAGES = 2000


def labels(images: int = IMAGES) -> NDArray[np.int64]:
    return np.arange(images, dtype=np.int64) % CLASSES


def posteriors_with(wrong1: int, wrong5: int, first: int = 0, images: int = IMAGES) -> NDArray[np.float32]:
    """Returns posteriors with `wrong1` top-1 errors from image `first` on, of which `wrong5` are top-5 errors.

    The shape is (images, classes); the other `wrong1` images have the true class as second guess.
    """
    values = np.full((images, CLASSES), 0.01, np.float32)
    classes_of_images = labels(images)
    rows = np.arange(images)
    values[rows, classes_of_images] = 0.9
    for place in range(first, first + wrong1):
        row = place % images
        values[row] = 0.1
        values[row, (classes_of_images[row] + 1) % CLASSES] = 0.5
        values[row, classes_of_images[row]] = 0.2 if place >= first + wrong5 else 0.0
    return values / values.sum(axis=1, keepdims=True)


def make_run(
    root: Path,
    net: str,
    S: int | tuple[int, int] = 256,
    *,
    name: str = "",
    experiment: str = "paper",
    seed: int = 0,
    posteriors: dict[tuple[str, int], NDArray[np.float32]] | None = None,
    fingerprint: str = "f" * 64,
    images: int = IMAGES,
    finished: bool = True,
    departures: list[dict[str, Any]] | None = None,
    layers: tuple[tuple[str, ...], ...] | None = None,
    geometry: dict[str, Any] | None = None,
    flip: bool = True,
    parent: str | None = None,
) -> RunDirectory:
    """Makes a run whose final net has these posteriors, by (method, Q)."""
    config = Config(
        model=Model(net=net, layers=layers, classes=CLASSES, **geometry or {}),
        data=Data(S=S),
        evaluation=Evaluation(flip=flip),
        run=Run(name=name, experiment=experiment, root=root, seed=seed, parent=parent),
    )
    run = RunDirectory(config.directory)
    run.write_text("config.yaml", config.to_yaml())
    splits = {"train": 9, "val": images}
    described = {"source": "images", "fingerprint": fingerprint, "splits": splits, "classes": CLASSES}
    run.write_json("dataset.json", described)
    run.write_json("ledger.json", departures or [])
    run.append({"kind": "train", "step": 100, "loss": 2.0, "learning_rate": 0.01})
    weights = f"{config.name}-{experiment}".encode().hex().ljust(64, "0")
    if finished:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.checkpoints / "final.pt").touch()
        run.write_json("final.json", {"weights": weights, "step": config.train.iterations})
    for (method, Q), values in (posteriors or {}).items():
        mirrored = flip and method != "centre"
        PosteriorsKey(weights, fingerprint, method, Q, mirrored).save(run, Posteriors(values, labels(images)))
    return run


def dense(*sides: int, wrong1: int, wrong5: int, first: int = 0) -> dict[tuple[str, int], NDArray[np.float32]]:
    """Returns the same posteriors at each Q, and so for their average."""
    return {("dense", Q): posteriors_with(wrong1, wrong5, first) for Q in sides}


COARSE, FINE, BOTH = (256,), (384,), (352, 384)
"""Q of Table 9, px."""
LARGE = 500
"""Number of images whose object nearly fills them, so that the full image is a correct box."""
OBJECT, FILLING, NOWHERE = (10, 10, 50, 50), (0, 0, 90, 90), (60, 60, 95, 95)


def box_run(
    root: Path,
    S: int = 384,
    regression: Literal["SCR", "PCR"] = "PCR",
    fine_tune: Literal["all", "fc"] = "all",
    *,
    net: str = "D",
    name: str = "",
    experiment: str = "paper",
    seed: int = 0,
    fingerprint: str = "f" * 64,
    boxes: str = "b" * 64,
    images: int = IMAGES,
    merge_below: float = 0.5,
    precision: Precision = "fp32",
    single_Q: tuple[int, ...] = (),
    multi_Q: tuple[int, ...] = (),
    crop: int = 224,
    finished: bool = True,
    departures: list[dict[str, Any]] | None = None,
) -> StoredRun:
    """Makes a run of a localisation net without stored boxes; its parent does not exist."""
    config = Config(
        model=Model(net=net, classes=CLASSES, crop=crop),
        data=Data(S=S),
        localisation=Localisation(regression=regression, fine_tune=fine_tune, merge_below=merge_below),
        evaluation=Evaluation(single_Q=single_Q, multi_Q=multi_Q, precision=precision),
        run=Run(
            name=name or f"{S}-{regression}-{fine_tune}-{seed}",
            experiment=experiment,
            root=root,
            seed=seed,
            parent=f"of-classes-{S}",
        ),
    )
    run = RunDirectory(config.directory)
    run.write_text("config.yaml", config.to_yaml())
    described = {"source": "images", "fingerprint": fingerprint, "splits": {"train": 9, "val": images}}
    run.write_json("dataset.json", described | {"classes": CLASSES, "boxes": {"fingerprint": boxes}})
    run.write_json("ledger.json", departures or [])
    run.append({"kind": "train", "step": 100, "loss": 2.0, "learning_rate": 0.01})
    if finished:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.checkpoints / "final.pt").touch()
        weights = f"{config.name}-{experiment}".encode().hex().ljust(64, "0")
        run.write_json("final.json", {"weights": weights, "step": config.train.iterations})
    return StoredRun(run.path, config)


def truth(images: int = IMAGES) -> Truth:
    """Returns an object in each image of 100 x 100 px, which is large in the first `LARGE` images."""
    box = np.array([FILLING] * LARGE + [OBJECT] * (images - LARGE), np.float64)
    return Truth(labels(images), np.full((images, 2), 100), Boxes(np.arange(images + 1), box))


def find_centre(run: StoredRun, wrong: int, first: int = 0, Q: int | None = None, **other: Any) -> Path:
    """Stores the boxes of a net's centre crops: wrong in `wrong` images from `first` on. Returns the file."""
    protocol = FoundKey((_part(run, CENTRE, Q or run.config.single_Q[0], "", **other),))
    return _store(protocol, Found(_boxes(wrong, first)[:, None], labels()[:, None]), run)


def find_dense(
    tests: Sequence[tuple[StoredRun, tuple[int, ...]]],
    wrong: int,
    first: int = 0,
    *,
    lost: int = 0,
    guesses: str = "parent",
    merge_below: float | None = None,
    **other: Any,
) -> Path:
    """Stores boxes of some nets at their Q in the first net's run. Returns the file.

    In `wrong` images from `first` on the true class's box is wrong; in the last `lost` ones no guess is of that class.
    """
    run, _ = tests[0]
    assert run.config.localisation
    below = run.config.localisation.merge_below if merge_below is None else merge_below
    key = guesses.encode().hex()
    parts = tuple(_part(net, DENSE, side, key, **other) for net, Q in tests for side in Q)
    classes_of_images = labels()
    classes = np.stack([(classes_of_images + step) % CLASSES for step in (1, 2, 0, 3, 4, 0)], axis=1)  # guessed third
    classes[IMAGES - lost :, 2] = (classes_of_images[IMAGES - lost :] + 5) % CLASSES
    boxes = np.full((IMAGES, 6, 4), FILLING, np.float32)  # of wrong classes, right in some images, which helps nobody
    boxes[:, 2] = boxes[:, 5] = _boxes(wrong, first)
    note = {"guesses": guesses, "top5": 100 * lost / IMAGES}
    return _store(FoundKey(parts, below), Found(boxes, classes), run, **note)


def _part(run: StoredRun, method: str, Q: int, guesses: str, **other: Any) -> PlacesKey:
    note = {
        "weights": run.weights,
        "data": run.dataset["fingerprint"],
        "boxes": run.boxes_fingerprint,
        "precision": run.config.evaluation.precision,
    }
    return PlacesKey(method=method, Q=Q, guesses=guesses, **note | other)


def _boxes(wrong: int, first: int) -> NDArray[np.float32]:
    """Returns boxes of the true class, shape (images, 4)."""
    boxes = truth().boxes.box.astype(np.float32)
    boxes[np.arange(first, first + wrong) % IMAGES] = NOWHERE
    return boxes


def _store(protocol: FoundKey, found: Found, run: StoredRun, **note: Any) -> Path:
    protocol.save(run.run_directory, found, **note)
    save_truth(truth(), run.run_directory, protocol.parts[0].data, protocol.parts[0].boxes)
    return protocol.file(run.run_directory)


def three_seeds(root: Path) -> list[StoredRun]:
    """Makes pairs of nets of three seeds with pooled errors of 27, 28 and 30 %."""
    runs = []
    for seed, wrong in enumerate((540, 560, 600)):
        coarse, fine = box_run(root, 256, seed=seed), box_run(root, seed=seed)
        find_centre(fine, wrong + 100)
        find_dense([(fine, FINE)], wrong + 20)
        find_dense([(coarse, COARSE), (fine, BOTH)], wrong)
        runs += [coarse, fine]
    return runs


def report_of(root: Path) -> Report:
    """Builds the report of all runs in a folder."""
    return build_report(find_runs([root]))


BOX_TABLES, SCORE_TABLES = (8, 9, 10), (11, 12)


def of_tables(report: Report, tables: Sequence[int]) -> list[Row]:
    """Returns the rows of some tables."""
    return [row for row in report.rows if row.table in tables]


def value_of(row: Row, key: str) -> object:
    """Returns a label of a row, or a part of its main figure."""
    return getattr(row.main if key in Measurement.model_fields else row, key)


def rows_of(root: Path, table: int, **wanted: object) -> list[Row]:
    """Returns rows of Tables 8-10 with these values."""
    found = report_of(root).rows
    return [row for row in found if row.table == table and all(value_of(row, k) == v for k, v in wanted.items())]
