"""From views to batches on a device, by whichever backend."""

import importlib.util
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vggrepro.config.settings import Data
from vggrepro.data.decode import BadImageError, Region, blaming_the_machine, in_groups, resample, whole_region
from vggrepro.data.images.index import Split
from vggrepro.data.loading import dali, torchvision
from vggrepro.data.loading.prefetch import prefetch, to_device
from vggrepro.data.loading.processes import in_order, shared_empty
from vggrepro.data.loading.resample import resample_on_device
from vggrepro.data.views import Ints, Views
from vggrepro.errors import UserError
from vggrepro.progress import echo


@dataclass(frozen=True)
class Batch:
    """Images as the net sees them."""

    images: torch.Tensor
    """(N, 3, h, w) float32, channels last in memory, RGB 0-255 minus mean, divided by std; see `Loader`."""
    labels: torch.Tensor
    """(N,) int64."""
    views: Views
    """What is shown: the views asked for, but for the places of bad images."""
    dropout_masks: tuple[torch.Tensor, torch.Tensor] | None = None
    """In training with dropout, which units of fc6 and fc7 each image keeps: bool (N, units)."""
    targets: torch.Tensor | None = None
    """In training on boxes, what is to be predicted: (N, 4) float32, as of `models.boxes.encode`."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory from being used again before what `stream` has been given so far is done."""
        for tensor in (self.images, self.labels, self.targets, *(self.dropout_masks or ())):
            if tensor is not None:
                tensor.record_stream(stream)


class BadImages:
    """The training images of one rank that turned out to be bad after indexing, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}
        """What was wrong, by image."""

    def note(self, split: Split, image: int, reason: BadImageError) -> None:
        """Counts and reports an image once. Raises UserError beyond the limit."""
        name = split.name_of(image)
        if name in self.reasons:
            return
        self.reasons[name] = str(reason)
        if len(self.reasons) > self.limit:
            raise UserError(
                f"{name} is bad since it was indexed ({reason}), and data.max_bad={self.limit}; "
                f"restore the data, or index it again, or raise data.max_bad"
            )
        echo(f"{name} is bad since it was indexed ({reason}); another takes its place ({len(self.reasons)} so far)")


_Piece = tuple[Views, int, Callable[[torch.Tensor], dict[int, BadImageError]]]
"""A batch's views, the row at which the piece begins, and what fills its rows' places with grey levels (n, h, w, 3) and
returns the rows of the piece whose images are bad."""


@dataclass(frozen=True)
class Loader:
    """Renders views of one data set; the same for training and testing, so that both see one decoder and one filter."""

    backend: Literal["dali", "dali_gpu", "torchvision"]
    """`dali_gpu` decodes and resamples on `device`."""
    mean: tuple[float, float, float]
    workers: int
    """Decoding threads, of all processes together."""
    device: torch.device
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What the images are divided by, for weights that were trained so."""
    dtype: torch.dtype = torch.float32
    """Of the images; a half-precision one is what autocast would make of them."""
    readers: int = 16
    """Threads that wait for files, likewise."""
    processes: int = 0
    """That decode and resample beside this one; 0: this one does."""
    piece: int = dali.MOST
    """Most images decoded at once: bounds the memory that dense evaluation's large ones take."""
    bad: BadImages = field(default_factory=lambda: BadImages(0), compare=False)

    def batches(self, split: Split, stream: Iterable[Views]) -> Generator[Batch]:
        """The batches of a stream of views, in its order; rendered ahead of their use, in the background.

        An image that has gone bad since it was indexed gives its place to the sampler's replacement. Raises UserError
        where there is none (in testing, where every image counts), when more than `data.max_bad` have gone bad, and
        for what the machine fails at.
        """
        return prefetch(self.render(split, stream), self.device)

    def render(self, split: Split, stream: Iterable[Views]) -> Generator[Batch]:
        """As :meth:`batches`, in the foreground: for what is itself prefetched."""
        for views, pixels in self._rendered(split, stream):
            labels = torch.from_numpy(split.label[views.image])
            yield Batch(self._images(views, pixels), to_device(labels, self.device), views)

    def _images(self, views: Views, pixels: torch.Tensor) -> torch.Tensor:
        """The images of a batch, from grey levels (N, h, w, 3) in pinned memory or on the device."""
        if self.device.type == "cpu":
            images = _huge(pixels.shape, np.float32).copy_(pixels)
        else:
            images = to_device(pixels, self.device).float()
        offset = to_device(torch.from_numpy(np.array(self.mean, np.float32) - views.shift), self.device)
        # rows of w * 3 numbers at once: three at a time are no work for vector units
        images.view(len(views), views.shape[0], -1).sub_(offset.repeat(1, views.shape[1])[:, None])
        if self.std != (1.0, 1.0, 1.0):
            images /= to_device(torch.tensor(self.std), self.device)
        return images.to(self.dtype).permute(0, 3, 1, 2)

    def _rendered(self, split: Split, stream: Iterable[Views]) -> Generator[tuple[Views, torch.Tensor]]:
        """(views, (N, h, w, 3) grey levels) of each Views of the stream."""
        pieces = self._by_processes(split, stream) if self.processes else self._by_threads(split, self._cut(stream))
        with closing(pieces), blaming_the_machine():
            for views, first, fill in pieces:
                if first == 0:
                    shown = views
                    pixels = self._empty((len(views), *views.shape, 3))
                stop = min(first + self.piece, len(views))
                for row, reason in fill(pixels[first:stop]).items():
                    shown, region = self._replaced(split, shown, first + row, reason)
                    one = slice(first + row, first + row + 1)
                    self._resample([region], shown[one], pixels[one])
                if stop == len(views):
                    yield shown, pixels

    def _cut(self, stream: Iterable[Views]) -> Iterator[tuple[Views, int]]:
        """Each Views with every row at which a piece of it begins."""
        for views in stream:
            for first in range(0, len(views), self.piece):
                yield views, first

    def _by_threads(self, split: Split, cut: Iterable[tuple[Views, int]]) -> Generator[_Piece]:
        """Decoded ahead, and resampled when they are asked for, by threads of this process."""
        asked: deque[tuple[Views, int, NDArray[np.intp]]] = deque()

        def wanted() -> Iterator[tuple[Ints, Ints]]:
            for views, first in cut:
                images, boxes, which = views[first : first + self.piece].decode_boxes()
                asked.append((views, first, which))
                yield images, boxes

        # waiting for disks and networks takes more threads than decoding
        with ThreadPoolExecutor(self.workers) as pool, ThreadPoolExecutor(self.readers) as readers:
            for regions in self._regions(split, wanted(), pool, readers):
                views, first, which = asked.popleft()
                of_row = [regions[number] for number in which]
                yield views, first, partial(self._fill, of_row, views[first : first + self.piece], pool)

    def _by_processes(self, split: Split, stream: Iterable[Views]) -> Generator[_Piece]:
        """The same by other processes, each of which iterates over the stream and renders its share of the pieces."""
        alone = replace(
            self,
            device=torch.device("cpu"),
            workers=-(-self.workers // self.processes),
            readers=-(-self.readers // self.processes),
            processes=0,
        )
        with closing(in_order(_Pieces(alone, split, stream), self.processes)) as arrived:
            for views, first in self._cut(stream):
                pixels, bad = next(arrived)
                yield views, first, partial(_copied, pixels, bad)

    def _fill(
        self, regions: Sequence[Region | BadImageError], rows: Views, pool: ThreadPoolExecutor, places: torch.Tensor
    ) -> dict[int, BadImageError]:
        """Resamples into the rows' places; returns the rows that cannot be, with the reasons."""
        bad = {row: region for row, region in enumerate(regions) if isinstance(region, BadImageError)}
        if not bad:
            self._resample([region for region in regions if isinstance(region, Region)], rows, places, pool)
        else:
            for row, region in enumerate(regions):
                if isinstance(region, Region):
                    self._resample([region], rows[row : row + 1], places[row : row + 1])
        return bad

    def _resample(
        self, regions: Sequence[Region], rows: Views, places: torch.Tensor, pool: ThreadPoolExecutor | None = None
    ) -> None:
        boxes, windows = rows.decode_box(), rows.source_window()
        if self.backend == "dali_gpu":
            resample_on_device(regions, boxes, windows, rows.flip, places)
            return
        work = list(zip(regions, boxes, windows, rows.flip, places.numpy(), strict=True))
        if pool:
            in_groups(pool, lambda row: resample(*work[row]), len(work))
        else:
            for one in work:
                resample(*one)

    def _empty(self, shape: Sequence[int]) -> torch.Tensor:
        """Room for grey levels, where they are resampled."""
        if self.backend == "dali_gpu":
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        if self.device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return _huge(shape, np.uint8)

    def _regions(
        self, split: Split, wanted: Iterator[tuple[Ints, Ints]], pool: ThreadPoolExecutor, readers: ThreadPoolExecutor
    ) -> Iterator[list[Region | BadImageError]]:
        if self.backend != "torchvision":
            device = self.device if self.backend == "dali_gpu" else None
            return dali.regions(split, wanted, threads=self.workers, pool=pool, readers=readers, device=device)
        return torchvision.regions(split, wanted, pool=pool, readers=readers)

    def _replaced(self, split: Split, views: Views, row: int, reason: BadImageError) -> tuple[Views, Region]:
        """The views with a good image in a row, and that image."""
        if views.replacement is None:
            raise UserError(
                f"{split.name_of(int(views.image[row]))} is bad since it was indexed ({reason}), and an error rate "
                f"counts every image; restore it, or index the data again"
            )
        self.bad.note(split, int(views.image[row]), reason)
        for attempt in count(1):
            other = views.replacement(row, attempt)
            image = int(other.image[0])
            if image in views.image and attempt < len(split):
                continue  # a batch shows no image twice unless there are too few
            encoded = split.read_or_reason(image)
            region = whole_region(encoded, split.size[image]) if isinstance(encoded, bytes) else encoded
            if isinstance(region, Region):
                return views.with_row(row, other), region
            self.bad.note(split, image, region)
            if attempt > 2 * len(split):
                raise UserError(f"no image of {split.name} is left that can be read; restore the data")
        raise AssertionError


class _Pieces:
    """What one of n processes renders: every n-th piece, as (grey levels, bad rows)."""

    def __init__(self, loader: Loader, split: Split, stream: Iterable[Views]) -> None:
        self._loader, self._split, self._stream = loader, split, stream

    def part(self, number: int, parts: int) -> Iterator[tuple[torch.Tensor, dict[int, BadImageError]]]:
        """In order, for process `number` of `parts`."""
        for views, first, fill in self._loader._by_threads(
            self._split, islice(self._loader._cut(self._stream), number, None, parts)
        ):
            rows = min(self._loader.piece, len(views) - first)
            pixels = shared_empty((rows, *views.shape, 3))
            yield pixels, fill(pixels)


def _copied(pixels: torch.Tensor, bad: dict[int, BadImageError], places: torch.Tensor) -> dict[int, BadImageError]:
    places.copy_(pixels)
    return bad


def _huge(shape: Sequence[int], dtype: type[np.generic]) -> torch.Tensor:
    """An empty tensor made by NumPy, which asks the system for huge pages: fewer faults, a fifth of a batch's time."""
    return torch.from_numpy(np.empty(shape, dtype))


def has_dali() -> bool:
    """Whether DALI is installed."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        return False


@cache
def _note_stripped() -> None:
    echo("DALI cannot be used under python -OO, which drops docstrings: PIL decodes the images, slower")


def make_loader(data: Data, device: torch.device, cores: int | None = None) -> Loader:
    """The loader a configuration asks for; with as many threads as `cores`, by default those this process may run on.

    Raises UserError when DALI is asked for and missing, or cannot be used.
    """
    present = has_dali()
    if data.backend in ("dali", "dali_gpu") and not present:
        raise UserError(
            f"data.backend={data.backend}, but nvidia-dali is not installed; install it or set data.backend=torchvision"
        )
    if present and sys.flags.optimize > 1 and data.backend != "torchvision":
        if data.backend != "auto":
            raise UserError(
                f"data.backend={data.backend}, but DALI cannot be used under python -OO, which drops docstrings; leave "
                f"-OO (PYTHONOPTIMIZE=2) out, or set data.backend=torchvision"
            )
        present = False
        _note_stripped()
    if data.backend == "dali_gpu" and device.type != "cuda":
        raise UserError("data.backend=dali_gpu needs a CUDA device, and this rank has none; set data.backend=dali")
    workers = data.workers or cores or len(os.sched_getaffinity(0))
    processes = data.processes
    if processes is None:
        processes = -(-workers // 2) if device.type == "cuda" else 0
    found: Literal["dali", "torchvision"] = "dali" if present else "torchvision"
    backend = found if data.backend == "auto" else data.backend
    if backend == "dali_gpu":
        processes = 0  # its work is on the device
    return Loader(backend, data.mean, workers, device, processes=min(processes, workers), bad=BadImages(data.max_bad))
