"""The evaluation of one net: posteriors for each method and Q, stored in its run directory."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.views import Ints
from vggrepro.evaluation.measure import NetAnswers
from vggrepro.evaluation.methods import METHODS, Settings, whole_views
from vggrepro.evaluation.posteriors import Posteriors
from vggrepro.evaluation.run_split import Computation, store_over_split
from vggrepro.models.precision import set_arithmetic
from vggrepro.models.vgg import VGG
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.ranks.watch import Watch


def evaluate(
    answers: NetAnswers,
    opened: Callable[[], tuple[VGG, Loader]],
    index: Index,
    watch: Watch,
    tests: Iterable[tuple[str, Iterable[int]]],
) -> None:
    """Computes and stores the posteriors that are missing, by each method at its Q, px; every rank calls it.

    `opened` makes the net and the loader that shows images as it expects them, where something is to be computed. An
    evaluation that was interrupted goes on where it was. All methods of one Q see the same decoded images. Raises
    UserError, and Interrupted.
    """
    missing = from_first_rank(answers.lacking(tests))
    if not missing:
        return
    testing, split = answers.testing, index.split("val")
    net, loader = opened()
    set_arithmetic(loader.device, testing.precision)
    settings = Settings(testing.flip, testing.batch)

    def predict(method: str, batch: Batch) -> NDArray[np.float32]:
        return METHODS[method](net, batch.images, settings).cpu().numpy()[:, None]

    def answer(_: Ints, values: NDArray[np.float32]) -> Posteriors:
        return Posteriors(values, split.label)

    for Q, keys in groupby(missing, lambda key: key.Q):
        methods = {key.method: key for key in keys}
        computations = [Computation(key, partial(predict, method), answer) for method, key in methods.items()]
        views = whole_views(split, Q, settings.batch // settings.views, net.architecture.crop)
        doing = f"{', '.join(methods)} at Q={Q}"
        store_over_split(computations, answers.run, loader, split, views, watch, testing.precision, doing)


def as_the_net_expects(loader: Loader, preprocessing: dict[str, object]) -> Loader:
    """The loader with the mean and the standard deviation that a net's weights were made for."""
    assert preprocessing["channels"] == "RGB", preprocessing
    assert preprocessing["range"] == [0, 255], preprocessing
    return replace(loader, mean=tuple(preprocessing["mean"]), std=tuple(preprocessing["std"]))  # type: ignore[arg-type]
