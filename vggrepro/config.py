"""Typed configuration: one frozen section per concern, the paper's values as defaults.

A *stage* is one training run with its evaluation, described by one :class:`Config`. A YAML file holds either one stage
or a whole graph of them::

    extends: base.yaml            # optional; a path relative to this file, or a list of them
    model: {net: D}               # any section of Config
    run: {name: D-256, parent: vgg_A.yaml}

    stages: [vgg_A.yaml, vgg_D.yaml]              # a graph of stage files, or
    stages: {A: {model: {net: A}}, D: {...}}      # stages written in place; the file's own sections are their base

``--set section.key=value`` overrides every stage of the file. A file of configs/ is found by its name from any folder,
as the installed package has them too: ``--config vgg_D``, ``--config reduced/imagenette``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vggrepro.errors import UserError
from vggrepro.paper import Scale, facts, scale_text, value

_PACKAGE = Path(__file__).parent
# Beside the code in an installed package (pyproject.toml puts them there), beside the package in a clone.
RECIPES = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

_MOST_EXTENDED = 20  # files in a row that extend one another
_LONGEST_SHOWN = 80  # characters of a wrong value that a message repeats

_TOO_MANY = 2**31
Positive = Annotated[int, Field(gt=0, lt=_TOO_MANY)]
Count = Annotated[int, Field(ge=0, lt=_TOO_MANY)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["fp32", "tf32", "bf16"]
Cudnn = Literal["benchmark", "deterministic"]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


class Model(Section):
    """Which net (Section 2, Table 1)."""

    net: str
    """A, A-LRN, B, C, D or E; with `layers`, any name."""
    layers: tuple[tuple[str, ...], ...] | None = None
    """A net of one's own: blocks in the paper's notation, e.g. [[conv3-64, LRN], [conv3-128]]."""
    batch_norm: bool = False
    """Batch normalisation after every convolution (torchvision's _bn nets; not in the paper)."""
    classes: Positive = value("classes")
    crop: Positive = value("crop")
    """Side of the square input in pixels; a multiple of 2^blocks (32 for Table 1's nets)."""
    width: float = Field(default=1.0, gt=0, le=16)
    """Multiplies the channels of every convolution and the units of fc6 and fc7; at most 16."""
    init: Literal["paper", "paper_literal_variance", "glorot_uniform", "kaiming"] = "paper"
    dropout: Fraction = value("dropout")


class ColourShift(Section):
    """Random RGB shift along the principal components of ImageNet's colours (Section 3.1)."""

    mode: Literal["sqrt", "lambda", "off"] = "sqrt"
    """Scale of a component: square root of its eigenvalue (Krizhevsky's code), the eigenvalue (his text), or none."""
    sigma: float = Field(default=value("colour_shift_sigma"), ge=0)


class Data(Section):
    """Which images, and how the training views are drawn from them (Section 3.1)."""

    root: str | None = None
    """Folder with train/<class>/* and val/<class>/*, or builtin:digits for the sample set made on the spot."""
    index: Path | None = None
    """An index file made by `vggrepro index`; takes the place of a scan of `root`."""
    S: Positive | tuple[Positive, Positive] = value("scales")[0]
    """Shorter side in pixels of the rescaled training image; [low, high] draws it for each image."""
    flip: bool = True
    colour_shift: ColourShift = ColourShift()
    mean: tuple[float, float, float] = tuple(value("mean_rgb"))
    """Subtracted from each pixel: RGB, grey levels 0-255."""
    backend: Literal["auto", "dali", "dali_gpu", "torchvision"] = "auto"
    """Who decodes: DALI on the CPU or with a GPU's help, or PIL as torchvision does; auto: DALI where installed."""
    workers: Positive | None = None
    """Decoding threads of each rank; default: as many as are its share of the machine's cores."""
    processes: Count | None = None
    """Among which the decoding threads are divided, so that they do not share Python's lock with the thread that feeds
    the GPU; 0: none but the rank's own. Default: one for two threads where a rank has a GPU, else 0."""
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
    comm: Literal["auto", "ddp", "bf16", "factor"] = "auto"
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


class Run(Section):
    """Name, place and descent of the run."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9_.+-]*$")
    experiment: str = Field(default="vgg", pattern=r"^[A-Za-z0-9_.+-]+$")
    """Groups the runs of one graph: a folder under `root`, an experiment in MLflow."""
    root: Path = Path("runs")
    parent: str | None = None
    """The stage whose weights this one starts from: a stage of the same file, or a stage file's path."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    why: dict[str, str] = {}
    """Reasons for departures from the paper, by setting or section; they appear in the fidelity ledger."""


class Tracking(Section):
    """Where metrics are mirrored; metrics.jsonl in the run directory is always written."""

    mlflow: bool = True
    uri: str | None = None
    """MLflow's tracking URI; default: MLFLOW_TRACKING_URI, else SQLite in the runs folder."""


class Cluster(Section):
    """What is asked of SLURM (`launch/submit.py`)."""

    nodes: Positive = 1
    gpus_per_node: Positive = 8
    """GPUs, and so ranks, on each machine."""
    hours: float = Field(default=24.0, gt=0)
    """Time limit of one job; a stage that takes longer comes back by itself until it is finished."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    cpus_per_task: Positive | None = None
    mem: str | None = None
    """Memory of one node, in SLURM's notation: 64G; 0 is all of it."""
    array_parallelism: Positive | None = None
    """Most stages that run at the same time; default: all that can."""
    setup: tuple[str, ...] = ()
    """Shell lines that each job runs first: module load, source, export."""
    container: str | None = None
    """Image the ranks run in: a .sif file or a docker:// address with Apptainer, anything else with Pyxis."""
    sbatch: dict[str, str] = {}
    """Further options of sbatch by their long names; an empty text for those without a value."""
    warning_s: Positive = 180
    """Seconds before the time limit at which a job is told to save and leave."""
    max_failures: Positive = 3
    """Failures in a row without progress after which a stage is given up."""

    @field_validator("mem", mode="before")
    @classmethod
    def _zero_is_all(cls, mem: Any) -> Any:
        return str(mem) if isinstance(mem, int) else mem

    @field_validator("sbatch", mode="before")
    @classmethod
    def _texts(cls, options: Any) -> Any:
        return {key: str(item) for key, item in options.items()} if isinstance(options, dict) else options


class Config(Section):
    """One stage. Defaults are the paper's values."""

    model: Model
    data: Data = Data()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    run: Run = Run()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _scales_fit(self) -> Config:
        for key, sides in {
            "data.S": (self.data.S_range[0],),
            "evaluation.single_Q": self.single_Q,
            "evaluation.multi_Q": self.multi_Q,
        }.items():
            if min(sides) < self.model.crop:
                raise UserError(
                    f"{key}={min(sides)} is smaller than model.crop={self.model.crop}: "
                    f"set it to {self.model.crop} or more, or choose a smaller crop"
                )
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
        """Q of the multi-scale test, px (Section 4.2); the 32 px step scales with the crop."""
        low, high = self.data.S_range
        step = round(value("test_scale_offset") * self.model.crop / value("crop"))
        default = (low - step, low, low + step) if low == high else (low, (low + high) // 2, high)
        return self.evaluation.multi_Q or default

    @property
    def papers_S(self) -> Scale:
        """The paper's S that this stage stands for: its own at the paper's crop, else the nearest in proportion."""
        if self.model.crop == value("crop"):
            return self.data.S
        if isinstance(self.data.S, tuple):
            return value("jitter")
        proportion = self.data.S / self.model.crop
        return min(value("scales"), key=lambda one: abs(one / value("crop") - proportion))

    def dense_places(self, Q: int) -> int:
        """Places of the class score map of a square image rescaled to Q, px (Section 3.2)."""
        blocks = self.model.layers or facts().architectures.get(self.model.net, ())
        side = (Q >> len(blocks)) - (self.model.crop >> len(blocks)) + 1
        return side**2

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
        return {"model": tree["model"], "data": data, "train": train, "run": {"seed": self.run.seed}}

    def hash(self) -> str:
        """SHA-256 (hex) of :meth:`trajectory`."""
        return hashlib.sha256(json.dumps(self.trajectory(), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Every setting, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Graph:
    """Stages by name, and each one's parent; parents stand before their children."""

    name: str
    stages: Mapping[str, Config]
    parents: Mapping[str, str | None]


def _over_seeds(graph: Graph, text: str) -> Graph:
    """The graph once for each seed of a list such as 0,1,2: whole graphs, one after another, in one experiment.

    A stage keeps its name under its own seed, so that what was trained before is part of it; under another seed n it is
    named NAME-seedn and starts from the parent of that seed. Raises UserError.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--seeds {text}: expected whole numbers separated by commas, e.g. 0,1,2")
    seeds = [int(number) for number in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed stands twice; name each once")
    if max(seeds) >= 2**63:
        raise UserError(f"--seeds {text}: {max(seeds)} is too large; use numbers below 2^63")
    stages: dict[str, Config] = {}
    parents: dict[str, str | None] = {}
    for seed in seeds:
        named = {name: name if seed == stage.run.seed else f"{name}-seed{seed}" for name, stage in graph.stages.items()}
        for name, stage in graph.stages.items():
            if named[name] in stages:
                raise UserError(f"--seeds {text}: {named[name]} is a stage already; give that one another run.name")
            parent = graph.parents[name]
            run = {"name": named[name], "seed": seed} | ({"parent": named[parent]} if parent else {})
            stages[named[name]] = stage.model_copy(update={"run": stage.run.model_copy(update=run)})
            parents[named[name]] = named[parent] if parent else None
    return Graph(graph.name, stages, parents)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for key, item in tree.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, left value, right value) for each setting in which two trees of settings differ."""
    a, b = flatten(left), flatten(right)
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def recipe(path: Path) -> Path:
    """The file that `--config` means: a file as it stands, else the one of this name in configs/."""
    named = RECIPES / f"{str(path).removesuffix('.yaml')}.yaml"
    return named if os.path.isfile(named) and not os.path.isfile(path) else path


def load_graph(path: Path, overrides: Iterable[str] = (), seeds: str | None = None) -> Graph:
    """Reads a graph file, or a stage file together with the stages it descends from.

    `seeds`, a list such as "0,1,2", asks for the whole graph once for each seed, one after another: a stage keeps its
    name under its own seed, and is named NAME-seed1 under another.

    Raises UserError for a missing file, an unknown key, a value that is not allowed, a parent that does not exist.
    """
    changes = list(overrides)
    path = recipe(path)
    source = _read(path)
    listed = source.pop("stages", None)
    stages: dict[str, Config] = {}
    parents: dict[str, str | None] = {}

    def add_file(file: Path, base: dict[str, Any], below: tuple[Path, ...] = ()) -> str:
        tree = _read(file)
        if file.resolve() in below:
            raise UserError(f"{file}: run.parent leads back to this file; remove one of the links")
        if "stages" in tree:
            raise UserError(f"{file}: a graph cannot be a stage of another graph; list its stage files instead")
        stage = _stage(_merge(tree, base), changes, file)
        parent = None
        if stage.run.parent:
            parent = add_file(file.parent / stage.run.parent, base, (*below, file.resolve()))
        return add(stage, parent, file)

    def add(stage: Config, parent: str | None, file: Path) -> str:
        if stages.setdefault(stage.name, stage) != stage:
            raise UserError(f"{file}: two different stages are named {stage.name}; give one of them another run.name")
        parents[stage.name] = parent
        return stage.name

    if listed is None:
        add_file(path, {})
    elif isinstance(listed, list):
        for item in listed:
            add_file(path.parent / str(item), source)
    elif isinstance(listed, dict):
        for name, tree in listed.items():
            if not isinstance(tree, dict | None):
                raise UserError(f"{path}: stages.{name}={_shown(tree)} is not allowed: expected sections, e.g. model")
            stage = _stage(_merge(_merge(source, {"run": {"name": str(name)}}), tree or {}), changes, path)
            if stage.run.parent and stage.run.parent not in stages:
                raise UserError(
                    f"{path}: run.parent={stage.run.parent} of stage {name} is not a stage above it; "
                    f"known: {', '.join(stages) or 'none'}"
                )
            add(stage, stage.run.parent, path)
    else:
        raise UserError(f"{path}: stages must be a list of stage files or a mapping of stages")
    if not stages:
        raise UserError(f"{path}: stages is empty; name at least one")
    graph = Graph(name=next(iter(stages.values())).run.experiment, stages=stages, parents=parents)
    return graph if seeds is None else _over_seeds(graph, seeds)


def load_stage(path: Path, overrides: Iterable[str] = ()) -> tuple[Config, Config | None]:
    """The one stage of a stage file, and its parent's configuration where it has one. Raises as load_graph."""
    graph = load_graph(path, overrides)
    name, stage = list(graph.stages.items())[-1]
    if "stages" in _read(recipe(path)):
        raise UserError(f"{path} holds a graph of stages ({', '.join(graph.stages)}); run it with `vggrepro reproduce`")
    parent = graph.parents[name]
    return stage, graph.stages[parent] if parent else None


def load_resolved(path: Path) -> Config:
    """The configuration of a run directory, as written by :meth:`Config.to_yaml`. Raises UserError."""
    return _parse(_read(path), [], path)


def checked(kind: type[AnySection], **settings: Any) -> AnySection:
    """A section of these settings. Raises UserError, naming the first that is not allowed."""
    try:
        return kind(**settings)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def override(config: Config, overrides: Iterable[str], source: Path) -> Config:
    """A configuration with some `section.key=value` changes; `source` is named in errors. Raises UserError."""
    return _parse(config.model_dump(mode="json"), overrides, source)


class _StrictLoader(yaml.SafeLoader):
    """YAML without silently dropped duplicates, and without characters that no name of a file can have."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text = super().construct_scalar(node)
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{text!r} holds a character that no name can have (line {node.start_mark.line + 1})")
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"key {key!r} stands twice (line {node.start_mark.line + 1}); remove one")
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> Any:
    """What a YAML text says; `source` is named in errors. Raises UserError, also for a key that stands twice."""
    try:
        return yaml.load(text, _StrictLoader)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1})" if mark and "\n" in text.strip() else ""
        raise UserError(f"{source}{where} is not YAML: {error.problem or error.context}; correct or quote it") from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{source} is not YAML: it holds the character U+{int(error.character):04X}; remove it"
        ) from None
    except RecursionError:
        raise UserError(f"{source} is not YAML that is read here: it is nested too deeply; make it flatter") from None
    except Exception as error:  # constructors of tags such as !!int and !!timestamp raise whatever they meet
        raise UserError(f"{source} is not YAML: {error}; correct or quote it") from None


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """The file's sections over those that it extends; `depth` files extend this one. Raises UserError."""
    if depth > _MOST_EXTENDED:
        raise UserError(f"{path}: extends leads back to the same files again and again; remove one of the links")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        if not near:
            names = {p.stem: str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.yaml")}
            near = [names[stem] for stem in difflib.get_close_matches(path.stem, names)]
        raise UserError(
            f"configuration {path} does not exist" + (f"; did you mean {', '.join(near)}?" if near else "")
        ) from None
    except (OSError, ValueError) as error:  # of the text's encoding, of a path with a null byte
        raise UserError(f"configuration {path} cannot be read ({error}); name another file") from None
    tree = load_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections ({', '.join(Config.model_fields)}), found {type(tree).__name__}")
    bases = tree.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: extends={_shown(bases)} is not allowed: expected a path or a list of paths")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, _read(path.parent / base, depth + 1))
    return _merge(merged, tree)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, item in over.items():
        both = isinstance(item, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], item) if both else item
    return merged


def _parse(tree: Mapping[str, Any], overrides: Iterable[str], source: Path) -> Config:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: expected section.key=value")
        change: Any = load_yaml(text, f"--set {override}")
        for part in reversed(key.strip().split(".")):
            change = {part: change}
        tree = _merge(tree, change)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error)}") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _stage(tree: Mapping[str, Any], overrides: list[str], source: Path) -> Config:
    """A stage of a recipe. Its reasons for departures (run.why) are for what it says itself: `--set` has others."""
    config, data = _parse(tree, overrides, source), tree.get("data") or {}
    changed = {one.partition("=")[0].strip() for one in overrides}
    given = {key.removeprefix("run.why.") for key in changed if key.startswith("run.why.")}
    why = dict(config.run.why)
    if (data.get("root") or data.get("index")) and changed & {"data.root", "data.index"}:
        about_images = {key for key in why if key.split(".")[0] in ("data", "evaluation")}
        why |= dict.fromkeys(about_images - given, "the recipe's, made for other images")
    own = {key for key in changed - given if any(f"{key}.".startswith(f"{known}.") for known in config.run.why)}
    why |= dict.fromkeys(own, "set on the command line")
    return config.model_copy(update={"run": config.run.model_copy(update={"why": why})})


def _first_problem(error: ValidationError) -> str:
    """One line: the key, the value, what is allowed; for an unknown key, the nearest known one."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"] if not str(part).startswith(("function-", "tuple[", "constrained-"))]
    if path and path[-1] == "int":
        path.pop()
    key = ".".join(path) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {key}; {advice}"
    if problem["type"] == "missing":
        return f"{key} is missing; set it in the file or with --set {key}=..."
    message = problem["msg"].removeprefix("Value error, ")
    if key == "data.S" and "range must rise" not in message:
        message = "expected a number of px, or a range [low, high]"
    return f"{key}={_shown(problem['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def _shown(given: Any) -> str:
    """A wrong value for a message."""
    text = repr(given)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _known_keys(path: list[str]) -> list[str]:
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
        if typing.get_origin(section) in (typing.Union, types.UnionType):
            section = typing.get_args(section)[0]
    return list(section.model_fields)
