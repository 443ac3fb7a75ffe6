"""Comparison of this package's evaluation of a net with torchvision's and timm's, on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vggrepro.config.settings import Config, Model
from vggrepro.data.decode import Region, full_region
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch
from vggrepro.data.views import Ints
from vggrepro.errors import UserError
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.measure import NetResults, Scored
from vggrepro.evaluation.methods import METHODS, images_at_once, uncropped_views
from vggrepro.evaluation.run_split import SplitPass
from vggrepro.evaluation.stage import evaluate
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.table1 import IMAGE_CHANNELS, TORCHVISION_NAMES, architecture_of, require_class_scores
from vggrepro.pipeline.evaluate import require_classes
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import Session, open_session
from vggrepro.progress import progress
from vggrepro.ranks.topology import topology_of
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.environment import installed
from vggrepro.training.stage import net_of

RESIZE = 256 / 224
"""Ratio of the resized shorter side to the crop in torchvision's evaluation."""
TIMM_REMEDY = "timm is not installed, so its row is left out; run: pip install 'vggrepro[timm]'"
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class ExternalEvaluation:
    """Another package's evaluation: its preprocessing and its module for the net."""

    name: str
    preprocessing: str
    transform: Transform
    """Converts an RGB image to float32, shape (3, crop, crop)."""
    module: nn.Module
    """Net in evaluation mode, on the CPU."""
    module_name: str


@dataclass(frozen=True)
class Evaluated:
    """Result of an evaluation of the net."""

    name: str
    preprocessing: str
    module: str
    """Origin of the net's module: ours, or the name in another package."""
    scored: Scored

    @property
    def guesses(self) -> Ints:
        """Classes with the largest posterior, shape (n,)."""
        return self.scored.values.argmax(axis=1)


@dataclass(frozen=True)
class Crosscheck:
    """Several evaluations of a net on the same images; the second row is this package's centre crop."""

    net: str
    source: str
    """Source of the images."""
    images: int
    """Number of images in the complete validation split."""
    precision: str
    timm: str | None
    """Version of timm; None if it is not installed."""
    rows: tuple[Evaluated, ...]

    def report(self) -> dict[str, Any]:
        """Reports errors in per cent with 95 % intervals, and differences from our centre crop, for JSON."""
        baseline = self.rows[1]
        evaluations = []
        for row in self.rows:
            ranks = row.scored.ranks
            entry: dict[str, Any] = {"evaluation": row.name, "preprocessing": row.preprocessing, "module": row.module}
            entry |= _errors("top1", ranks.top1) | _errors("top5", ranks.top5)
            entry |= {"n": ranks.top1.n, "other_answers": None, "largest_difference": None}
            if row is not baseline:
                entry["other_answers"] = int((row.guesses != baseline.guesses).sum())
                entry["largest_difference"] = float(np.abs(row.scored.values - baseline.scored.values).max())
            evaluations.append(entry)
        n = len(baseline.scored.labels)
        about = {"net": self.net, "images": self.source, "n": n, "of": self.images, "precision": self.precision}
        return about | {"timm": self.timm, "evaluations": evaluations}


def _errors(name: str, rate: ErrorRate) -> dict[str, Any]:
    return {f"{name}_error": rate.percent, f"interval_{name}": list(rate.interval)}


def crosscheck(path: Path, limit: int | None = None, overrides: Sequence[str] = ()) -> Crosscheck:
    """Evaluates a net on at most `limit` evenly spaced validation images with this package, torchvision and timm.

    This package evaluates the dense test of Table 3 and the centre crop, and stores posteriors of all images in the run
    directory. torchvision and timm, if installed, evaluate the centre crop with their own code, with the net's mean and
    standard deviation, and with their own modules if they have the net. Raises UserError, also for several ranks, and
    Interrupted.
    """
    if (ranks := topology_of(os.environ).world) > 1:
        raise UserError(f"crosscheck works on one rank, not {ranks}; start it without torchrun or srun")
    net = Net.at(path, overrides)
    if net.predicts_boxes:
        raise UserError(f"{path} predicts boxes, which torchvision and timm do not; name a run that predicts classes")
    require_class_scores(architecture_of(net.stage))
    with open_session([net.config], training=False) as session:
        index = session.index(net.config)
        require_classes(net, index)
        val = index.split("val")
        rows = np.arange(len(val))
        if limit is not None and limit < len(val):
            rows = np.unique(np.linspace(0, len(val) - 1, limit).astype(np.int64))
        crop, checkpoint = architecture_of(net.config).crop, net.load()
        results, resize = net.results(index.fingerprint), round(RESIZE * crop)
        tests = [("dense", net.config.single_Q), ("centre", (resize,))]
        if len(rows) == len(val):
            net.note_weights()
            evaluate(results, partial(net.opened, session), index, session.watch, tests)
        evaluated = []
        for method, Q in tests:
            scored = _evaluate(net, results, val, rows, method, Q, session)
            flip = " and its mirror image" if method == "dense" and net.config.evaluation.flip else ""
            size = f"shorter side {', '.join(map(str, Q))}"
            view = f"{size}, the whole image{flip}" if method == "dense" else f"{size}, centre crop {crop}"
            evaluated.append(Evaluated(f"ours, {method}", view, "ours", scored))
        externals = [torchvision_evaluation(checkpoint)]
        version = installed("timm")
        if version:
            externals.append(timm_evaluation(checkpoint))
        evaluated += _evaluate_externally(externals, val.take(rows), net.config, session)
    return Crosscheck(str(path), index.source, len(val), net.config.evaluation.precision, version, tuple(evaluated))


def _evaluate(
    net: Net, results: NetResults, val: Split, rows: Ints, method: str, Q: tuple[int, ...], session: Session
) -> Scored:
    """Computes posteriors of some images, or reads them if they are stored."""
    if stored := results.scored(method, Q):
        return Scored(method, Q, stored.values[rows], stored.labels[rows])
    vgg, loader = net.opened(session)
    testing, split = net.config.evaluation, val.take(rows)
    set_arithmetic(session.device, testing.precision)
    posteriors = np.zeros((len(split), vgg.architecture.classes))
    shown = SplitPass(split, loader, session.watch, testing.precision)

    def predict(batch: Batch) -> Tensor:
        return METHODS[method](vgg, batch.images, testing).cpu()

    with progress(f"ours, {method}", len(Q) * len(split)) as update:
        done = 0
        for side in Q:
            views = uncropped_views(split, side, images_at_once(testing), vgg.architecture.crop)
            for batch, values in shown.outputs(predict, views, "evaluation"):
                posteriors[batch.views.image] += values.numpy() / len(Q)
                done += len(batch.views)
                update(done, "")
    return Scored(method, Q, posteriors.astype(np.float32), split.label)


@torch.inference_mode()
def _evaluate_externally(
    externals: Sequence[ExternalEvaluation], split: Split, config: Config, session: Session
) -> Iterator[Evaluated]:
    """Runs other packages' evaluations on the same decoded images. Raises UserError and Interrupted."""
    precision, device, n = config.evaluation.precision, session.device, len(split)
    set_arithmetic(device, precision)
    modules = [external.module.to(device).eval() for external in externals]
    posteriors = np.empty((len(externals), n, config.model.classes), np.float32)

    def transformed(image: int) -> list[Tensor]:
        decoded = decode(split, image)
        return [external.transform(decoded) for external in externals]

    starts = range(0, n, config.evaluation.batch)
    title = " and ".join(external.name for external in externals)
    with ThreadPoolExecutor(session.cores) as pool, progress(title, n) as update:
        for start in session.watch.until_stopped((start for start in starts), "evaluation"):
            rows = range(start, min(start + config.evaluation.batch, n))
            inputs = zip(*pool.map(transformed, rows), strict=True)
            for values, module, images in zip(posteriors, modules, inputs, strict=True):
                with autocast(device, precision):
                    scores = module(torch.stack(images).to(device))
                values[start : rows.stop] = scores.float().softmax(dim=1).cpu().numpy()
            update(rows.stop, "")
    for external, values in zip(externals, posteriors, strict=True):
        scored = Scored("centre", (config.model.crop,), values, split.label)
        yield Evaluated(external.name, external.preprocessing, external.module_name, scored)


def decode(split: Split, image: int) -> Image.Image:
    """Decodes an image of a split to RGB with PIL. Raises UserError if it cannot be read."""
    region = full_region(split.read_or_reason(image), split.size[image])
    if not isinstance(region, Region):
        raise UserError(
            f"{split.name_of(image)} is bad since it was indexed ({region}); restore it, or index the data again, "
            f"because error rates need every image"
        )
    assert isinstance(region.image, Image.Image)
    return region.image


def torchvision_evaluation(checkpoint: Checkpoint) -> ExternalEvaluation:
    """Returns torchvision's preset for image classification, with its VGG if it has the net."""
    from torchvision.models import get_model
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification  # behind weights.transforms()

    crop, (mean, std) = checkpoint.stage.model.crop, _normalisation(checkpoint)
    resize, name = round(RESIZE * crop), external_name(checkpoint.stage.model)
    preset = ImageClassification(
        crop_size=crop, resize_size=resize, mean=mean, std=std, interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    if name:
        with torch.device("meta"):
            module = get_model(name, weights=None, init_weights=False, num_classes=checkpoint.stage.model.classes)
        module.load_state_dict(checkpoint.weights, strict=True, assign=True)
    else:
        module = net_of(checkpoint, torch.device("cpu"))
    shown = f"resize {resize}, centre crop {crop}, bilinear"
    return ExternalEvaluation("torchvision", shown, preset, module, f"torchvision's {name}" if name else "ours")


def timm_evaluation(checkpoint: Checkpoint) -> ExternalEvaluation:
    """Returns the transform of timm's `validate.py` for a VGG, with timm's VGG if it has the net."""
    import timm
    from timm.data import create_transform, resolve_data_config

    model, (mean, std) = checkpoint.stage.model, _normalisation(checkpoint)
    name = external_name(model)
    settings = {"input_size": (IMAGE_CHANNELS, model.crop, model.crop), "mean": mean, "std": std}
    config = resolve_data_config(settings, pretrained_cfg=timm.get_pretrained_cfg(name or "vgg16").to_dict())
    if name:  # timm converts the names of the weights itself
        overlay = {"state_dict": dict(checkpoint.weights), "num_classes": model.classes}
        module = timm.create_model(name, pretrained=True, num_classes=model.classes, pretrained_cfg_overlay=overlay)
    else:
        module = net_of(checkpoint, torch.device("cpu"))
    shown = f"crop_pct {config['crop_pct']:g}, centre crop {model.crop}, {config['interpolation']}"
    return ExternalEvaluation("timm", shown, create_transform(**config), module, f"timm's {name}" if name else "ours")


def external_name(model: Model) -> str | None:
    """Returns the name of a net in torchvision and timm; None if they have no net with its layers, width and crop."""
    if model.layers is not None or model.geometry != Model(net=model.net).geometry or not model.fully_connected:
        return None
    name = TORCHVISION_NAMES.get(model.net)
    return name and name + ("_bn" if model.batch_norm else "")


def _normalisation(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the net's input for grey levels in [0, 1]."""
    mean, std = (tuple(part / 255 for part in checkpoint.preprocessing[key]) for key in ("mean", "std"))
    return mean, std
