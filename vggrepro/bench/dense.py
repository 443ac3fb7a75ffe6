"""Dense evaluation beside one image at a time, and beside the usual centre crop."""

from typing import Any

import numpy as np

from vggrepro.bench.nets import Output, bench_of
from vggrepro.config.settings import Config
from vggrepro.evaluation.methods import dense
from vggrepro.models.dense import class_scores
from vggrepro.paper import value

_POSTERIORS = Output(
    ours=dense,
    usual=lambda net, images: class_scores(net, images).float().softmax(dim=1),
    of_crops=lambda net, crops: net(crops).float().softmax(dim=1),
    over_Q=lambda at_scales: np.mean(at_scales, axis=0),
)


def run(config: Config, Q: tuple[int, ...], images: int, rounds: int) -> dict[str, Any]:
    """Times three implementations of evaluation in turn, `rounds` times, with the same net and images.

    ours: dense at every Q with flips, as `vggrepro evaluate` does it; usual: the same, but one image at a time,
    decoded and resampled by PIL, in torch's default memory format; centre_crop: torchvision's Resize and CenterCrop at
    the smallest Q, in full batches. Returns the fields of every benchmark, with rates in images/s. Raises UserError.
    """
    found = bench_of(config, images).compare("dense", _POSTERIORS, Q, rounds)
    minutes = value("val_images") / found["ours"] / 60
    found["details"] |= {"minutes_for_the_papers_validation_set": minutes, "Q": list(Q)}
    return found
