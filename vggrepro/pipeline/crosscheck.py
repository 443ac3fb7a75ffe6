"""A run's net under torchvision's and timm's own evaluation beside ours, on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vggrepro.config.settings import Config, Model
from vggrepro.data.decode import Region, full_region
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch
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
from vggrepro.training.stage import net_of

RESIZE = 256 / 224
"""Of the resized shorter side to the crop, in torchvision's evaluation."""
TIMM_REMEDY = "timm is not installed, so its row is left out; for it: pip install 'vggrepro[timm]'"
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Other:
    """Another program's evaluation: how it shows an image to a net, and the net."""

    name: str
    preprocessing: str
    transform: Transform
    """Of an RGB image; (3, crop, crop) float32."""
    module: nn.Module
    """In evaluation mode, on the CPU."""
    module_name: str


@dataclass(frozen=True)
class Evaluated:
    """One net under one evaluation."""

    name: str
    preprocessing: str
    module: str
    """Whose code computed the scores."""
    scored: Scored

    @property
    def guesses(self) -> NDArray[np.int64]:
        """(n,) classes with the largest posterior."""
        return self.scored.values.argmax(axis=1)


@dataclass(frozen=True)
class Crosscheck:
    """The same net on the same images under several evaluations; the second is ours of the centre crop."""

    net: str
    source: str
    """Where the images are from."""
    images: int
    """In the whole validation split."""
    precision: str
    timm: str | None
    """Its version; None where it is not installed."""
    rows: tuple[Evaluated, ...]

    def report(self) -> dict[str, Any]:
        """Everything that is measured, for JSON: errors in per cent with 95 % intervals, differences from our crop."""
        beside = self.rows[1]
        found = []
        for row in self.rows:
            ranks = row.scored.ranks
            entry: dict[str, Any] = {"evaluation": row.name, "preprocessing": row.preprocessing, "module": row.module}
            entry |= _errors("top1", ranks.top1) | _errors("top5", ranks.top5)
            entry |= {"n": ranks.top1.n, "other_answers": None, "largest_difference": None}
            if row is not beside:
                entry["other_answers"] = int((row.guesses != beside.guesses).sum())
                entry["largest_difference"] = float(np.abs(row.scored.values - beside.scored.values).max())
            found.append(entry)
        n = len(beside.scored.labels)
        about = {"net": self.net, "images": self.source, "n": n, "of": self.images, "precision": self.precision}
        return about | {"timm": self.timm, "evaluations": found}


def _errors(name: str, rate: ErrorRate) -> dict[str, Any]:
    return {f"{name}_error": rate.percent, f"interval_{name}": list(rate.interval)}


def crosscheck(path: Path, limit: int | None = None, overrides: Sequence[str] = ()) -> Crosscheck:
    """Evaluates a run's net, or a checkpoint's, on its validation images as ours, torchvision and timm do.

    Ours are the run's own dense test of Table 3 and the centre crop; posteriors of all images are stored in the run
    directory, as by `evaluate_nets`. torchvision's and timm's are the centre crop in their own code, with the net's own
    mean and standard deviation, and their own modules where they have the net. Without timm its row is left out.

    Args:
        path: a run directory, or one of its checkpoints.
        limit: evaluates so many images at most, evenly spaced in the index's order.
        overrides: `section.key=value` changes.

    Raises:
        UserError: the net predicts boxes or has no class scores, its images are gone, or of other classes, or one of
            them cannot be read; several ranks.
        Interrupted: the command was asked to stop.
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
        found = []
        for method, Q in tests:
            scored = _ours(net, results, val, rows, method, Q, session)
            flip = " and its mirror image" if method == "dense" and net.config.evaluation.flip else ""
            size = f"shorter side {', '.join(map(str, Q))}"
            shown = f"{size}, the whole image{flip}" if method == "dense" else f"{size}, centre crop {crop}"
            found.append(Evaluated(f"ours, {method}", shown, "ours", scored))
        others = [torchvision_evaluation(checkpoint)]
        version = _version("timm")
        if version:
            others.append(timm_evaluation(checkpoint))
        found += _theirs(others, val.take(rows), net.config, session)
    return Crosscheck(str(path), index.source, len(val), net.config.evaluation.precision, version, tuple(found))


def _ours(
    net: Net,
    results: NetResults,
    val: Split,
    rows: NDArray[np.int64],
    method: str,
    Q: tuple[int, ...],
    session: Session,
) -> Scored:
    """Posteriors of some images, from the store where they are there."""
    if stored := results.scored(method, Q):
        return Scored(method, Q, stored.values[rows], stored.labels[rows])
    built, loader = net.opened(session)
    testing, split = net.config.evaluation, val.take(rows)
    set_arithmetic(session.device, testing.precision)
    found = np.zeros((len(split), built.architecture.classes))
    shown = SplitPass(split, loader, session.watch, testing.precision)

    def predict(batch: Batch) -> Tensor:
        return METHODS[method](built, batch.images, testing).cpu()

    with progress(f"ours, {method}", len(Q) * len(split)) as update:
        done = 0
        for side in Q:
            views = uncropped_views(split, side, images_at_once(testing), built.architecture.crop)
            for batch, values in shown.outputs(predict, views, "evaluation"):
                found[batch.views.image] += values.numpy() / len(Q)
                done += len(batch.views)
                update(done, "")
    return Scored(method, Q, found.astype(np.float32), split.label)


@torch.inference_mode()
def _theirs(others: Sequence[Other], split: Split, config: Config, session: Session) -> Iterator[Evaluated]:
    """Other programs' evaluations of a split, all of the same decoded images. Raises UserError, and Interrupted."""
    precision, device, n = config.evaluation.precision, session.device, len(split)
    set_arithmetic(device, precision)
    modules = [other.module.to(device).eval() for other in others]
    found = np.empty((len(others), n, config.model.classes), np.float32)

    def shown(image: int) -> list[Tensor]:
        decoded = decode(split, image)
        return [other.transform(decoded) for other in others]

    starts = range(0, n, config.evaluation.batch)
    title = " and ".join(other.name for other in others)
    with ThreadPoolExecutor(session.cores) as pool, progress(title, n) as update:
        for start in session.watch.until_stopped((start for start in starts), "evaluation"):
            rows = range(start, min(start + config.evaluation.batch, n))
            for values, module, images in zip(found, modules, zip(*pool.map(shown, rows), strict=True), strict=True):
                with autocast(device, precision):
                    scores = module(torch.stack(images).to(device))
                values[start : rows.stop] = scores.float().softmax(dim=1).cpu().numpy()
            update(rows.stop, "")
    for other, values in zip(others, found, strict=True):
        scored = Scored("centre", (config.model.crop,), values, split.label)
        yield Evaluated(other.name, other.preprocessing, other.module_name, scored)


def _version(package: str) -> str | None:
    """Of an installed package."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def decode(split: Split, image: int) -> Image.Image:
    """An image of a split, RGB, as PIL decodes it. Raises UserError for one that cannot be read."""
    region = full_region(split.read_or_reason(image), split.size[image])
    if not isinstance(region, Region):
        raise UserError(
            f"{split.name_of(image)} is bad since it was indexed ({region}), and an error rate counts every image; "
            f"restore it, or index the data again"
        )
    assert isinstance(region.image, Image.Image)
    return region.image


def torchvision_evaluation(checkpoint: Checkpoint) -> Other:
    """torchvision's preset for image classification, with its own VGG where it has the net."""
    from torchvision.models import get_model
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification  # what weights.transforms() of its nets are

    crop, (mean, std) = checkpoint.stage.model.crop, _in_unit_range(checkpoint)
    resize, name = round(RESIZE * crop), their_name(checkpoint.stage.model)
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
    return Other("torchvision", shown, preset, module, f"torchvision's {name}" if name else "ours")


def timm_evaluation(checkpoint: Checkpoint) -> Other:
    """The transform that timm's `validate.py` makes of a VGG's configuration, with its own VGG where it has the net."""
    import timm
    from timm.data import create_transform, resolve_data_config

    model, (mean, std) = checkpoint.stage.model, _in_unit_range(checkpoint)
    name = their_name(model)
    settings = {"input_size": (IMAGE_CHANNELS, model.crop, model.crop), "mean": mean, "std": std}
    usual = timm.get_pretrained_cfg(name or "vgg16").to_dict()
    config = resolve_data_config(settings, pretrained_cfg=usual)
    if name:  # through the conversion of other programs' names that timm has for its VGGs
        given = {"state_dict": dict(checkpoint.weights), "num_classes": model.classes}
        module = timm.create_model(name, pretrained=True, num_classes=model.classes, pretrained_cfg_overlay=given)
    else:
        module = net_of(checkpoint, torch.device("cpu"))
    shown = f"crop_pct {config['crop_pct']:g}, centre crop {model.crop}, {config['interpolation']}"
    return Other("timm", shown, create_transform(**config), module, f"timm's {name}" if name else "ours")


def their_name(model: Model) -> str | None:
    """What torchvision and timm call a net; None where they have none of its layers, width and crop."""
    if model.layers is not None or model.geometry != Model(net=model.net).geometry or not model.fully_connected:
        return None
    name = TORCHVISION_NAMES.get(model.net)
    return name and name + ("_bn" if model.batch_norm else "")


def _in_unit_range(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the net's input for grey levels from 0 to 1, as others have them."""
    mean, std = (tuple(part / 255 for part in checkpoint.preprocessing[key]) for key in ("mean", "std"))
    return mean, std
