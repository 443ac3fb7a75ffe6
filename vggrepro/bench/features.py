"""Features of images (Appendix B) beside the usual way: image by image, and beside one centre crop of each."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.bench.turns import Bench, bench_of
from vggrepro.config.settings import Config
from vggrepro.data.views import rescaled_size
from vggrepro.evaluation.features import descriptors
from vggrepro.evaluation.methods import Settings, features, whole_views
from vggrepro.models.dense import feature_map


def run(config: Config, Q: tuple[int, ...], images: int, rounds: int) -> dict[str, Any]:
    """Times three ways of taking features of the same validation images with the same net, in turn, `rounds` times.

    ours: dense at every Q with mirror images, in batches of one shape, as `vggrepro features` does it; usual: the same,
    but one image at a time, decoded by PIL and resized by torchvision, in torch's default memory format; centre_crop:
    torchvision's Resize and CenterCrop at the smallest Q in full batches, not mirrored. What is compared,
    `largest_difference`, are descriptors of length 1, stacked over Q. Returns the keys of every benchmark, with rates
    in images/s. Raises UserError.
    """
    bench = bench_of(config, images)
    ways = {
        "ours": lambda: _ours(bench, Q),
        "usual": lambda: _one_by_one(bench, Q),
        "centre_crop": lambda: _centre_crop(bench, min(Q)),
    }
    found = bench.in_turn("features", ways, rounds, bench.flop_per_image(Q, skipped=("fc8",)))
    found["details"] |= {"layer": bench.net.architecture.feature_layer, "Q": list(Q)}
    return found


def _ours(bench: Bench, Q: tuple[int, ...]) -> NDArray[np.float32]:
    testing, net, split = bench.config.evaluation, bench.net, bench.split
    settings = Settings(flip=testing.flip, batch=testing.batch)
    at_scales = []
    for side in Q:
        views = whole_views(split, side, settings.batch // settings.views, net.architecture.crop)
        shown = [(one.views.image, features(net, one.images, settings)) for one in bench.loader.batches(split, views)]
        values = np.empty((len(split), shown[0][1].shape[1]), np.float32)
        for rows, found in shown:
            values[rows] = found.cpu().numpy()
        at_scales.append(values)
    return descriptors(at_scales, "stack")


def _one_by_one(bench: Bench, Q: tuple[int, ...]) -> NDArray[np.float32]:
    from torchvision.transforms import v2

    mean, split, to_tensor = bench.mean(), bench.split, v2.PILToTensor()
    at_scales = []
    for side in Q:
        rows = []
        for row in range(len(split)):
            # given both sides, as torchvision rounds the longer one down and ours rounds it to the nearest px
            resize = v2.Resize(rescaled_size(split.size[row : row + 1], side)[0].tolist())
            image = (to_tensor(resize(bench.image(row))).float() - mean)[None].to(bench.device)
            views = [image, image.flip(3)] if bench.config.evaluation.flip else [image]
            found = torch.cat([feature_map(bench.plain, view).float().mean(dim=(2, 3)) for view in views])
            rows.append(found.mean(dim=0).cpu().numpy())
        at_scales.append(np.stack(rows))
    return descriptors(at_scales, "stack")


def _centre_crop(bench: Bench, Q: int) -> NDArray[np.float32]:
    rows = [feature_map(bench.plain, crops).float().mean(dim=(2, 3)).cpu().numpy() for crops in bench.centre_crops(Q)]
    return descriptors([np.concatenate(rows)], "stack")
