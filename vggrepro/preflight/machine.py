"""What a graph runs on: machines and images, with what is assumed of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from vggrepro.config.recipes import Graph
from vggrepro.config.settings import Config, Precision
from vggrepro.errors import UserError
from vggrepro.paper import facts, value
from vggrepro.training.throughput import PEAKS

# Assumptions, only one of them measured by us; each is printed with what follows from it.
ASSUMED_MFU = 0.43
"""4,600 images/s of net D on an H100 in bfloat16: the roofline of an eager step, over the peak of 989 TFLOP/s."""
ILSVRC_BYTES = 115_000
"""An image of ILSVRC-2012: the training archive's 148 GB over its images."""
SAMPLE_BYTES = 5_300
"""An image of the built-in sample set."""
LONG_SIDE = 1.33
"""Mean ratio of a photograph's sides, for the uncropped images of dense evaluation."""
NODE_GB_PER_S = 50.0
"""Of the network, each way and node: 400 Gbit/s."""
LINK_GB_PER_S = 300.0
"""Between the GPUs of one node."""
ACTION_PERSONS = 6_278
"""In the images of VOC 2012's actions whose labels are public, as its development kit counts them: one box each."""
FORWARD_SHARE = 1 / 3
"""Of a step's arithmetic; the exchange of gradients overlaps with the rest."""
DECODE_PER_CORE = 540.0
"""Training images that a core makes in a second: 619 by DALI's threads on an Intel Xeon, S in [256;512], crop 224,
photographs of 400 x 533 px and 29 kB (benchmarks/results/2026-11-22-loader.md), less the 13 % that it costs to have the
threads in processes of their own, as ranks with a GPU do (2026-11-25-loader.md). Cores are taken to add up: processes
share nothing but the memory's bandwidth, which nobody has measured on more than two."""

START_S = 3.0
"""Of a stage: imports, opening the index, the first batch. This and the next were measured at ILSVRC's size, without
decoding and nets, on two cores of a Xeon (benchmarks/results/2026-11-30-full-size.json, docs/full_size.md)."""
RESULT_S = 95e-6
"""Of an image's 1,000 posteriors at one Q: to store them, and what a stage's errors, figures and tables take of it."""


@dataclass(frozen=True)
class Machine:
    """What the graph runs on."""

    nodes: int
    gpus_per_node: int
    gpu: str = "H100"
    """A key of `training.throughput.PEAKS`."""
    mfu: float = ASSUMED_MFU
    measured: Mapping[str, float] = field(default_factory=dict)
    """Images/s in training on one GPU, by net; of the geometry and precision that is planned for."""
    node_gb_per_s: float = NODE_GB_PER_S
    price: float | None = None
    """Money for one GPU-hour."""
    decode_per_core: float = DECODE_PER_CORE
    """Training images/s that one core decodes."""
    read_mb_per_s: float | None = None
    """What the file system gives all nodes together; None: no limit is known."""

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return self.nodes * self.gpus_per_node

    def peak(self, precision: Precision) -> float:
        """FLOP/s of a GPU whose data sheet we have; 1 for another, on which all precisions count as equally fast."""
        return PEAKS.get(self.gpu, {}).get(precision, 1.0)

    def decoding_cores(self, config: Config) -> int | None:
        """Cores of a node that decode, as far as the configuration says."""
        known = [n for n in (config.cluster.cpus_per_task, config.data.workers) if n is not None]
        return min(known) * self.gpus_per_node if known else None


@dataclass(frozen=True)
class ImageSet:
    """What a stage is trained and tested on."""

    name: str
    train: int
    val: int
    bytes: float
    """Mean size of a training image."""
    others: Mapping[str, int | None] = field(default_factory=dict)
    """Images of the data sets that its features are tested on (Appendix B); None: not counted."""

    def __str__(self) -> str:
        return f"{self.name}, {self.train:,} + {self.val:,} images of {self.bytes / 1000:.3g} kB"


def image_sets_of(graph: Graph) -> dict[str, ImageSet]:
    """What each stage is trained and tested on; what stages share is opened or listed once. Raises UserError."""
    opened, counted = cache(_image_set), cache(_count)
    return {
        name: replace(
            opened(config.data.index, config.data.root),
            others={other: counted(other, path) for other, path in config.transfer.sets.items()},
        )
        for name, config in graph.stages.items()
    }


def _count(name: str, path: Path) -> int | None:
    """Images of a data set: the paper's as published, others as listed; None for one that cannot be listed."""
    if name in facts().transfer:
        return facts().transfer[name].images
    from vggrepro.data.transfer.class_folders import listed  # and with it numpy, which no other plan needs

    try:
        return len(listed(name, path))
    except UserError:  # `vggrepro doctor` says it, and the stage that needs it
        return None


def _image_set(index_file: Path | None, root: str | None) -> ImageSet:
    """The counts of an index, or of the sample set; else those of ILSVRC-2012. Raises UserError."""
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
    """`D=4600` and the like as {net: images/s}. Raises UserError."""
    rates = {}
    for text in texts:
        net, _, rate = text.partition("=")
        try:
            rates[net] = float(rate)
        except ValueError:
            raise UserError(f"--measured {text}: expected NET=IMAGES_PER_S of one GPU, e.g. D=4600") from None
    return rates
