"""Machines and images of a graph, and the assumptions about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from vggrepro.config.recipes import Graph
from vggrepro.config.settings import Config, Precision
from vggrepro.errors import UserError
from vggrepro.paper import facts, value
from vggrepro.training.throughput import PEAKS

# Assumptions, printed with each plan; only the decoding rate was measured by us.
ASSUMED_MFU = 0.43
"""4,600 images/s of net D on an H100 in bfloat16: the roofline of an eager step, over the peak of 989 TFLOP/s."""
ILSVRC_BYTES = 115_000
"""Mean size of an ILSVRC-2012 image: the training archive's 148 GB over its images."""
SAMPLE_BYTES = 5_300
"""Mean size of an image of the built-in sample set."""
LONG_SIDE = 1.33
"""Mean ratio of a photograph's sides, for the uncropped images of dense evaluation."""
NODE_GB_PER_S = 50.0
"""Network bandwidth per direction and node: 400 Gbit/s."""
LINK_GB_PER_S = 300.0
"""Bandwidth between the GPUs of a node."""
ACTION_PERSONS = 6_278
"""Persons in VOC 2012's action images with public labels, a box each (development kit)."""
FORWARD_SHARE = 1 / 3
"""Fraction of a step's arithmetic in the forward pass; the exchange of gradients overlaps with the rest."""
DECODE_PER_CORE = 540.0
"""Training images/s per core: 619 by DALI's threads on an Intel Xeon, S in [256;512], crop 224, photographs of 400 x
533 px and 29 kB (benchmarks/results/2026-11-22-loader.md), minus 13 % for decoding in separate processes, as ranks with
a GPU do (2026-11-25-loader.md). Cores are assumed to scale linearly; more than two were not measured."""

START_S = 3.0
"""Start of a stage: imports, opening the index, the first batch. Measured, as is the next, at ILSVRC's size, without
decoding and nets, on two cores of a Xeon (benchmarks/results/2026-11-30-full-size.json, docs/full_size.md)."""
RESULT_S = 95e-6
"""Time per image and Q for 1,000 posteriors: storing them, and a stage's errors, figures and tables."""


@dataclass(frozen=True)
class Machine:
    """Machine of a graph."""

    nodes: int
    gpus_per_node: int
    gpu: str = "H100"
    """A key of `training.throughput.PEAKS`."""
    mfu: float = ASSUMED_MFU
    measured: Mapping[str, float] = field(default_factory=dict)
    """Measured training images/s per GPU by net, in the plan's geometry and precision."""
    node_gb_per_s: float = NODE_GB_PER_S
    price: float | None = None
    """Price per GPU-hour."""
    decode_per_core: float = DECODE_PER_CORE
    """Training images/s decoded per core."""
    read_mb_per_s: float | None = None
    """Bandwidth of the file system for all nodes together; None: unlimited."""

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    def peak(self, precision: Precision) -> float:
        """Returns the peak FLOP/s of a known GPU; 1 if unknown, so all precisions count as equally fast."""
        return PEAKS.get(self.gpu, {}).get(precision, 1.0)

    def decoding_cores(self, config: Config) -> int | None:
        """Returns the decoding cores per node; None if the configuration does not set them."""
        known = [n for n in (config.cluster.cpus_per_task, config.data.workers) if n is not None]
        return min(known) * self.gpus_per_node if known else None


@dataclass(frozen=True)
class ImageSet:
    """Images on which a stage is trained and tested."""

    name: str
    train: int
    val: int
    bytes: float
    """Mean size of a training image."""
    others: Mapping[str, int | None] = field(default_factory=dict)
    """Images of Appendix B's data sets; None: not counted."""

    def __str__(self) -> str:
        return f"{self.name}, {self.train:,} + {self.val:,} images of {self.bytes / 1000:.3g} kB"


def image_sets_of(graph: Graph) -> dict[str, ImageSet]:
    """Counts the images of each stage; stages share what they open. Raises UserError."""
    opened, counted = cache(_image_set), cache(_count)
    return {
        name: replace(
            opened(config.data.index, config.data.root),
            others={other: counted(other, path) for other, path in config.transfer.sets.items()},
        )
        for name, config in graph.stages.items()
    }


def _count(name: str, path: Path) -> int | None:
    """Counts the images of a data set: the paper's as published, others as listed; None if listing fails."""
    if name in facts().transfer:
        return facts().transfer[name].images
    from vggrepro.data.transfer.class_folders import listed  # imports numpy, which no other plan needs

    try:
        return len(listed(name, path))
    except UserError:  # reported by `vggrepro doctor` and by the stage that needs it
        return None


def _image_set(index_file: Path | None, root: str | None) -> ImageSet:
    """Counts the images of an index or of the sample set; by default those of ILSVRC-2012. Raises UserError."""
    if index_file is not None:
        from vggrepro.data.images import index

        loaded = index.load(index_file)
        index.require_training_images(loaded)
        train, val = loaded.split("train"), loaded.split("val")
        return ImageSet(index_file.name, len(train), len(val), float(train.length.mean()))
    if root and root.startswith("builtin:"):
        from vggrepro.data.images import sample_set

        return ImageSet(sample_set.ROOT, sample_set.TRAIN_IMAGES, sample_set.VAL_IMAGES, SAMPLE_BYTES)
    return ImageSet("ILSVRC-2012", value("train_images"), value("val_images"), ILSVRC_BYTES)


def measured_rates(texts: list[str]) -> dict[str, float]:
    """Parses texts such as `D=4600` to {net: images/s}. Raises UserError."""
    rates = {}
    for text in texts:
        net, _, rate = text.partition("=")
        try:
            rates[net] = float(rate)
        except ValueError:
            raise UserError(f"--measured {text}: expected NET=IMAGES_PER_S of one GPU, e.g. D=4600") from None
    return rates
