"""Feature extraction (Appendix B) beside one image at a time, and beside one centre crop per image."""

from typing import Any

import torch

from vggrepro.bench.nets import Output, bench_of
from vggrepro.config.settings import Config
from vggrepro.evaluation.features import descriptors
from vggrepro.evaluation.methods import features
from vggrepro.models.dense import feature_map
from vggrepro.models.vgg import VGG


def _averaged(net: VGG, images: torch.Tensor) -> torch.Tensor:
    return feature_map(net, images).float().mean(dim=(2, 3))


_FEATURES = Output(features, _averaged, _averaged, lambda at_scales: descriptors(at_scales, "stack"), skipped=("fc8",))


def run(config: Config, Q: tuple[int, ...], images: int, rounds: int) -> dict[str, Any]:
    """Times three implementations of feature extraction in turn, `rounds` times, with the same net and images.

    ours: dense at every Q with mirror images, in batches of one shape, as `vggrepro features` does it; usual: the same,
    but one image at a time, decoded and resampled by PIL, in torch's default memory format; centre_crop: torchvision's
    Resize and CenterCrop at the smallest Q in full batches, not mirrored. `largest_difference` compares
    descriptors of length 1, stacked over Q. Returns the fields of every benchmark, with rates in images/s. Raises
    UserError.
    """
    bench = bench_of(config, images)
    found = bench.compare("features", _FEATURES, Q, rounds)
    found["details"] |= {"layer": bench.net.architecture.feature_layer, "Q": list(Q)}
    return found
