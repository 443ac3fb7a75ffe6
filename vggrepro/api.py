"""Public API for notebooks and programs: nets and weights, images and views, posteriors and tables.

`import vggrepro` offers these names and imports torch only when the first is used. docs/notebook.md has examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vggrepro.config.parsing import checked
from vggrepro.config.recipes import load_resolved
from vggrepro.config.settings import Backend, ColourMode, ColourShift, Data, Evaluation, Scheme
from vggrepro.data.images import sample_set
from vggrepro.data.images.index import Index, require_training_images
from vggrepro.data.images.index import load as load_index
from vggrepro.data.images.scan import open_index, scan
from vggrepro.data.loading.loader import Batch, Loader, make_loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import Scored, fuse, methods_of  # noqa: F401 (part of the API)
from vggrepro.evaluation.methods import METHODS, images_at_once, uncropped_views
from vggrepro.evaluation.posteriors import average
from vggrepro.evaluation.run_split import SplitPass
from vggrepro.evaluation.stage import as_the_net_expects
from vggrepro.models.dense import class_scores, score_map  # noqa: F401
from vggrepro.models.init import init_weights
from vggrepro.models.precision import set_arithmetic
from vggrepro.models.table1 import TORCHVISION_NAMES, architecture
from vggrepro.models.vgg import VGG
from vggrepro.models.weights import PREPROCESSING, Preprocessing
from vggrepro.paper import scale_text, value
from vggrepro.pipeline.pretrained import Pretrained, load  # noqa: F401
from vggrepro.ranks.watch import Watch
from vggrepro.reporting.documents.render import Format, render
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.reporting.tables.build import build_report
from vggrepro.reporting.tables.report import Report

Source = Index | str | Path
"""Images: an index, or a source that `open_images` accepts."""

_CACHE = Path("runs/index")


def vgg(
    name: str = "D",
    *,
    classes: int = value("classes"),
    crop: int = value("crop"),
    width: float = 1.0,
    blocks: int | None = None,
    init: Scheme = "paper",
    seed: int = 0,
) -> VGG:
    """Builds an untrained net of Table 1, in training mode, with torchvision's state-dict keys.

    Args:
        name: the paper's name (A, A-LRN, B, C, D, E) or torchvision's (vgg11 to vgg19, vgg16_bn).
        crop: side of the input in px; the net maps images (N, 3, crop, crop) to class scores (N, classes).
        width: factor on the number of channels of every layer.
        blocks: number of convolutional blocks, counted from the image; default: all.
        init: scheme of the random weights (Section 3.1); see `vggrepro.models.init`.

    Raises:
        UserError: the net is unknown, or a number is out of range.
    """
    plain = name.removesuffix("_bn")
    column = next((column for column, theirs in TORCHVISION_NAMES.items() if theirs == plain), plain)
    net = VGG(architecture(column, blocks=blocks, batch_norm=plain != name, classes=classes, crop=crop, width=width))
    init_weights(net, init, seed)
    return net


def open_images(*sources: str | Path, classes: str | None = None, cache: str | Path = _CACHE) -> Index:
    """Opens the images of an index file, folders, archives or `builtin:digits`, and returns their index.

    Only the headers of the images are read; `vggrepro index` also decodes every image and reports the odd ones.

    Args:
        classes: a file that lists all classes, or `ilsvrc2012`; needed if some classes have no images.
        cache: folder that stores the scan of a single source.

    Raises:
        UserError: the images cannot be read, or their labels contradict each other.
    """
    cache = Path(cache)
    places = [sample_set.ensure(cache)] if sources == (sample_set.ROOT,) else [Path(source) for source in sources]
    if classes is not None or len(places) != 1:
        return scan(places, "header", classes=classes)
    if places[0].is_file():
        with places[0].open("rb") as file:  # may be an archive of 138 GB
            if file.read(6) == b"ARROW1":
                return load_index(places[0])
    return open_index(str(places[0]), None, cache, lambda done, total: None)


def training_batches(
    images: Source,
    *,
    S: int | tuple[int, int] = value("scales")[0],
    crop: int = value("crop"),
    batch: int = value("batch_size"),
    seed: int = 0,
    first: int = 0,
    steps: int | None = None,
    flip: bool = True,
    colour_shift: ColourMode = "sqrt",
    input: Pretrained | Preprocessing = "paper",
    backend: Backend = "auto",
    workers: int | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Yields the training batches of Section 3.1, the same as `vggrepro train` under the same seed.

    The batches are a function of the arguments and the images, so `first=1000` continues after 1,000 steps.

    Args:
        images: an index, or a source that `open_images` accepts.
        S: shorter side of the rescaled image in px; (low, high) draws it per image.
        crop: side of the crop in px.
        batch: images per step.
        first: number of the first step.
        steps: number of steps; default: endless.
        input: preprocessing: "paper" subtracts the mean, "torchvision" normalises, a loaded net uses its own.
        workers: decoding threads; default: the number of cores.

    Yields:
        Batches with `images` (N, 3, crop, crop), float32 on `device`, `labels` (N,), int64, and `views`, the crop of
            each image.

    Raises:
        UserError: the images cannot be read, S is smaller than the crop, or more than 20 images have become unreadable.
    """
    index = _index(images)
    require_training_images(index)
    data = checked(Data, S=S, flip=flip, colour_shift=ColourShift(mode=colour_shift), backend=backend, workers=workers)
    if data.S_range[0] < crop:
        raise UserError(f"S={scale_text(data.S)} is smaller than crop={crop}; choose S from {crop} on")
    split, loader = index.split("train"), _loader(data, input, device)
    sampler = TrainingSampler(split.size, data, crop, seed)
    every = (sampler.views(step * batch, batch) for step in count(first))
    return loader.batches(split, every if steps is None else islice(every, steps))


def uncropped_batches(
    images: Source,
    Q: int,
    *,
    split: Literal["val", "train"] = "val",
    crop: int = value("crop"),
    batch: int = 64,
    input: Pretrained | Preprocessing = "paper",
    backend: Backend = "auto",
    workers: int | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[Batch]:
    """Yields the uncropped images of a split, each once, as dense evaluation needs them (Section 3.2).

    Args:
        images: an index, or a source that `open_images` accepts.
        Q: shorter side of the rescaled image in px.
        batch: images per batch at the size of the crop; batches of larger images are smaller.
        input: preprocessing: "paper" subtracts the mean, "torchvision" normalises, a loaded net uses its own.

    Yields:
        Batches with `images` (N, 3, H, W) of the same shape, and `views.image`, their rows in the split, shape (N,).

    Raises:
        UserError: an image cannot be read.
    """
    loader = _loader(checked(Data, backend=backend, workers=workers), input, device)
    shown = _index(images).split(split)
    return loader.batches(shown, uncropped_views(shown, Q, batch, crop))


def posteriors(
    model: Pretrained,
    images: Source,
    Q: int | Sequence[int],
    *,
    method: Literal["centre", "dense", "multicrop", "both"] = "dense",
    flip: bool | None = None,
    batch: int = 64,
    backend: Backend = "auto",
    workers: int | None = None,
) -> Scored:
    """Computes the posteriors of the full validation split, averaged over Q (Section 3.2).

    The computation is in float32; CUDA's TF32 is switched off for the process. `vggrepro evaluate` computes the same
    on many GPUs and stores the result.

    Args:
        images: an index, or a source that `open_images` accepts.
        Q: shorter sides of the rescaled image in px.
        flip: whether to average over mirror images as well; default: as the net was tested.
        batch: images per batch at the size of the crop.

    Returns:
        Posteriors with `values` (n, classes), float32, in the order of the index, `labels` (n,), and `measured`, the
            errors with their intervals.

    Raises:
        UserError: the classes differ from the net's, Q is smaller than the crop, or an image cannot be read.
    """
    index, net = _index(images), model.net
    expected = net.architecture.classes if model.classes is None else model.classes
    if expected not in (index.classes, len(index.classes)):
        raise UserError(
            f"{index.source} has {len(index.classes)} classes, which differ from those of {model.source}; open "
            f"images of the net's classes, and list all classes by classes=... if some have no images"
        )
    sides = (Q,) if isinstance(Q, int) else tuple(Q)
    crop, device = net.architecture.crop, next(net.parameters()).device
    if not sides or min(sides) < crop:
        raise UserError(f"Q={Q} is smaller than the net's crop={crop}; choose Q from {crop} on")
    mirrored = model.flip if flip is None else flip
    testing, methods = checked(Evaluation, flip=mirrored, batch=batch), methods_of(method)
    set_arithmetic(device, "fp32")
    loader = _loader(checked(Data, backend=backend, workers=workers), model, device)
    shown = SplitPass(index.split("val"), loader, Watch(), "fp32")

    def predict(batch: Batch) -> Tensor:
        return torch.stack([METHODS[part](net, batch.images, testing) for part in methods]).cpu()

    found = torch.empty(len(sides), len(methods), len(shown.split), net.architecture.classes)
    for side, values in zip(sides, found, strict=True):
        views = uncropped_views(shown.split, side, images_at_once(testing), crop)
        for shown_batch, predicted in shown.outputs(predict, views, f"posteriors at Q={side}"):
            values[:, shown_batch.views.image] = predicted
    parts = [average(list(found[:, number].numpy())) for number in range(len(methods))]
    return Scored(method, sides, average(parts), shown.split.label)


def stored_posteriors(
    run: str | Path,
    method: Literal["centre", "dense", "multicrop", "both"] = "dense",
    Q: int | Sequence[int] | None = None,
) -> Scored:
    """Reads the stored posteriors of a run's final net, averaged over Q.

    Args:
        Q: shorter sides in px; default: the run's Q of Table 3.

    Raises:
        UserError: the folder is not a run directory, or has no posteriors of this method and Q.
    """
    folder = Path(run)
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not a run directory (it has no config.yaml); name one, e.g. runs/demo/D")
    stored = StoredRun(folder, load_resolved(folder / "config.yaml"))
    sides = stored.Q_of(3) if Q is None else (Q,) if isinstance(Q, int) else tuple(Q)
    found = stored.test(sides, method)
    if found is None:
        raise UserError(f"{stored.missing_tests(sides, method)}; run `vggrepro evaluate {folder}` for them")
    return Scored(method, sides, found.values(), found.labels())


def tables(*places: str | Path) -> Report:
    """Builds Tables 1 to 12, measured beside printed, and tests the paper's claims.

    Args:
        places: folders of runs or of committed evidence; default: `runs`.

    Returns:
        Report with typed records in `rows`, `claims` and `groups`; `to_markdown` formats it like `vggrepro tables`.

    Raises:
        UserError: a folder is missing, or a run's files are damaged.
    """
    return build_report(find_runs([Path(place) for place in places or ("runs",)]))


def to_markdown(report: Report) -> str:
    """Formats a report as a Markdown document."""
    return render(report, Format.markdown, "Measured beside printed", counts=False)


def _index(images: Source) -> Index:
    return images if isinstance(images, Index) else open_images(images)


def _loader(data: Data, input: Pretrained | Preprocessing, device: str | torch.device) -> Loader:
    # Worker processes would import the caller's program again, and a notebook cannot be imported.
    loader = replace(make_loader(data, torch.device(device)), processes=0)
    if isinstance(input, Pretrained):
        return replace(loader, mean=input.mean, std=input.std)
    if input not in PREPROCESSING:
        raise UserError(f"input={input!r} is not known; choose from {', '.join(PREPROCESSING)}, or give a loaded net")
    return as_the_net_expects(loader, PREPROCESSING[input])
