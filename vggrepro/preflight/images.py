"""Checks of images, boxes and other data sets, and of the reading speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.preflight.check import Check

if TYPE_CHECKING:
    from vggrepro.config.recipes import Graph
    from vggrepro.data.images.index import Index
_PROBE_IMAGES = 256
_PROBE_S = 3.0
_SLOW_IMAGES_PER_S = 100


def images(config: Config) -> Iterator[Check]:
    """Checks the images without a scan: compares an index with its files; a folder only has to exist."""
    root, index = config.data.root, config.data.index
    if index is not None:
        from vggrepro.data.images.index import load

        try:
            made = load(index)
        except UserError as error:
            yield Check("index", "fail", str(index), str(error))
            return
        summary = made.summary()
        found = f"{index}: {summary['usable']:,} of {summary['images']:,} images, {summary['classes']} classes"
        if summary["classes"] != config.model.classes:
            yield Check("index", "fail", found, f"set model.classes={summary['classes']}, or name another data.index")
        elif summary["rejected"]:
            yield Check(
                "index", "warn", f"{found}, {summary['rejected']} unusable", "`vggrepro index --report` lists them"
            )
        else:
            yield Check("index", "ok", found)
        if not summary["splits"]["train"]:
            remedy = "enough for `vggrepro evaluate`; to train, index the training images as well"
            yield Check("training images", "warn", f"{index} has none", remedy)
        yield from _reading(made)
    elif root is None:
        yield Check("images", "fail", "data.root is not set", "set data.root, or data.index")
    elif root.startswith("builtin:"):
        yield Check("images", "ok", f"{root}, generated on demand")
    elif Path(root).exists():
        yield Check("images", "ok", f"{root}; scanned when a stage first needs it, or now with `vggrepro index`")
    else:
        yield Check("images", "fail", f"{root} does not exist", "correct data.root")


def require_sets(config: Config) -> None:
    """Raises UserError if a data set of a stage's tests is missing, before the stage is trained."""
    for name, source in config.transfer.sets.items():
        if not source.exists():
            raise UserError(f"transfer.sets.{name}={source} of stage {config.name} does not exist; correct the path")


def boxes(config: Config) -> Iterator[Check]:
    """Checks that a stage that predicts boxes has annotations; their contents are not read."""
    root, index, made = config.data.root, config.data.index, config.data.boxes
    remedy = "put the annotations beside the images, or make data.boxes with `vggrepro boxes`"
    if made is not None:
        if made.exists():
            yield Check("boxes", "ok", str(made))
        else:
            yield Check("boxes", "fail", f"{made} does not exist", "make it with `vggrepro boxes`")
    elif root is not None and root.startswith("builtin:"):
        yield Check("boxes", "ok", f"of {root}, generated on demand")
    elif root is not None and Path(root).exists():
        from vggrepro.data.boxes.box_scan import beside

        found = beside(Path(root))
        if found:
            yield Check("boxes", "ok", f"{', '.join(map(str, found))}; read when a stage first needs them")
        else:
            yield Check("boxes", "fail", f"no annotations beside {root}", remedy)
    elif index is not None:
        yield Check("boxes", "warn", "data.boxes is not set: looked for beside the images of the index", remedy)


def data_sets(graph: Graph) -> Iterator[Check]:
    """Checks each data set of features once, by its lists; no image is read."""
    seen = set()
    for config in graph.stages.values():
        for name, path in config.transfer.sets.items():
            if (name, path) not in seen:
                seen.add((name, path))
                yield _data_set(name, path, config)


def _data_set(name: str, path: Path, config: Config) -> Check:
    from vggrepro.data.transfer.transfer_scan import list_transfer
    from vggrepro.evaluation.feature_spec import drawing_of

    try:
        found = list_transfer(name, path, drawing_of(name, config.transfer))
    except UserError as error:
        return Check(f"data set {name}", "fail", str(path), str(error))
    persons = f", {found.samples:,} persons" if found.samples != found.images else ""
    return Check(f"data set {name}", "ok", f"{path}: {found.images:,} images{persons}, {found.classes} classes")


def _reading(index: Index) -> Iterator[Check]:
    """Measures reading of images in random order, as in training; the page cache is not bypassed."""
    import numpy as np

    from vggrepro.data.decode import BadImageError

    split = index.split("train" if len(index.split("train")) else "val")
    rows = np.random.default_rng(0).permutation(len(split))[:_PROBE_IMAGES]
    read = size = 0
    started = time.perf_counter()
    try:
        for row in rows.tolist():
            size += len(split.read(row))
            read += 1
            if time.perf_counter() - started > _PROBE_S:
                break
    except BadImageError as error:
        yield Check("reading", "fail", f"{split.name_of(row)}: {error}", "restore the images, or index them again")
        return
    except UserError as error:
        found, _, remedy = str(error).rpartition("; ")
        yield Check("reading", "fail", found, remedy)
        return
    seconds = max(time.perf_counter() - started, 1e-9)
    found = f"{read / seconds:,.0f} images/s, {size / 2**20 / seconds:,.0f} MiB/s at random, in one thread"
    if read / seconds < _SLOW_IMAGES_PER_S:
        remedy = "a GPU trains D on thousands per second: put the images on a faster file system"
        yield Check("reading", "warn", found, remedy)
    else:
        yield Check("reading", "ok", found)
