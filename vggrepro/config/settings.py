"""Typed settings of a stage, one frozen section per topic. Defaults are the paper's values."""

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
"""Pattern of the names in `Transfer.sets`, which are prefixes of file names."""


class Model(Section):
    """Architecture of the net (Section 2, Table 1)."""

    net: str
    """Net of Table 1: A, A-LRN, B, C, D or E; with `layers`, any name."""
    layers: tuple[tuple[str, ...], ...] | None = None
    """Blocks of a custom net in the paper's notation, e.g. [[conv3-64, LRN], [conv3-128]]."""
    blocks: Positive | None = None
    """Number of blocks used, counted from the image; the FC layers follow the last. Default: all (5 in Table 1)."""
    batch_norm: bool = False
    """Batch normalisation after every convolution (torchvision's _bn nets; not in the paper)."""
    classes: Positive = value("classes")
    crop: Positive = value("crop")
    """Side of the square input in pixels; a multiple of 2^blocks (32 for Table 1's nets)."""
    width: float = Field(default=1.0, gt=0, le=16)
    """Factor on the channels of every convolution and the units of fc6 and fc7, in (0, 16]."""
    init: Scheme = "paper"
    dropout: Fraction = value("dropout")
    fully_connected: bool = True
    """Whether the net has fc6, fc7 and fc8. Without them it only computes features and cannot be trained."""

    @model_validator(mode="before")
    @classmethod
    def _drop_redundant_blocks(cls, given: Any) -> Any:
        """Replaces a number of blocks that includes all of them by None, so that equal nets have equal settings."""
        if not isinstance(given, dict) or not given.get("blocks"):
            return given
        blocks = given.get("layers") or facts().architectures.get(str(given.get("net")), ())
        return given | ({"blocks": None} if isinstance(blocks, list | tuple) and given["blocks"] == len(blocks) else {})

    @property
    def geometry(self) -> str:
        """Description of the geometry: the crop, and the number of blocks and the width if they are not the paper's."""
        default = len(facts().architectures["A"])
        count = self.blocks or len(self.layers or ()) or default
        blocks = "" if count == default else f", {count} blocks"
        return f"crop {self.crop} px{blocks}" + ("" if self.width == 1 else f", width x {self.width:g}")


class ColourShift(Section):
    """Random RGB shift along the principal components of ImageNet's pixel values (Section 3.1)."""

    mode: ColourMode = "sqrt"
    """Scale of a component: sqrt of its eigenvalue (Krizhevsky's code), lambda, the eigenvalue (his paper), or off."""
    sigma: float = Field(default=value("colour_shift_sigma"), ge=0)


class Data(Section):
    """Data set, and how training views are sampled from its images (Section 3.1)."""

    root: str | None = None
    """Folder with train/<class>/* and val/<class>/*, or builtin:digits for the generated sample set."""
    index: Path | None = None
    """Index file written by `vggrepro index`, used instead of scanning `root`."""
    boxes: Path | None = None
    """Boxes file written by `vggrepro boxes`, used instead of the annotations beside the images."""
    S: Positive | tuple[Positive, Positive] = value("scales")[0]
    """Shorter side of the rescaled training image in pixels; [low, high] samples it per image."""
    flip: bool = True
    colour_shift: ColourShift = ColourShift()
    mean: tuple[float, float, float] = tuple(value("mean_rgb"))
    """RGB mean that is subtracted from each pixel, in grey levels 0-255."""
    backend: Backend = "auto"
    """Decoder: DALI on the CPU (dali) or on the GPU (dali_gpu), or PIL (torchvision); auto: DALI if installed."""
    workers: Positive | None = None
    """Decoding threads per rank; default: the node's cores divided by its ranks."""
    processes: Count | None = None
    """Processes per rank for the decoding threads, which then do not compete with training for Python's lock; 0: use
    threads of the rank. Default: one per two threads if the rank has a GPU, else 0. On a CPU each has a separate core.
    """
    max_bad: Count = 20
    """Maximum number of training images per rank that may prove unreadable after indexing; others replace them."""
    max_rejected_val: Count = 0
    """Maximum number of validation images that indexing may have rejected. Error rates exclude them, and the ledger
    reports it."""

    @field_validator("S")
    @classmethod
    def _require_rising_range(cls, S: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(S, tuple) and S[0] >= S[1]:
            raise ValueError("the range must rise: [low, high] with low < high")
        return S

    @property
    def S_range(self) -> tuple[int, int]:
        """Lowest and highest S in pixels, both inclusive; equal for a fixed S."""
        return self.S if isinstance(self.S, tuple) else (self.S, self.S)

    @property
    def S_text(self) -> str:
        """S as the paper's tables print it."""
        return scale_text(self.S)


class Localisation(Section):
    """Net whose last layer predicts boxes instead of class scores (Appendix A)."""

    regression: Regression = "PCR"
    """SCR predicts one box for all classes (single-class regression), PCR one per class (per-class regression)."""
    fine_tune: FineTune = "all"
    """Layers that are fine-tuned: all, or only fc6 and fc7 (fc). The last layer starts from random weights."""
    merge_below: float = Field(default=0.8, ge=0)
    """Distance below which the dense test merges two boxes; see `evaluation.merging` (the paper is silent)."""


class Schedule(Section):
    """Learning rate schedule (Section 3.1). The paper is silent about patience and threshold."""

    kind: Literal["plateau", "fixed"] = "plateau"
    factor: float = Field(default=value("learning_rate_factor"), gt=0, lt=1)
    max_drops: Count = value("learning_rate_decreases")
    patience: Positive = 5
    """Consecutive validations without improvement before a drop."""
    threshold: float = Field(default=0.1, ge=0)
    """Smallest decrease of the top-1 error, in percentage points, that counts as an improvement."""
    drops_at: tuple[Positive, ...] = ()
    """Rising iterations of the drops if `kind` is fixed."""

    @model_validator(mode="after")
    def _match_drops_to_kind(self) -> Schedule:
        if (self.kind == "fixed") != bool(self.drops_at):
            raise ValueError("kind: fixed needs drops_at: [iteration, ...], and kind: plateau excludes it")
        if list(self.drops_at) != sorted(set(self.drops_at)):
            raise ValueError("drops_at must rise")
        return self


class Train(Section):
    """Optimisation (Section 3.1)."""

    batch: Positive = value("batch_size")
    """Images per iteration over all ranks."""
    micro_batch: Positive | None = None
    """Maximum number of images per forward pass of a rank; gradients of larger batches are accumulated."""
    iterations: Positive = value("iterations")
    learning_rate: float = Field(default=value("learning_rate"), gt=0)
    momentum: Fraction = value("momentum")
    weight_decay: float = Field(default=value("weight_decay"), ge=0)
    schedule: Schedule = Schedule()
    biases: Literal["paper", "caffe"] = "paper"
    """`caffe`: biases have twice the learning rate and no weight decay, as in Caffe's files; `paper`: like weights."""
    precision: Precision = "fp32"
    comm: Literal["auto", Comm] = "auto"
    """Gradient exchange between ranks: all gradients in float32 (ddp) or in bfloat16 (bf16), or factors of the FC
    layers' gradients (factor); auto: the cheaper of ddp and factor, which are equal up to rounding
    (`training.throughput.comm_of`)."""
    compile: bool = False
    """Compile the convolutional layers with torch.compile, for fixed shapes."""
    cudnn: Cudnn = "benchmark"
    """Convolution kernels on CUDA. benchmark: the fastest, timed at each start, so that rounding may differ between
    starts; deterministic: always the same, so that training can be repeated bit by bit."""
    validate_every: Positive = 1
    """Epochs between validations (centre crop at Q = S)."""
    log_every: Positive = 20
    """Iterations between log lines."""
    checkpoint_every: Positive = 1000
    """Iterations between checkpoints. Each validation and the end of training also write a checkpoint."""
    keep: Positive = 2
    """Number of recent checkpoints to keep, in addition to the best one."""
    stall_after: Count = 10_000
    """Iterations after which a loss that is still within 0.02 of ln(classes) stops the run; 0: never."""
    rank_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds without progress after which a rank is considered lost; the other ranks then exit and name it."""


class Evaluation(Section):
    """Testing (Section 3.2)."""

    single_Q: tuple[Positive, ...] = ()
    """Q of Table 3 in pixels; default: S, or the middle of its range."""
    multi_Q: tuple[Positive, ...] = ()
    """Q values of Table 4 in pixels; default: S-32, S and S+32, or both ends and the middle of the range of S."""
    flip: bool = True
    """Average the posteriors of the image and its mirror image."""
    batch: Positive = 64
    """Maximum number of images per forward pass of a rank at the size of a training crop; fewer for larger images."""
    precision: Precision = "fp32"


class Transfer(Section):
    """Transfer data sets, on which a linear SVM tests the net's features (Appendix B)."""

    sets: dict[Annotated[str, Field(pattern=SET_NAME)], Path] = Field(default_factory=dict)
    """Folders or downloaded archives by name: voc2007, voc2012, voc2012_action, caltech101 or caltech256. Any other
    name is a folder of classes."""
    scales: tuple[Positive, ...] = ()
    """Q in pixels; default: the paper's values for the data set, scaled by crop / 224."""
    combine: Combine | None = None
    """Combination of features at several Q; default: the paper's choice for the data set."""
    splits: Positive = 3
    """Number of random splits of a folder of classes."""
    train_per_class: Positive | None = None
    """Training images per class in a random split; default: the paper's 30, or 60 for caltech256."""
    test_per_class: Positive | None = None
    """Maximum test images per class in a random split; default: the paper's 50, or all others for caltech256."""
    seed: Seed = 0
    """Seed of the random splits, which are the same for all nets."""


class Run(Section):
    """Name, location and parent of a run."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.+-]*$")
    experiment: str = Field(default="vgg", pattern=r"^[A-Za-z0-9_.+-]+$")
    """Group of the runs of a graph: a folder under `root`, and the experiment in MLflow."""
    root: Path = Path("runs")
    parent: str | None = None
    """Stage whose weights initialise this one: a stage of the same file, or the path of a stage file."""
    seed: Seed = 0
    device: Device = "auto"
    why: dict[str, str] = Field(default_factory=dict)
    """Reasons for departures from the paper, by setting or section; the fidelity ledger shows them."""


class Config(Section):
    """Configuration of a stage. Defaults are the paper's values."""

    model: Model
    data: Data = Data()
    localisation: Localisation | None = None
    """Set if the net predicts boxes; unset if it predicts classes."""
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    transfer: Transfer = Transfer()
    run: Run = Run()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _check_scales(self) -> Config:
        low = self.data.S_range[:1]
        scales = {"data.S": low, "evaluation.single_Q": self.single_Q, "evaluation.multi_Q": self.multi_Q}
        for key, sides in scales.items():
            if min(sides) < self.model.crop:
                raise UserError(
                    f"{key}={min(sides)} is smaller than model.crop={self.model.crop}: "
                    f"set it to {self.model.crop} or more, or choose a smaller crop"
                )
        return self

    @model_validator(mode="after")
    def _check_localisation(self) -> Config:
        if self.localisation and not self.model.fully_connected:
            raise UserError(
                "model.fully_connected=false: a net that predicts boxes needs its FC layers; set it to true"
            )
        if self.localisation and not self.run.parent:
            raise UserError("run.parent is missing: a net that predicts boxes starts from a net that predicts classes")
        if self.localisation and isinstance(self.data.S, tuple):
            raise UserError(f"data.S={list(self.data.S)}: training on boxes needs a fixed S; give a number of px")
        if self.keeps_features and self.model.batch_norm:
            raise UserError("localisation.fine_tune=fc freezes convolutions, but model.batch_norm=true updates them")
        if self.keeps_features and self.train.comm == "factor":
            raise UserError("train.comm=factor needs trainable convolutions; set train.comm=ddp or auto")
        return self

    @property
    def name(self) -> str:
        """Name of the stage: run.name, or net and S."""
        return self.run.name or f"{self.model.net}-{self.data.S_text.strip('[]').replace(';', '-')}"

    @property
    def directory(self) -> Path:
        """Path of the run directory."""
        return self.run.root / self.run.experiment / self.name

    @property
    def single_Q(self) -> tuple[int, ...]:
        """Q of the single-scale test in pixels (Section 4.1: Q = S, or 0.5 (S_min + S_max))."""
        low, high = self.data.S_range
        return self.evaluation.single_Q or ((low + high) // 2,)

    @property
    def multi_Q(self) -> tuple[int, ...]:
        """Q of the multi-scale test in pixels (Section 4.2, Table 9). The 32 px step scales with the crop."""
        low, high = self.data.S_range
        step = round(value("test_scale_offset") * self.model.crop / value("crop"))
        if self.localisation and not self.evaluation.multi_Q:
            return (low - step, low) if self.papers_S == value("scales")[1] else (low,)
        default = (low - step, low, low + step) if low == high else (low, (low + high) // 2, high)
        return self.evaluation.multi_Q or default

    @property
    def keeps_features(self) -> bool:
        """Whether the convolutional layers are frozen, so that only the FC layers are trained (Appendix A)."""
        return self.localisation is not None and self.localisation.fine_tune == "fc"

    @property
    def papers_S(self) -> Scale:
        """S of the paper that this stage corresponds to: data.S at the paper's crop, else the closest in proportion."""
        if self.model.crop == value("crop"):
            return self.data.S
        if isinstance(self.data.S, tuple):
            return value("jitter")
        proportion = self.data.S / self.model.crop
        return min(value("scales"), key=lambda S: abs(S / value("crop") - proportion))

    def with_settings(self, section: str, **settings: Any) -> Config:
        """Returns a copy with some settings of a section changed, without validation."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=settings)})

    def trajectory(self) -> dict[str, Any]:
        """Returns the settings that determine training; a run can only resume with equal ones.

        The images are not included: the data set has its own fingerprint.
        """
        tree = self.model_dump(mode="json")
        data = {key: tree["data"][key] for key in ("S", "flip", "colour_shift", "mean")}
        irrelevant = {"log_every", "checkpoint_every", "keep", "stall_after", "rank_timeout_s"}
        irrelevant |= {"micro_batch", "compile", "cudnn"}  # these change only the rounding
        train = {key: setting for key, setting in tree["train"].items() if key not in irrelevant}
        train["comm"] = "bf16" if self.train.comm == "bf16" else "exact"  # the others differ only in rounding
        settings = {"model": tree["model"], "data": data, "train": train, "run": {"seed": self.run.seed}}
        if self.localisation:
            settings["localisation"] = self.localisation.model_dump(mode="json", exclude={"merge_below"})
        return settings

    def to_yaml(self) -> str:
        """Serialises every setting, including defaults."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
