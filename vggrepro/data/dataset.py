"""Opens the data set of a configuration: its index, checked against the configuration, and its boxes."""

from collections.abc import Callable
from pathlib import Path

from vggrepro.config.settings import Config
from vggrepro.data.boxes.box_scan import open_boxes
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images import sample_set
from vggrepro.data.images.index import Index, require_training_images
from vggrepro.data.images.labels import ILSVRC
from vggrepro.data.images.scan import Progress, open_index
from vggrepro.errors import UserError
from vggrepro.paper import value


def open_data(config: Config, progress: Progress = lambda done, total: None, *, training: bool = True) -> Index:
    """Opens a configuration's index and checks it; `training` requires training images. Raises UserError."""
    root = None if config.data.index else _root_of(config)
    index = open_index(root, config.data.index, config.run.root / "index", progress)
    if training:
        require_training_images(index)
    if len(index.classes) != config.model.classes:
        remedy = (
            f"set model.classes={len(index.classes)} or another data.root"
            if training
            else "a net is tested on images of its own classes; if the images cover only some of them, list all: "
            f"`vggrepro index ... --classes {ILSVRC if config.model.classes == value('classes') else 'FILE'}`"
        )
        raise UserError(f"model.classes={config.model.classes}, but {index.source} has {len(index.classes)}; {remedy}")
    if not len(index.split("val")):
        raise UserError(f"{index.source} has no usable image in val; `vggrepro index --report` lists the reasons")
    if (rejected := index.split("val").rejected) > config.data.max_rejected_val:
        raise UserError(
            f"{rejected} validation images of {index.source} cannot be read, but an error rate counts every image; "
            f"replace those that `vggrepro index --report` lists, or set data.max_rejected_val={rejected} to test on "
            f"the others"
        )
    return index


def open_boxes_of(config: Config, index: Index, progress: Callable[[int], None]) -> BoxSet:
    """Opens the boxes of a configuration's images; calls `progress(annotations read)`. Raises UserError."""
    root, cache = _root_of(config), config.run.root / "index"
    return open_boxes(index, config.data.boxes, None if root is None else Path(root), cache, progress)


def _root_of(config: Config) -> str | None:
    root = config.data.root
    if root == sample_set.ROOT:
        return str(sample_set.ensure(config.run.root / "data"))
    if root is not None and root.startswith("builtin:"):
        raise UserError(f"data.root={root} is not built in; known: {sample_set.ROOT}")
    return root
