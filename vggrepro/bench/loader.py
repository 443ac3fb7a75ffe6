"""Loading of training images beside torchvision's ImageFolder in a DataLoader, with the same augmentation."""

import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from vggrepro.bench.machine import name_of, wait_for
from vggrepro.bench.turns import rates_in_turn, ratios, result
from vggrepro.config.settings import Config, Data
from vggrepro.data.images import sample_set
from vggrepro.data.images.index import Split, require_training_images
from vggrepro.data.images.scan import open_index, scan_folder
from vggrepro.data.loading import dali
from vggrepro.data.loading.loader import make_loader
from vggrepro.data.sampler import MicroBatches, TrainingSampler, colour_components
from vggrepro.data.views import Views

_UNTIMED = 6  # batches at the start of a turn that may have been prefetched in the last one


def run(
    config: Config, images: int, batch: int, batches: int, rounds: int, threads: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Times our backends and the usual way in turn: `rounds` turns of `batches` training batches each.

    All read the same `images` files, copied into a temporary folder, so their bytes come from the page cache; each has
    one decoding thread or process per core. ours: DALI if installed; dali_gpu: the same with a GPU; ceiling: DALI
    decoding the same regions only. `threads` adds ours with these numbers of threads, in this process and in separate
    processes, as on a rank with a GPU. Rates are images per second of processor time, which other load disturbs least;
    the details have images per second of wall time. Raises UserError.
    """
    workers = config.data.workers or len(os.sched_getaffinity(0))
    data = config.data.model_copy(update={"workers": workers})
    with tempfile.TemporaryDirectory(prefix="vggrepro-bench-") as folder:
        source = str(sample_set.ensure(Path(folder))) if data.root == sample_set.ROOT else data.root
        index = open_index(source, data.index, Path(folder), lambda done, total: None)
        require_training_images(index)
        root = Path(folder) / "images"
        _copied(index.split("train"), index.classes, images, root)
        split = scan_folder(root).split("train")
        sampler = TrainingSampler(split.size, data, config.model.crop, config.run.seed)
        present = make_loader(data, torch.device("cpu")).backend
        on_gpu = present == "dali" and torch.cuda.is_available()
        backends = dict.fromkeys((present, "torchvision", *(["dali_gpu"] if on_gpu else [])))
        endless = MicroBatches(sampler, batch, (slice(0, batch),), 0, 2**31)
        ways: dict[str, Generator[object]] = {
            backend: _ours(data.model_copy(update={"backend": backend}), split, endless) for backend in backends
        }
        for number in threads:
            for processes in (0, -(-number // 2)):
                changes = {"backend": present, "workers": number, "processes": processes}
                name = f"{number} threads in {processes} processes" if processes else f"{number} threads"
                ways[name] = _ours(data.model_copy(update=changes), split, endless)
        ways["usual"] = _usual(config, root / "train", batch, workers)
        if present == "dali":
            ways["decode_only"] = _decode_only(split, endless, workers)

        def prepare(name: str) -> None:
            _wait_for_quiet()
            deque(islice(ways[name], _UNTIMED), maxlen=0)

        turns = {name: partial(next, way) for name, way in ways.items()}
        wall, cpu = rates_in_turn(turns, rounds, batches, batch, time.perf_counter, _busy, prepare=prepare)
        for way in ways.values():
            way.close()
    details = {
        **{f"{name} images/s/core": _spread(rates) for name, rates in cpu.items()},
        **{f"{name} images/s": _spread(rates) for name, rates in wall.items()},
        "ratio_by_wall_time": statistics.median(ratios(wall[present], wall["usual"])),
        "images": len(split),
        "median_size": np.median(split.size, axis=0).tolist(),
        "mean_bytes": float(split.length.mean()),
        "S": list(config.data.S_range),
        "crop": config.model.crop,
        "colour_shift": config.data.colour_shift.mode,
        "batch": batch,
        "batches": batches,
        "rounds": rounds,
        "workers": workers,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "processor": name_of(torch.device("cpu")),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchvision", "pillow")}
        | ({"dali": dali.version()} if present == "dali" else {}),
    }
    ceiling = statistics.median(cpu["decode_only"]) if "decode_only" in cpu else None
    return result("loader", cpu[present], cpu["usual"], "images/s/core", details, ceiling)


def _spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}


def _copied(split: Split, classes: tuple[str, ...], images: int, root: Path) -> None:
    """Copies `images` random training images into ImageFolder's layout; one is also a validation image."""
    order = np.random.default_rng(0).permutation(len(split))[:images]
    for image in order:
        for part in ("train", "val") if image == order[0] else ("train",):
            name = Path(split.name_of(int(image))).name
            file = root / part / classes[split.label[image]] / f"{image}-{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(split.read(int(image)))


def _ours(data: Data, split: Split, stream: Iterable[Views]) -> Generator[None]:
    device = torch.device("cuda", 0) if data.backend == "dali_gpu" else torch.device("cpu")
    with closing(make_loader(data, device).batches(split, stream)) as batches:
        for _ in batches:
            wait_for(device)
            yield


def _decode_only(split: Split, stream: Iterable[Views], workers: int) -> Generator[object]:
    wanted = (views.decode_boxes()[:2] for views in stream)
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(workers) as readers:
        yield from dali.regions(split, wanted, threads=workers, pool=pool, readers=readers)


class ShiftColours(v2.Transform):
    """AlexNet's colour shift of a float image in [0, 1], which torchvision lacks."""

    def __init__(self, components: torch.Tensor) -> None:
        super().__init__()
        self.components = components / 255

    def transform(self, image: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Shifts the colours of an image (3, h, w)."""
        return image + (torch.randn(3) @ self.components)[:, None, None]


def usual_transform(config: Config) -> v2.Transform:
    """Composes the augmentation of Section 3.1 from torchvision's transforms, for a PIL image."""
    low, high = config.data.S_range
    steps: list[v2.Transform] = [v2.RandomResize(low, high + 1), v2.RandomCrop(config.model.crop)]
    if config.data.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    if config.data.colour_shift.mode != "off":
        steps.append(ShiftColours(torch.from_numpy(colour_components(config.data.colour_shift)).float()))
    steps.append(v2.Normalize([level / 255 for level in config.data.mean], [1 / 255] * 3))
    return v2.Compose(steps)


def _usual(config: Config, folder: Path, batch: int, workers: int) -> Generator[object]:
    images = datasets.ImageFolder(str(folder), usual_transform(config))
    loader = DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    while True:
        yield from loader


def _wait_for_quiet() -> None:
    """Waits until the previous implementation has finished prefetching."""
    before = _busy()
    while True:
        time.sleep(0.2)
        if (now := _busy()) - before < 0.01:
            return
        before = now


def _busy() -> float:
    """Returns the processor seconds of this process and its running workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return total
