"""Training images beside the usual way: torchvision's ImageFolder in a DataLoader, with the same augmentation."""

import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from vggrepro.bench.machine import name_of
from vggrepro.config.settings import Config
from vggrepro.data import dali, sample_set
from vggrepro.data.index import Split, require_training_images
from vggrepro.data.loader import make_loader
from vggrepro.data.sampler import MicroBatches, TrainingSampler, colour_components
from vggrepro.data.scan import open_index, scan_folder

_UNTIMED = 6  # batches at the start of a turn, which may be ready since the last one


def run(
    config: Config, images: int, batch: int, batches: int, rounds: int, threads: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Loads training batches in turn by our backends and by the usual way, `rounds` times `batches` of them.

    All read the same `images` files, copied out of the data set into a temporary folder, so their bytes come from the
    page cache; each has as many decoding threads or processes as this one has cores. ours: DALI where it is installed;
    dali_gpu: the same with a GPU's help, where there is one; ceiling: DALI decoding the same regions and nothing else.
    For each number of `threads` ours once more with so many, in this process and, as on a rank with a GPU, in others.
    Rates are images per second of processor time, which other users of the machine disturb least; images per second of
    wall time are in the details. Raises UserError.
    """
    workers = config.data.workers or len(os.sched_getaffinity(0))
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    with tempfile.TemporaryDirectory(prefix="vggrepro-bench-") as folder:
        digits = config.data.root == sample_set.ROOT
        source = str(sample_set.ensure(Path(folder))) if digits else config.data.root
        whole = open_index(source, config.data.index, Path(folder), _quiet)
        require_training_images(whole)
        root = Path(folder) / "images"
        _copied(whole.split("train"), whole.classes, images, root)
        split = scan_folder(root).split("train")
        sampler = TrainingSampler(split.size, config.data, config.model.crop, config.run.seed)
        present = make_loader(config.data, torch.device("cpu")).backend
        on_gpu = present == "dali" and torch.cuda.is_available()
        backends = dict.fromkeys((present, "torchvision", *(["dali_gpu"] if on_gpu else [])))
        ways = {backend: _ours(config, backend, split, sampler, batch) for backend in backends}
        for number in threads:
            for processes in (0, -(-number // 2)):
                data = config.data.model_copy(update={"workers": number, "processes": processes})
                name = f"{number} threads in {processes} processes" if processes else f"{number} threads"
                ways[name] = _ours(config.model_copy(update={"data": data}), present, split, sampler, batch)
        ways["usual"] = _usual(config, root / "train", batch, workers)
        if present == "dali":
            ways["decode_only"] = _decode_only(split, sampler, batch, workers)
        wall, cpu = _timed(ways, batches, rounds)
        for way in ways.values():
            way.close()
    ours = statistics.median(cpu[present])
    return {
        "name": "loader",
        "ours": ours,
        "usual": statistics.median(cpu["usual"]),
        "ratio": statistics.median([a / b for a, b in zip(cpu[present], cpu["usual"], strict=True)]),
        "unit": "images/s/core",
        "ceiling": statistics.median(cpu["decode_only"]) if "decode_only" in cpu else None,
        "details": {
            **{f"{name} images/s/core": _spread(rates) for name, rates in cpu.items()},
            **{f"{name} images/s": _spread(rates) for name, rates in wall.items()},
            "ratio_by_wall_time": statistics.median([a / b for a, b in zip(wall[present], wall["usual"], strict=True)]),
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
        },
    }


def _quiet(done: int, total: int) -> None:
    pass


def _spread(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates)}


def _copied(split: Split, classes: tuple[str, ...], images: int, root: Path) -> None:
    """The first `images` training images of a shuffled order as ImageFolder wants them; one of them tests, too."""
    order = np.random.default_rng(0).permutation(len(split))[:images]
    for image in order:
        for part in ("train", "val") if image == order[0] else ("train",):
            name = Path(split.name_of(int(image))).name
            file = root / part / classes[split.label[image]] / f"{image}-{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(split.read(int(image)))


def _ours(config: Config, backend: str, split: Split, sampler: TrainingSampler, batch: int) -> Generator[int]:
    data = config.data.model_copy(update={"backend": backend})
    on_gpu = backend == "dali_gpu"
    loader = make_loader(data, torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    with closing(loader.batches(split, MicroBatches(sampler, batch, (slice(0, batch),), 0, 2**31))) as endless:
        for loaded in endless:
            if on_gpu:
                torch.cuda.synchronize()
            yield len(loaded.labels)


def _decode_only(split: Split, sampler: TrainingSampler, batch: int, workers: int) -> Generator[int]:
    wanted = (sampler.views(step * batch, batch).decode_boxes()[:2] for step in count())
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(workers) as readers:
        for regions in dali.regions(split, wanted, threads=workers, pool=pool, readers=readers):
            yield len(regions)


class ColourShift(v2.Transform):
    """AlexNet's colour shift, which torchvision has not: of a float image in [0, 1]."""

    def __init__(self, components: torch.Tensor) -> None:
        super().__init__()
        self.components = components / 255

    def transform(self, image: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """(3, h, w)"""
        return image + (torch.randn(3) @ self.components)[:, None, None]


def usual_transform(config: Config) -> v2.Transform:
    """The augmentation of Section 3.1 as torchvision's documentation composes it: of one PIL image, in a worker."""
    low, high = config.data.S_range
    steps: list[v2.Transform] = [v2.RandomResize(low, high + 1), v2.RandomCrop(config.model.crop)]
    if config.data.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    if config.data.colour_shift.mode != "off":
        steps.append(ColourShift(torch.from_numpy(colour_components(config.data.colour_shift)).float()))
    steps.append(v2.Normalize([level / 255 for level in config.data.mean], [1 / 255] * 3))
    return v2.Compose(steps)


def _usual(config: Config, folder: Path, batch: int, workers: int) -> Generator[int]:
    data = datasets.ImageFolder(str(folder), usual_transform(config))
    loader = DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    for _ in count():
        for images, _labels in loader:
            yield len(images)


def _timed(
    ways: dict[str, Generator[int]], batches: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Images per second of wall time and of processor time, by way and round."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            _wait_for_quiet()
            for _ in islice(way, _UNTIMED):
                pass
            clock, busy = time.perf_counter(), _busy()
            images = sum(islice(way, batches))
            wall[name].append(images / (time.perf_counter() - clock))
            cpu[name].append(images / (_busy() - busy))
    return wall, cpu


def _wait_for_quiet() -> None:
    """Until the way whose turn it was has prepared what it prepares ahead."""
    before = _busy()
    while True:
        time.sleep(0.2)
        if (now := _busy()) - before < 0.01:
            return
        before = now


def _busy() -> float:
    """Processor seconds of this process and the worker processes that it has running."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return total
