"""Run directories with fabricated posteriors, so that every error rate is known beforehand."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggrepro.config.settings import Config, Data, Evaluation, Model, Run
from vggrepro.evaluation.posteriors import Posteriors, Protocol
from vggrepro.storage.directory import RunDirectory

CLASSES = 10
IMAGES = 2000


def labels(images: int = IMAGES) -> NDArray[np.int64]:
    return np.arange(images, dtype=np.int64) % CLASSES


def posteriors_with(wrong1: int, wrong5: int, first: int = 0, images: int = IMAGES) -> NDArray[np.float32]:
    """(images, classes): from image `first` on, `wrong1` wrong first guesses, the first `wrong5` of them by far.

    The true class of the others of `wrong1` is guessed second.
    """
    values = np.full((images, CLASSES), 0.01, np.float32)
    own = labels(images)
    rows = np.arange(images)
    values[rows, own] = 0.9
    for place in range(first, first + wrong1):
        row = place % images
        values[row] = 0.1
        values[row, (own[row] + 1) % CLASSES] = 0.5
        values[row, own[row]] = 0.2 if place >= first + wrong5 else 0.0
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
    flip: bool = True,
) -> RunDirectory:
    """A run whose final net has these posteriors, by (method, Q)."""
    config = Config(
        model=Model(net=net, layers=layers, classes=CLASSES),
        data=Data(S=S),
        evaluation=Evaluation(flip=flip),
        run=Run(name=name, experiment=experiment, root=root, seed=seed),
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
        (run.checkpoints / "final.pt").touch()
        run.write_json("final.json", {"weights": weights, "step": config.train.iterations})
    for (method, Q), values in (posteriors or {}).items():
        own_flip = flip and method != "centre"
        Posteriors(Protocol(weights, fingerprint, method, Q, own_flip), values, labels(images)).save(run.posteriors)
    return run


def dense(*sides: int, wrong1: int, wrong5: int, first: int = 0) -> dict[tuple[str, int], NDArray[np.float32]]:
    """The same answers at each Q, so that their average has them too."""
    return {("dense", Q): posteriors_with(wrong1, wrong5, first) for Q in sides}
