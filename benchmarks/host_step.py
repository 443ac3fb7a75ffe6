"""Work of the host in a training step, on one thread: planning, drawing, launching, waiting.

    python benchmarks/host_step.py [IMAGES]

A GPU at 5,000 images/s leaves 51 ms for 256 images and 6.4 ms for 32. Two threads of a rank have that time each: one
prefetches (views, dropout masks, the loader), one launches the step. What the second does is measured on net D with
hardly any arithmetic in it, in operations and in time; and, given a folder or an archive of photographs, once more
while the loader decodes beside it: in threads of the same process, which share Python's lock, and in another process.
"""

import argparse
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vggrepro.bench.step import trainer_of
from vggrepro.config.settings import Config, Data, Model, Train
from vggrepro.data.images.index import Split
from vggrepro.data.images.scan import open_index
from vggrepro.data.loading.loader import Batch, make_loader
from vggrepro.data.sampler import MicroBatches, TrainingSampler, dropout_masks, permutation
from vggrepro.paper import value
from vggrepro.storage.environment import environment

_VIEWS = {"view", "_unsafe_view", "t", "transpose", "detach", "as_strided", "expand", "alias", "unsqueeze", "slice"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="photographs to decode beside the step")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each way of the step, in turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampler = TrainingSampler(np.full((value("train_images"), 2), (500, 375)), Data(S=(256, 512)), value("crop"), 0)
    started = time.thread_time()
    sampler.order(np.zeros(1, np.int64))
    details: dict[str, Any] = {"permutation of an epoch, s": time.thread_time() - started}
    assert permutation.cache_info().currsize == 1
    for rows in (256, 32):
        views = sampler.views(0, rows)
        drawn = dropout_masks(0, 0, 256, slice(0, rows), (4096, 4096), 0.5)
        parts: dict[str, Callable[[], object]] = {
            "views": lambda rows=rows: sampler.views(0, rows),
            "regions to decode": views.decode_boxes,
            "windows": lambda views=views: (views.decode_box(), views.source_window()),
            "dropout masks": lambda rows=rows: dropout_masks(0, 0, 256, slice(0, rows), (4096, 4096), 0.5),
            "masks into pinned memory": lambda drawn=drawn: [torch.from_numpy(mask).contiguous() for mask in drawn],
        }
        details[f"prefetching, ms for {rows} images"] = {name: _ms(part) for name, part in parts.items()}
    for micro_batches in (1, 4):
        step, operations = _step(micro_batches)
        details[f"step of D in {micro_batches} micro-batches"] = {"operations": operations, "ms": _ms(step)}
    if arguments.images:
        details["beside the loader"] = _beside_the_loader(arguments.images, arguments.seconds)
    details |= {"load_average": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)), "versions": environment()}
    print(json.dumps({"name": "host-step", "unit": "ms", "details": details}, indent=1))


def _ms(part: Callable[[], object]) -> float:
    """Median of the thread's own time, so that other users of the machine count for little."""
    taken = []
    for _ in range(41):
        started = time.thread_time()
        part()
        taken.append(1000 * (time.thread_time() - started))
    return statistics.median(taken[1:])


class _Counting(TorchDispatchMode):
    """Counts operations that a device would have to launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.launched += function.overloadpacket.__name__ not in _VIEWS
        return function(*arguments, **(options or {}))


def _step(micro_batches: int) -> tuple[Callable[[], None], int]:
    """A step of D that has next to nothing to compute, and the number of its operations."""
    model = Model(net="D", classes=10, crop=32, width=1 / 64)
    config = Config(model=model, train=Train(batch=micro_batches, micro_batch=1, learning_rate=1e-6))
    trainer = trainer_of(config, torch.device("cpu"))
    images = torch.randn(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    masks = tuple(torch.ones(1, units, dtype=torch.bool) for units in trainer.net.fc_widths)
    batch = Batch(images, torch.zeros(1, dtype=torch.int64), None, masks)  # type: ignore[arg-type]
    endless, number = itertools.repeat(batch), itertools.count()

    def step() -> None:
        trainer.step(next(number), endless, 1e-6)

    step()
    with _Counting() as counting:
        step()
    return step, counting.launched


def _beside_the_loader(images: str, seconds: float) -> dict[str, Any]:
    """A step alone and beside a loader at full pace, in turns; one decoding thread, so that two cores suffice.

    What a step waits for is divided as Linux accounts for it: until a core is free, which is a matter of this machine,
    and all else, which is Python's lock.
    """
    step, _ = _step(1)
    with TemporaryDirectory() as folder:
        split = open_index(images, None, Path(folder), lambda done, total: None).split("train")
        loaders = {name: _Loading(split, processes) for name, processes in (("threads", 0), ("a process", 1))}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ("nothing", *loaders)}
        for _ in range(max(3, round(seconds / 2))):
            found["nothing"].append(_waits(step, 1.0))
            for name, loading in loaders.items():
                loading.go()
                before, started = loading.loaded, time.perf_counter()
                waits = _waits(step, 2.0)
                rate = (loading.loaded - before) / (time.perf_counter() - started)
                found[name].append(waits | {"loader, images/s": rate})
                loading.pause()
        for loading in loaders.values():
            loading.end()
    medians = {
        f"beside {name}": {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        for name, turns in found.items()
    }
    return {"backend": loading.backend, **medians}


class _Loading:
    """Batches of 64 made and thrown away by a thread, while it is let."""

    def __init__(self, split: Split, processes: int) -> None:
        data = Data(S=(256, 512), workers=1, processes=processes)
        sampler = TrainingSampler(split.size, data, value("crop"), 0)
        loader = make_loader(data, torch.device("cpu"))
        self.backend = loader.backend
        self.loaded = 0
        self._batches = loader.batches(split, MicroBatches(sampler, 64, (slice(0, 64),), 0, 10**6))
        self._may, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._load)
        self.go()
        self._thread.start()
        while not self.loaded:
            time.sleep(0.1)
        self.pause()

    def _load(self) -> None:
        for batch in self._batches:
            self.loaded += len(batch.labels)
            self._may.wait()
            if self._ended:
                break
        self._batches.close()

    def go(self) -> None:
        """Runs without a pause."""
        self._may.set()

    def pause(self) -> None:
        """Waits until what is under way has come to its end."""
        self._may.clear()
        time.sleep(1.0)

    def end(self) -> None:
        """Closes the loader."""
        self._ended = True
        self.go()
        self._thread.join()


def _waits(step: Callable[[], None], seconds: float) -> dict[str, float]:
    """Mean ms of a step: in all, at work, waiting for a core, waiting for Python's lock."""
    until, number = time.perf_counter() + seconds, 0
    started, (worked, queued) = time.perf_counter(), _schedule()
    while time.perf_counter() < until:
        step()
        number += 1
    wall, (worked_since, queued_since) = time.perf_counter() - started, _schedule()
    work, queue = worked_since - worked, queued_since - queued
    parts = {"step, ms": wall, "work": work, "for a core": queue, "for the lock": wall - work - queue}
    return {name: 1000 * taken / number for name, taken in parts.items()}


def _schedule() -> tuple[float, float]:
    """Seconds that this thread has run, and those that it could have run but had no core."""
    ran, queued, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran) / 1e9, int(queued) / 1e9


if __name__ == "__main__":
    main()
