"""Fidelity ledger: every setting in which a run departs from the paper, with the paper's value and a reason.

A faithful run has an empty ledger. Settings that the paper does not mention are not departures; REPRODUCTION.md lists
those choices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vggrepro.config.settings import Config, Data, Model
from vggrepro.models.table1 import architecture_of
from vggrepro.paper import facts, value
from vggrepro.storage.directory import RunDirectory

_FORMERLY = "data.pictures.", "data.images."  # runs before November 2026 have the former name
# Default reasons for settings without one in run.why.
_REASONS = {
    "model.batch_norm": "batch normalisation came after the paper",
    "model.blocks": "reduced geometry: at a smaller crop fewer poolings leave a last map of the paper's size",
    "model.crop": "reduced geometry",
    "model.width": "reduced geometry",
    "model.classes": "another data set",
    "model.fully_connected": "only the convolutions are known: features are those of the last pooling",
    "data.S": "reduced geometry",
    "data.images": "another data set",
    "data.rejected": "they cannot be read",
    "evaluation": "reduced geometry",
    "evaluation.dense_places": "Q is less than a stride above the crop, so the dense test of a square image has one "
    "position and shows nothing of Section 3.2",
}


@dataclass(frozen=True)
class Departure:
    """Line of the ledger."""

    setting: str
    paper: Any
    run: Any
    why: str

    def __str__(self) -> str:
        return f"{self.setting}: {_text(self.run)} instead of {_text(self.paper)} ({self.why})"


def ledger(config: Config, parent: Config | None, images: Mapping[str, Any] | None = None) -> list[Departure]:
    """Lists the departures of a stage, given its parent stage and, once known, the index's summary as `images`."""
    return [
        Departure(setting, paper, run, _why(setting, config))
        for setting, paper, run in _compared(config, parent, images)
        if paper != run
    ]


def write_ledger(run: RunDirectory, departures: Sequence[Departure]) -> None:
    """Stores the ledger in a run directory."""
    run.write_json("ledger.json", [asdict(departure) for departure in departures])


def read_ledger(run: RunDirectory) -> list[Departure] | None:
    """Reads the ledger of a run directory, or returns None if there is none. Raises UserError."""
    lines = run.read_json("ledger.json")
    return None if lines is None else departures_in(lines)


def departures_in(lines: Sequence[dict[str, Any]]) -> list[Departure]:
    """Parses the content of a `ledger.json`."""
    return [Departure(**line | {"setting": line["setting"].replace(*_FORMERLY)}) for line in lines]


def _compared(
    config: Config, parent: Config | None, images: Mapping[str, Any] | None
) -> Iterator[tuple[str, Any, Any]]:
    """Yields (setting, the paper's value, the run's value)."""
    model, data, train = config.model, config.data, config.train
    table = facts().architectures
    fixed, fine, jitter = value("scales")[0], value("scales")[1], value("jitter")
    scales = [fixed] if model.net in ("A", "A-LRN", "B") else [fixed, fine, jitter]
    if config.localisation:
        scales = [fixed, fine]
    S = config.papers_S  # at reduced geometry, the rest of the recipe is compared with the paper's corresponding stage

    if not config.localisation:
        yield "model.net", " ".join(table), model.net if model.net not in table else " ".join(table)
    if model.layers is not None:
        yield "model.layers", _text(table.get(model.net, "none")), _text(model.layers)
    blocks = len(model.layers or table.get(model.net, ()))
    yield "model.blocks", blocks, model.blocks or blocks
    yield "model.batch_norm", False, model.batch_norm
    yield "model.classes", value("classes"), model.classes
    yield "model.crop", value("crop"), model.crop
    yield "model.width", 1.0, model.width
    yield "model.init", "paper", model.init
    yield "model.dropout", value("dropout"), model.dropout
    yield "model.fully_connected", True, model.fully_connected

    yield "data.S", scales[0] if S not in scales else S, data.S
    yield "data.flip", value("flip"), data.flip
    yield "data.colour_shift.mode", "sqrt", data.colour_shift.mode
    if data.colour_shift.mode != "off":
        yield "data.colour_shift.sigma", value("colour_shift_sigma"), data.colour_shift.sigma
    yield "data.mean", tuple(value("mean_rgb")), data.mean
    if images:
        for split, n in images["splits"].items():
            yield f"data.images.{split}", value(f"{split}_images"), n
            yield f"data.rejected.{split}", 0, images["rejected_splits"][split]

    yield "train.batch", value("batch_size"), train.batch
    yield "train.momentum", value("momentum"), train.momentum
    yield "train.weight_decay", value("weight_decay"), train.weight_decay
    yield "train.schedule.kind", "plateau", train.schedule.kind
    yield "train.schedule.factor", value("learning_rate_factor"), train.schedule.factor
    yield "train.biases", "paper", train.biases
    yield "train.precision", "fp32", train.precision
    yield "train.comm", "exact", "bf16" if train.comm == "bf16" else "exact"

    single: tuple[Any, ...]
    started = f"{parent.model.net} at S={parent.data.S_text}" if parent else "none"
    if config.localisation:
        net = value("localisation_net")
        yield "model.net", net, model.net
        yield "train.learning_rate", value("localisation_learning_rate"), train.learning_rate
        of_classes = parent is not None and parent.localisation is None and parent.data.S == data.S
        yield "run.parent", started if of_classes else f"{net} at S={data.S_text}, of classes", started
        paper = Config(model=Model(net=net), data=Data(S=S))
        tested = {Q for row in facts().localisation[9] for member in row.members if member.S == S for Q in member.Q}
        single, multi = (S,), tuple(sorted(tested))
    else:
        # The paper has a complete schedule for fixed S = 256, the first rate for S = 384, and nothing for the jitter.
        if S == fine:
            yield "train.learning_rate", value("learning_rate_384"), train.learning_rate
        elif S != jitter:
            yield "train.learning_rate", value("learning_rate"), train.learning_rate
            yield "train.iterations", value("iterations"), train.iterations
            if train.schedule.kind == "plateau":
                yield "train.schedule.max_drops", value("learning_rate_decreases"), train.schedule.max_drops
        expected = "none" if model.net in ("A", "A-LRN") else f"A at S={data.S_text}"
        if S in (fine, jitter):
            before = fixed if S == fine else fine
            expected = f"{model.net} at S={parent.data.S_text if parent and parent.papers_S == before else before}"
        yield "run.parent", expected, started
        paper = Config(model=Model(net="A"), data=Data(S=S if S in scales else scales[0]))
        single, multi = paper.single_Q, paper.multi_Q

    yield "evaluation.single_Q", single, config.single_Q
    Q, papers_Q = config.single_Q[0], paper.single_Q[0]
    if architecture_of(config).places(Q, Q) == 1:
        yield "evaluation.dense_places", architecture_of(paper).places(papers_Q, papers_Q), 1
    if config.localisation or model.net not in ("A", "A-LRN"):  # Table 4 omits these
        yield "evaluation.multi_Q", multi, config.multi_Q
    if not config.localisation:
        yield "evaluation.flip", True, config.evaluation.flip
    yield "evaluation.precision", "fp32", config.evaluation.precision


def _why(setting: str, config: Config) -> str:
    """Selects the reason of the longest prefix of a setting that has one."""
    parts = setting.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    candidates = (reasons.get(prefix) for reasons in (config.run.why, _REASONS) for prefix in prefixes)
    return next(filter(None, candidates), "no reason given; give one in run.why")


def _text(item: Any) -> str:
    return f"[{', '.join(map(_text, item))}]" if isinstance(item, tuple | list) else str(item)
