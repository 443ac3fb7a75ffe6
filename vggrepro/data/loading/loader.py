"""The loader: renders views as batches on a device, with any backend."""

import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice, tee
from typing import Literal

import numpy as np
import torch

from vggrepro.config.settings import Data
from vggrepro.data.decode import BadImageError, Region, blaming_the_machine, full_region, in_groups, resample
from vggrepro.data.images.index import Split
from vggrepro.data.loading import dali
from vggrepro.data.loading.prefetch import made_ahead, prefetch, to_device
from vggrepro.data.loading.processes import in_order, shared_empty
from vggrepro.data.loading.resample import resample_on_device
from vggrepro.data.views import Ints, Views
from vggrepro.errors import UserError
from vggrepro.progress import warn


@dataclass(frozen=True)
class Batch:
    """A batch of images as the net sees them."""

    images: torch.Tensor
    """RGB in grey levels (0-255), minus the mean, divided by std, shape (N, 3, h, w), channels last in memory."""
    labels: torch.Tensor
    """Class numbers, int64, shape (N,)."""
    views: Views
    """The rendered views: those requested, with replacements in the rows of bad images."""
    dropout_masks: tuple[torch.Tensor, torch.Tensor] | None = None
    """Retained units of fc6 and fc7 in training with dropout, bool, shapes (N, units)."""
    targets: torch.Tensor | None = None
    """Encoded boxes in training on boxes, float32, shape (N, 4), as of `models.boxes.encode`."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Prevents reuse of the memory until all work queued on `stream` so far is done."""
        for tensor in (self.images, self.labels, self.targets, *(self.dropout_masks or ())):
            if tensor is not None:
                tensor.record_stream(stream)


class BadImages:
    """Counts the training images of a rank that have gone bad since they were indexed, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}  # reasons by the path of the image

    def note(self, split: Split, image: int, reason: BadImageError) -> None:
        """Counts and reports a bad image, the first time only. Raises UserError beyond the limit."""
        name = split.name_of(image)
        if name in self.reasons:
            return
        self.reasons[name] = str(reason)
        if len(self.reasons) > self.limit:
            raise UserError(
                f"{name} is bad since it was indexed ({reason}), and data.max_bad={self.limit}; "
                f"restore the data, or index it again, or raise data.max_bad"
            )
        warn(f"{name} is bad since it was indexed ({reason}); another image replaces it ({len(self.reasons)} so far)")


_Piece = tuple[Views, slice, Callable[[torch.Tensor], dict[int, BadImageError]]]
"""Views of a batch, the rows of the piece, and a function that writes the grey levels of these rows to a tensor, shape
(n, h, w, 3), and returns why images are bad, by row in the piece."""


@dataclass(frozen=True)
class Loader:
    """Renders views as batches. Training and testing share this class, and so the decoder and the resampling filter.

    Args:
        backend: Decoder; `dali_gpu` decodes and resamples on `device`.
        mean: Mean RGB to subtract, grey levels (0-255).
        workers: Decoding threads of all processes together.
        std: Divisor of R, G and B after subtraction, for weights that were trained with one.
        dtype: Type of the images; a half-precision type gives what autocast would cast them to.
        readers: Threads that wait for files, of all processes together.
        processes: Other processes that decode and resample; 0: this process does.
        piece: Maximum number of images decoded at once, which limits the memory for dense evaluation's large images.
        bad: Counter of bad images, shared by all batches.
    """

    backend: Literal["dali", "dali_gpu", "torchvision"]
    mean: tuple[float, float, float]
    workers: int
    device: torch.device
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: torch.dtype = torch.float32
    readers: int = 16
    processes: int = 0
    piece: int = dali.MOST
    bad: BadImages = field(default_factory=lambda: BadImages(0), compare=False)

    def batches(self, split: Split, stream: Iterable[Views]) -> Generator[Batch]:
        """Renders a stream of views in the background, ahead of use, and yields a batch per `Views`, in order.

        An image that has gone bad since it was indexed is replaced as the sampler decides.

        Raises:
            UserError: A bad image has no replacement (in testing, where every image counts), more than `data.max_bad`
                images have gone bad, or the machine fails to read or decode.
        """
        return prefetch(self.render(split, stream), self.device)

    def render(self, split: Split, stream: Iterable[Views]) -> Generator[Batch]:
        """Renders like :meth:`batches`, but in the foreground, for callers that prefetch themselves."""
        pieces = self._by_processes(split, stream) if self.processes else self._by_threads(split, self._cut(stream))
        with closing(pieces), blaming_the_machine():
            for views, rows, fill in pieces:
                if rows.start == 0:
                    shown = views
                    pixels = self._empty((len(views), *views.shape, 3))
                for row, reason in fill(pixels[rows]).items():
                    replaced = slice(rows.start + row, rows.start + row + 1)
                    shown, region = self._replaced(split, shown, replaced.start, reason)
                    self._fill([region], shown[replaced], None, pixels[replaced])
                if rows.stop == len(views):
                    labels = torch.from_numpy(split.label[shown.image])
                    yield Batch(self._images(shown, pixels), to_device(labels, self.device), shown)

    def _images(self, views: Views, pixels: torch.Tensor) -> torch.Tensor:
        """Normalises grey levels, shape (N, h, w, 3), in pinned memory or on the device."""
        if self.device.type == "cpu":
            images = _huge(pixels.shape, np.float32).copy_(pixels)
        else:
            images = to_device(pixels, self.device).float()
        offset = to_device(torch.from_numpy(np.array(self.mean, np.float32) - views.shift), self.device)
        # rows of w * 3 numbers, because vector units gain nothing from three at a time
        images.view(len(views), views.shape[0], -1).sub_(offset.repeat(1, views.shape[1])[:, None])
        if self.std != (1.0, 1.0, 1.0):
            images /= to_device(torch.tensor(self.std), self.device)
        return images.to(self.dtype).permute(0, 3, 1, 2)

    def _cut(self, stream: Iterable[Views]) -> Iterator[tuple[Views, slice]]:
        """Yields each `Views` with the rows of every piece."""
        for views in stream:
            for first in range(0, len(views), self.piece):
                yield views, slice(first, min(first + self.piece, len(views)))

    def _by_threads(self, split: Split, cut: Iterable[tuple[Views, slice]]) -> Generator[_Piece]:
        """Yields pieces that threads of this process decode ahead of use, and resample on request."""
        pieces, ahead = tee((views, rows, *views[rows].decode_boxes()) for views, rows in cut)
        wanted = ((images, boxes) for _, _, images, boxes, _ in ahead)
        # waiting for disks and networks takes more threads than decoding
        with ThreadPoolExecutor(self.workers) as pool, ThreadPoolExecutor(self.readers) as readers:
            if self.backend == "torchvision":
                decoded = _full_regions(split, (images for images, _ in wanted), pool, readers)
            else:
                device = self.device if self.backend == "dali_gpu" else None
                decoded = dali.regions(split, wanted, threads=self.workers, pool=pool, readers=readers, device=device)
            for regions, (views, rows, _, _, which) in zip(decoded, pieces, strict=True):
                yield views, rows, partial(self._fill, [regions[number] for number in which], views[rows], pool)

    def _by_processes(self, split: Split, stream: Iterable[Views]) -> Generator[_Piece]:
        """Yields pieces of other processes, each of which iterates over the stream and renders every n-th piece."""
        worker = replace(
            self,
            device=torch.device("cpu"),
            workers=-(-self.workers // self.processes),
            readers=-(-self.readers // self.processes),
            processes=0,
        )
        with closing(in_order(partial(worker._share, split, stream), self.processes)) as arrived:
            for views, rows in self._cut(stream):
                yield views, rows, partial(_copied, *next(arrived))

    def _share(
        self, split: Split, stream: Iterable[Views], number: int, processes: int
    ) -> Iterator[tuple[torch.Tensor, dict[int, BadImageError]]]:
        """Yields grey levels and bad rows of the pieces number, number + processes, ..."""
        for views, rows, fill in self._by_threads(split, islice(self._cut(stream), number, None, processes)):
            pixels = shared_empty((rows.stop - rows.start, *views.shape, 3))
            yield pixels, fill(pixels)

    def _fill(
        self, regions: Sequence[Region | BadImageError], rows: Views, pool: ThreadPoolExecutor | None, out: torch.Tensor
    ) -> dict[int, BadImageError]:
        """Resamples the good regions into rows of `out`; returns the reasons for bad ones, by row."""
        good = {row: region for row, region in enumerate(regions) if isinstance(region, Region)}
        boxes, windows = rows.decode_box(), rows.source_window()
        if self.backend == "dali_gpu":
            for part in [slice(None)] if len(good) == len(regions) else [slice(row, row + 1) for row in good]:
                selected = [good[row] for row in range(len(regions))[part]]
                resample_on_device(selected, boxes[part], windows[part], rows.flip[part], out[part])
        else:
            pixels = out.numpy()
            tasks = [(region, boxes[row], windows[row], rows.flip[row], pixels[row]) for row, region in good.items()]
            if pool:
                in_groups(pool, lambda n: resample(*tasks[n]), len(tasks))
            else:
                for task in tasks:
                    resample(*task)
        return {row: region for row, region in enumerate(regions) if isinstance(region, BadImageError)}

    def _empty(self, shape: Sequence[int]) -> torch.Tensor:
        """Allocates grey levels on the device that resamples them."""
        if self.backend == "dali_gpu":
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        if self.device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return _huge(shape, np.uint8)

    def _replaced(self, split: Split, views: Views, row: int, reason: BadImageError) -> tuple[Views, Region]:
        """Returns views in which a good image replaces a bad row, and that image."""
        if views.replacement is None:
            raise UserError(
                f"{split.name_of(int(views.image[row]))} is bad since it was indexed ({reason}), and an error rate "
                f"counts every image; restore it, or index the data again"
            )
        self.bad.note(split, int(views.image[row]), reason)
        for attempt in range(1, 2 * len(split) + 2):
            other = views.replacement(row, attempt)
            image = int(other.image[0])
            if image in views.image and attempt < len(split):
                continue  # a batch shows no image twice unless there are too few
            region = full_region(split.read_or_reason(image), split.size[image])
            if isinstance(region, Region):
                return views.with_row(row, other), region
            self.bad.note(split, image, region)
        raise UserError(f"{split.name} has no readable image left; restore the data")


def _full_regions(
    split: Split, wanted: Iterator[Ints], pool: ThreadPoolExecutor, readers: ThreadPoolExecutor
) -> Iterator[list[Region | BadImageError]]:
    """Decodes full images for the torchvision backend, in threads: PIL releases the interpreter's lock."""

    def decoded(image: int, reading: Future[bytes | BadImageError]) -> Region | BadImageError:
        return full_region(reading.result(), split.size[image])

    def begun(images: Ints) -> list[Future[Region | BadImageError]]:
        reading = [(int(image), readers.submit(split.read_or_reason, int(image))) for image in images]
        return [pool.submit(decoded, *image) for image in reading]

    for batch in made_ahead(map(begun, wanted)):
        yield [future.result() for future in batch]


def _copied(pixels: torch.Tensor, bad: dict[int, BadImageError], out: torch.Tensor) -> dict[int, BadImageError]:
    out.copy_(pixels)
    return bad


def _huge(shape: Sequence[int], dtype: type[np.generic]) -> torch.Tensor:
    """Allocates with NumPy, which requests huge pages: fewer page faults save a fifth of a batch's time."""
    return torch.from_numpy(np.empty(shape, dtype))


def has_dali() -> bool:
    """Whether DALI is installed."""
    return all(importlib.util.find_spec(name) for name in ("nvidia", "nvidia.dali"))


@cache
def _note_stripped() -> None:
    warn("DALI cannot be used under python -OO, which drops docstrings; PIL decodes the images, more slowly")


def make_loader(data: Data, device: torch.device, cores: int | None = None) -> Loader:
    """Creates a configuration's loader; `cores` defaults to those usable. Raises UserError for an unusable backend."""
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
    if device.type == "cpu" and data.processes and not data.workers:
        workers = min(workers, data.processes)  # a core per process: the other cores compute
    processes = data.processes
    if processes is None:
        processes = -(-workers // 2) if device.type == "cuda" else 0
    found: Literal["dali", "torchvision"] = "dali" if present else "torchvision"
    backend = found if data.backend == "auto" else data.backend
    if backend == "dali_gpu":
        processes = 0  # the device does the work
    return Loader(backend, data.mean, workers, device, processes=min(processes, workers), bad=BadImages(data.max_bad))
