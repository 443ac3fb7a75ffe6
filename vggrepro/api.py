"""What a notebook or another program imports: nets and their weights, images and views, posteriors and tables.

`import vggrepro` offers these names and loads nothing heavy until one is used. docs/notebook.md shows them at work.
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
from vggrepro.evaluation.measure import Scored, fuse, methods_of  # noqa: F401 (offered as it is)
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
"""Images: an index, or where they are, as :func:`open_images` takes it."""

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
    """An untrained net of Table 1 by the paper's name, A to E or A-LRN, or torchvision's, vgg11 to vgg19 and vgg16_bn.

    It takes images of shape (N, 3, crop, crop) to class scores (N, classes), has torchvision's state-dict keys, and is
    in training mode. `width` multiplies all channels; `blocks` is the number of the net's blocks, counted from the
    image (default: all); for `init` see `models.init` (Section 3.1).

    Raises:
        UserError: no such net, or a number out of range.
    """
    plain = name.removesuffix("_bn")
    column = next((column for column, theirs in TORCHVISION_NAMES.items() if theirs == plain), plain)
    net = VGG(architecture(column, blocks=blocks, batch_norm=plain != name, classes=classes, crop=crop, width=width))
    init_weights(net, init, seed)
    return net


def open_images(*sources: str | Path, classes: str | None = None, cache: str | Path = _CACHE) -> Index:
    """The index of images, from an index file, folders, archives, or `builtin:digits`.

    A folder is scanned by header; the scan of a single source is kept in `cache`. `classes` lists all classes where the
    images are of some of them only: a file, or `ilsvrc2012`. `vggrepro index` decodes every image, too, and reports.

    Raises:
        UserError: as `vggrepro index` does, in one line.
    """
    cache = Path(cache)
    places = [sample_set.ensure(cache)] if sources == (sample_set.ROOT,) else [Path(source) for source in sources]
    if classes is not None or len(places) != 1:
        return scan(places, "header", classes=classes)
    if places[0].is_file():
        with places[0].open("rb") as file:  # which may be an archive of 138 GB
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
    """The training views of Section 3.1, batch by batch: those that `vggrepro train` shows under the same seed.

    A batch has `images` (N, 3, crop, crop) float32 on `device`, `labels` (N,) int64, and `views`, what is shown of
    which image. They depend on nothing but the arguments and the images, so `first=1000` goes on after 1,000 steps.

    Args:
        images: an index, or as `open_images` takes it.
        S: shorter side in px of the rescaled image; (low, high) draws it for each.
        first, steps: the first step and how many; without `steps` there is no end.
        input: subtract the paper's mean ("paper"), use torchvision's normalisation, or what a trained net expects.
        workers: decoding threads; default: the machine's cores.

    Raises:
        UserError: images that cannot be had, S below the crop, more than 20 that went bad since they were indexed.
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
    """Whole, uncropped images at shorter side Q, px, each once: what dense evaluation sees (Section 3.2).

    A batch's images (N, 3, H, W) have one shape; `views.image` are their rows in the index's split. `batch` is how
    many of them there may be at the size of the crop; larger images come in fewer.

    Raises:
        UserError: images that cannot be had, or one that went bad since it was indexed.
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
    """Posteriors of the whole validation split by one of the paper's methods, averaged over Q, in memory (Section 3.2).

    The result has `values` (n, classes) float32 in the index's order, `labels` (n,), and `measured`, the errors with
    their intervals. `vggrepro evaluate` does the same on many GPUs, and keeps what it has computed. Like it, this
    computes in float32: CUDA's TF32 is switched off for the process. `flip` is whether mirror images are averaged, too;
    default: as the net was tested.

    Raises:
        UserError: the images' classes are not the net's; Q below the crop; as `uncropped_batches`.
    """
    index, net = _index(images), model.net
    expected = net.architecture.classes if model.classes is None else model.classes
    if expected not in (index.classes, len(index.classes)):
        raise UserError(
            f"{index.source} has {len(index.classes)} classes, and not those of {model.source}; open images of the "
            f"net's own classes, with classes=... where they are of some of them only"
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
        for whole, predicted in shown.outputs(predict, views, f"posteriors at Q={side}"):
            values[:, whole.views.image] = predicted
    parts = [average(list(found[:, number].numpy())) for number in range(len(methods))]
    return Scored(method, sides, average(parts), shown.split.label)


def stored_posteriors(
    run: str | Path,
    method: Literal["centre", "dense", "multicrop", "both"] = "dense",
    Q: int | Sequence[int] | None = None,
) -> Scored:
    """The posteriors that a run directory keeps of its final net, averaged over Q; default: its own Q of Table 3.

    Raises:
        UserError: no such run, or it was not tested so; the text says what is missing.
    """
    folder = Path(run)
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is no run directory (it has no config.yaml); name one, e.g. runs/demo/D")
    one = StoredRun(folder, load_resolved(folder / "config.yaml"))
    sides = one.Q_of(3) if Q is None else (Q,) if isinstance(Q, int) else tuple(Q)
    found = one.test(sides, method)
    if found is None:
        raise UserError(f"{one.missing_tests(sides, method)}; run `vggrepro evaluate {folder}` for them")
    return Scored(method, sides, found.values(), found.labels())


def tables(*places: str | Path) -> Report:
    """Tables 1-12 measured beside printed, and the paper's claims as tests, from the runs in some folders, or evidence.

    `rows`, `claims` and `groups` are plain typed records; :func:`to_markdown` prints them as `vggrepro tables` does.
    Raises UserError.
    """
    return build_report(find_runs([Path(place) for place in places or ("runs",)]))


def to_markdown(report: Report) -> str:
    """A report as a document."""
    return render(report, Format.markdown, "Measured beside printed", counts=False)


def _index(images: Source) -> Index:
    return images if isinstance(images, Index) else open_images(images)


def _loader(data: Data, input: Pretrained | Preprocessing, device: str | torch.device) -> Loader:
    # in this process: others would import the caller's program again, which may be a notebook
    loader = replace(make_loader(data, torch.device(device)), processes=0)
    if isinstance(input, Pretrained):
        return replace(loader, mean=input.mean, std=input.std)
    if input not in PREPROCESSING:
        raise UserError(f"input={input!r} is not known; choose from {', '.join(PREPROCESSING)}, or give a loaded net")
    return as_the_net_expects(loader, PREPROCESSING[input])
