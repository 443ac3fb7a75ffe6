"""Dense evaluation beside the usual way: image by image, and beside the centre crop that most people report."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vggrepro.bench.turns import Bench, bench_of
from vggrepro.config.settings import Config
from vggrepro.data.views import rescaled_size
from vggrepro.evaluation.methods import METHODS, Settings, whole_views
from vggrepro.models.dense import class_scores
from vggrepro.paper import value


def run(config: Config, Q: tuple[int, ...], images: int, rounds: int) -> dict[str, Any]:
    """Times three ways of evaluating the same validation images with the same net, in turn, `rounds` times.

    ours: dense at every Q with flips, as `vggrepro evaluate` does it; usual: the same, but one image at a time,
    decoded and resampled by PIL, in torch's default memory format; centre_crop: torchvision's Resize and CenterCrop at
    the smallest Q, in full batches. Returns the keys of every benchmark, with rates in images/s. Raises UserError.
    """
    bench = bench_of(config, images)
    ways = {
        "ours": lambda: _ours(bench, Q),
        "usual": lambda: _one_by_one(bench, Q),
        "centre_crop": lambda: _centre_crop(bench, min(Q)),
    }
    found = bench.in_turn("dense", ways, rounds, bench.flop_per_image(Q))
    minutes = value("val_images") / found["ours"] / 60
    found["details"] |= {"minutes_for_the_papers_validation_set": minutes, "Q": list(Q)}
    return found


def _ours(bench: Bench, Q: tuple[int, ...]) -> NDArray[np.float32]:
    testing, net = bench.config.evaluation, bench.net
    settings = Settings(flip=testing.flip, batch=testing.batch)
    total = np.zeros((len(bench.split), net.architecture.classes), np.float32)
    for side in Q:
        views = whole_views(bench.split, side, settings.batch // settings.views, net.architecture.crop)
        for batch in bench.loader.batches(bench.split, views):
            total[batch.views.image] += METHODS["dense"](net, batch.images, settings).cpu().numpy()
    return (total / len(Q)).astype(np.float32)


def _one_by_one(bench: Bench, Q: tuple[int, ...]) -> NDArray[np.float32]:
    mean, split = bench.mean(), bench.split
    rows = []
    for row in range(len(split)):
        posteriors = []
        for side in Q:
            height, width = rescaled_size(split.size[row : row + 1], side)[0]
            pixels = np.array(bench.image(row).resize((width, height), Image.Resampling.BILINEAR))
            images = (torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() - mean)[None].to(bench.device)
            views = [images, images.flip(3)] if bench.config.evaluation.flip else [images]
            posteriors += [class_scores(bench.plain, view).float().softmax(dim=1) for view in views]
        rows.append(torch.stack(posteriors).mean(dim=0).cpu().numpy())
    return np.concatenate(rows)


def _centre_crop(bench: Bench, Q: int) -> NDArray[np.float32]:
    rows = [bench.plain(crops).float().softmax(dim=1).cpu().numpy() for crops in bench.centre_crops(Q)]
    return np.concatenate(rows)
