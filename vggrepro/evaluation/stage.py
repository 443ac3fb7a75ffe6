"""Evaluation of a net: posteriors for each method and Q, stored in its run directory."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.views import Ints
from vggrepro.evaluation.measure import NetResults
from vggrepro.evaluation.methods import METHODS, images_at_once, uncropped_views
from vggrepro.evaluation.posteriors import Posteriors
from vggrepro.evaluation.run_split import Computation, SplitPass
from vggrepro.models.vgg import VGG
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.ranks.watch import Watch


def evaluate(
    results: NetResults,
    opened: Callable[[], tuple[VGG, Loader]],
    index: Index,
    watch: Watch,
    tests: Iterable[tuple[str, Iterable[int]]],
) -> None:
    """Computes and stores the missing posteriors of tests (method, Q in px); every rank calls it.

    `opened` returns the net and a loader with its preprocessing, and is called only if something is missing. An
    interrupted evaluation resumes. All methods at a Q see the same decoded images. Raises UserError and Interrupted.
    """
    missing = from_first_rank(results.lacking(tests))
    if not missing:
        return
    testing, split = results.testing, index.split("val")
    net, loader = opened()
    shown = SplitPass(split, loader, watch, testing.precision)

    def predict(method: str, batch: Batch) -> NDArray[np.float32]:
        return METHODS[method](net, batch.images, testing).cpu().numpy()[:, None]

    def to_value(_: Ints, values: NDArray[np.float32]) -> Posteriors:
        return Posteriors(values, split.label)

    for Q, keys in groupby(missing, lambda key: key.Q):
        methods = {key.method: key for key in keys}
        computations = [Computation(key, partial(predict, method), to_value) for method, key in methods.items()]
        views = uncropped_views(split, Q, images_at_once(testing), net.architecture.crop)
        shown.store(computations, results.run, views, f"{', '.join(methods)} at Q={Q}")


def as_the_net_expects(loader: Loader, preprocessing: dict[str, object]) -> Loader:
    """Returns the loader with the mean and standard deviation that a net's weights expect."""
    assert preprocessing["channels"] == "RGB", preprocessing
    assert preprocessing["range"] == [0, 255], preprocessing
    return replace(loader, mean=tuple(preprocessing["mean"]), std=tuple(preprocessing["std"]))  # type: ignore[arg-type]
