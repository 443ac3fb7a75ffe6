"""Typed settings of a stage: one frozen section a concern, the paper's values as defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from vggrepro.config.cluster import Cluster
from vggrepro.config.section import Count, Fraction, Positive, Section, Seed
from vggrepro.config.tracking import Tracking
from vggrepro.errors import UserError
from vggrepro.paper import Combine, FineTune, Regression, Scale, facts, scale_text, value

Precision = Literal["fp32", "tf32", "bf16"]
Cudnn = Literal["benchmark", "deterministic"]
Scheme = Literal["paper", "paper_literal_variance", "glorot_uniform", "kaiming"]
ColourMode = Literal["sqrt", "lambda", "off"]
Backend = Literal["auto", "dali", "dali_gpu", "torchvision"]
Comm = Literal["ddp", "bf16", "factor"]
Device = Literal["auto", "cpu", "cuda"]
SET_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
"""Names of data sets in `Transfer.sets`, which begin names of files."""


class Model(Section):
    """Which net (Section 2, Table 1)."""

    net: str
    """A, A-LRN, B, C, D or E; with `layers`, any name."""
    layers: tuple[tuple[str, ...], ...] | None = None
    """The user's own net: blocks in the paper's notation, e.g. [[conv3-64, LRN], [conv3-128]]."""
    blocks: Positive | None = None
    """Number of the net's blocks, counted from the image; the FC layers follow the last. Default: all, 5 in Table 1."""
    batch_norm: bool = False
    """Batch normalisation after every convolution (torchvision's _bn nets; not in the paper)."""
    classes: Positive = value("classes")
    crop: Positive = value("crop")
    """Side of the square input in pixels; a multiple of 2^blocks (32 for Table 1's nets)."""
    width: float = Field(default=1.0, gt=0, le=16)
    """Multiplies the channels of every convolution and the units of fc6 and fc7; at most 16."""
    init: Scheme = "paper"
    dropout: Fraction = value("dropout")
    fully_connected: bool = True
    """Whether fc6, fc7 and fc8 are there; without them a net gives features only, and is not trained."""

    @model_validator(mode="before")
    @classmethod
    def _all_blocks_are_the_default(cls, given: Any) -> Any:
        """A number that leaves none out becomes None: the same net has one description."""
        if not isinstance(given, dict) or not given.get("blocks"):
            return given
        every = given.get("layers") or facts().architectures.get(str(given.get("net")), ())
        return given | ({"blocks": None} if isinstance(every, list | tuple) and given["blocks"] == len(every) else {})

    @property
    def geometry(self) -> str:
        """Crop, and the number of blocks and the width where these are not the paper's; equal for equal geometries."""
        five = len(facts().architectures["A"])
        count = self.blocks or len(self.layers or ()) or five
        blocks = "" if count == five else f", {count} blocks"
        return f"crop {self.crop} px{blocks}" + ("" if self.width == 1 else f", width x {self.width:g}")


class ColourShift(Section):
    """Random RGB shift along the principal components of ImageNet's colours (Section 3.1)."""

    mode: ColourMode = "sqrt"
    """Scale of a component: square root of its eigenvalue (Krizhevsky's code), the eigenvalue (his text), or none."""
    sigma: float = Field(default=value("colour_shift_sigma"), ge=0)


class Data(Section):
    """Which images, and how the training views are drawn from them (Section 3.1)."""

    root: str | None = None
    """Folder with train/<class>/* and val/<class>/*, or builtin:digits for the sample set made on the spot."""
    index: Path | None = None
    """An index file made by `vggrepro index`; takes the place of a scan of `root`."""
    boxes: Path | None = None
    """A file made by `vggrepro boxes`; takes the place of the annotations found beside the images."""
    S: Positive | tuple[Positive, Positive] = value("scales")[0]
    """Shorter side in pixels of the rescaled training image; [low, high] draws it for each image."""
    flip: bool = True
    colour_shift: ColourShift = ColourShift()
    mean: tuple[float, float, float] = tuple(value("mean_rgb"))
    """Subtracted from each pixel: RGB, grey levels 0-255."""
    backend: Backend = "auto"
    """Who decodes: DALI on the CPU or with a GPU's help, or PIL as torchvision does; auto: DALI where installed."""
    workers: Positive | None = None
    """Decoding threads of each rank; default: as many as are its share of the machine's cores."""
    processes: Count | None = None
    """Among which the decoding threads are divided, to share no lock with the thread that computes; 0: none but the
    rank's own. Default: one for two threads where a rank has a GPU, else 0. On a CPU each has a core of its own."""
    max_bad: Count = 20
    """Most training images of a rank that may turn out unreadable after indexing; others take their places."""
    max_rejected_val: Count = 0
    """Most validation images that indexing may have rejected; errors are then of the others, and the ledger says so.
    """

    @field_validator("S")
    @classmethod
    def _ordered(cls, S: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(S, tuple) and S[0] >= S[1]:
            raise ValueError("the range must rise: [low, high] with low < high")
        return S

    @property
    def S_range(self) -> tuple[int, int]:
        """(lowest, highest) S in pixels, both included; equal for a fixed S."""
        return self.S if isinstance(self.S, tuple) else (self.S, self.S)

    @property
    def S_text(self) -> str:
        """S as the paper's tables print it."""
        return scale_text(self.S)


class Localisation(Section):
    """A net whose last layer predicts boxes in place of class scores (Appendix A)."""

    regression: Regression = "PCR"
    """One box for all classes together (single-class regression), or one for each class (per-class regression)."""
    fine_tune: FineTune = "all"
    """All layers, or fc6 and fc7 alone; the last layer is trained from random weights either way."""
    merge_below: float = Field(default=0.8, ge=0)
    """Distance below which two boxes are merged in the dense test: see `evaluation.merging` (the paper is silent)."""


class Schedule(Section):
    """When the learning rate falls (Section 3.1; patience and threshold are ours, the paper is silent)."""

    kind: Literal["plateau", "fixed"] = "plateau"
    factor: float = Field(default=value("learning_rate_factor"), gt=0, lt=1)
    max_drops: Count = value("learning_rate_decreases")
    patience: Positive = 5
    """Validations in a row without improvement before a drop."""
    threshold: float = Field(default=0.1, ge=0)
    """Least fall of the top-1 error, in percentage points, that counts as an improvement."""
    drops_at: tuple[Positive, ...] = ()
    """Iterations of the drops when `kind` is fixed."""

    @model_validator(mode="after")
    def _complete(self) -> Schedule:
        if (self.kind == "fixed") != bool(self.drops_at):
            raise ValueError("kind: fixed goes with drops_at: [iteration, ...], and kind: plateau without it")
        if list(self.drops_at) != sorted(set(self.drops_at)):
            raise ValueError("drops_at must rise")
        return self


class Train(Section):
    """Optimisation (Section 3.1)."""

    batch: Positive = value("batch_size")
    """Images in one step over all ranks together."""
    micro_batch: Positive | None = None
    """Largest number of images in one forward pass of a rank; a rank's share beyond it is accumulated."""
    iterations: Positive = value("iterations")
    learning_rate: float = Field(default=value("learning_rate"), gt=0)
    momentum: Fraction = value("momentum")
    weight_decay: float = Field(default=value("weight_decay"), ge=0)
    schedule: Schedule = Schedule()
    biases: Literal["paper", "caffe"] = "paper"
    """`caffe`: biases learn at twice the rate and without weight decay, as in Caffe's files (the paper: none)."""
    precision: Precision = "fp32"
    comm: Literal["auto", Comm] = "auto"
    """How ranks exchange gradients: all of them in float32 (ddp), in bfloat16, or for the FC layers their factors;
    auto: ddp or factor, which are equal up to rounding, by what they cost (`training.throughput.comm_of`)."""
    compile: bool = False
    """torch.compile of the convolutional layers, for fixed shapes."""
    cudnn: Cudnn = "benchmark"
    """Whose kernels convolve on CUDA: the fastest, timed at the start, so that another start may round differently; or
    always the same ones, for a course that is repeated bit by bit."""
    validate_every: Positive = 1
    """Epochs between two validations (centre crop at Q = S)."""
    log_every: Positive = 20
    """Iterations between two log lines."""
    checkpoint_every: Positive = 1000
    """Iterations between two checkpoints; one is also written at each validation and at the end."""
    keep: Positive = 2
    """How many of the newest checkpoints stay on disk, the best one aside."""
    stall_after: Count = 10_000
    """Iterations after which a loss still within 0.02 of ln(classes) stops the run; 0: never."""
    rank_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds without progress after which a rank counts as lost, and the others end naming it."""


class Evaluation(Section):
    """Testing (Section 3.2)."""

    single_Q: tuple[Positive, ...] = ()
    """Q of Table 3 in pixels; default: S, or the middle of its range."""
    multi_Q: tuple[Positive, ...] = ()
    """The Q values of Table 4; default: {S-32, S, S+32}, or both ends and the middle of the range."""
    flip: bool = True
    """Average the posteriors of the image and its mirror image."""
    batch: Positive = 64
    """Most images in one forward pass of a rank, at the size of a training crop; larger images, fewer of them."""
    precision: Precision = "fp32"


class Transfer(Section):
    """Data sets on which the net's features are tested with a linear SVM (Appendix B)."""

    sets: dict[Annotated[str, Field(pattern=SET_NAME)], Path] = Field(default_factory=dict)
    """Folders or archives as downloaded, by name: voc2007, voc2012, voc2012_action, caltech101 or caltech256, or by any
    other name a folder of classes."""
    scales: tuple[Positive, ...] = ()
    """Q in pixels; default: the paper's for the data set, in the proportion of the crop to 224."""
    combine: Combine | None = None
    """What is made of the features at several Q; default: what the paper does on the data set."""
    splits: Positive = 3
    """Random splits of a folder of classes."""
    train_per_class: Positive | None = None
    """Training images of a class in a random split; default: the paper's 30, for caltech256 60."""
    test_per_class: Positive | None = None
    """Most test images of a class in a random split; default: the paper's 50, for caltech256 all the rest."""
    seed: Seed = 0
    """Of the random splits, which are the same for all nets."""


class Run(Section):
    """Name, place and descent of the run."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.+-]*$")
    experiment: str = Field(default="vgg", pattern=r"^[A-Za-z0-9_.+-]+$")
    """Groups the runs of one graph: a folder under `root`, an experiment in MLflow."""
    root: Path = Path("runs")
    parent: str | None = None
    """The stage whose weights this one starts from: a stage of the same file, or a stage file's path."""
    seed: Seed = 0
    device: Device = "auto"
    why: dict[str, str] = Field(default_factory=dict)
    """Reasons for departures from the paper, by setting or section; they appear in the fidelity ledger."""


class Config(Section):
    """One stage. Defaults are the paper's values."""

    model: Model
    data: Data = Data()
    localisation: Localisation | None = None
    """Set where the net predicts boxes; else it predicts classes."""
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    transfer: Transfer = Transfer()
    run: Run = Run()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _scales_fit(self) -> Config:
        low = self.data.S_range[:1]
        every = {"data.S": low, "evaluation.single_Q": self.single_Q, "evaluation.multi_Q": self.multi_Q}
        for key, sides in every.items():
            if min(sides) < self.model.crop:
                raise UserError(
                    f"{key}={min(sides)} is smaller than model.crop={self.model.crop}: "
                    f"set it to {self.model.crop} or more, or choose a smaller crop"
                )
        return self

    @model_validator(mode="after")
    def _boxes_need_classes(self) -> Config:
        if self.localisation and not self.model.fully_connected:
            raise UserError("model.fully_connected=false: a net that predicts boxes needs its FC layers; leave it out")
        if self.localisation and not self.run.parent:
            raise UserError("run.parent is missing: a net that predicts boxes starts from one that predicts classes")
        if self.localisation and isinstance(self.data.S, tuple):
            raise UserError(f"data.S={list(self.data.S)}: boxes are learnt at one S; give a number of px")
        if self.keeps_features and self.model.batch_norm:
            raise UserError("localisation.fine_tune=fc keeps the convolutions, and model.batch_norm=true changes them")
        if self.keeps_features and self.train.comm == "factor":
            raise UserError("train.comm=factor needs convolutions that are trained; set train.comm=ddp or auto")
        return self

    @property
    def name(self) -> str:
        """The stage's name: run.name, or net and S."""
        return self.run.name or f"{self.model.net}-{self.data.S_text.strip('[]').replace(';', '-')}"

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.run.root / self.run.experiment / self.name

    @property
    def single_Q(self) -> tuple[int, ...]:
        """Q of the single-scale test, px (Section 4.1: Q = S, or 0.5 (S_min + S_max))."""
        low, high = self.data.S_range
        return self.evaluation.single_Q or ((low + high) // 2,)

    @property
    def multi_Q(self) -> tuple[int, ...]:
        """Q of the multi-scale test, px (Section 4.2, Table 9); the 32 px step scales with the crop."""
        low, high = self.data.S_range
        step = round(value("test_scale_offset") * self.model.crop / value("crop"))
        if self.localisation and not self.evaluation.multi_Q:
            return (low - step, low) if self.papers_S == value("scales")[1] else (low,)
        default = (low - step, low, low + step) if low == high else (low, (low + high) // 2, high)
        return self.evaluation.multi_Q or default

    @property
    def keeps_features(self) -> bool:
        """Whether the convolutional layers stay as they are, and only the FC layers are trained (Appendix A)."""
        return self.localisation is not None and self.localisation.fine_tune == "fc"

    @property
    def papers_S(self) -> Scale:
        """The paper's S that this stage stands for: its own at the paper's crop, else the nearest in proportion."""
        if self.model.crop == value("crop"):
            return self.data.S
        if isinstance(self.data.S, tuple):
            return value("jitter")
        proportion = self.data.S / self.model.crop
        return min(value("scales"), key=lambda one: abs(one / value("crop") - proportion))

    def with_settings(self, section: str, **settings: Any) -> Config:
        """The same stage with some settings of one section changed, which are not checked again."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=settings)})

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide the course of training; equal for runs that may continue one another.

        The images are not among them: they are held to their own fingerprint.
        """
        tree = self.model_dump(mode="json")
        data = {key: tree["data"][key] for key in ("S", "flip", "colour_shift", "mean")}
        keeping = {"log_every", "checkpoint_every", "keep", "stall_after", "rank_timeout_s"}
        keeping |= {"micro_batch", "compile", "cudnn"}  # which differ by rounding
        train = {key: setting for key, setting in tree["train"].items() if key not in keeping}
        train["comm"] = "bf16" if self.train.comm == "bf16" else "exact"  # the others differ by rounding only
        course = {"model": tree["model"], "data": data, "train": train, "run": {"seed": self.run.seed}}
        if self.localisation:
            course["localisation"] = self.localisation.model_dump(mode="json", exclude={"merge_below"})
        return course

    def to_yaml(self) -> str:
        """Every setting, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
