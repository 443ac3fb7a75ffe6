"""Model card of an exported net: Markdown with the Hub's metadata.

All of it is read from the run: errors from stored posteriors, departures from the ledger, the rest from the checkpoint
and the files of the run directory. The card names what is unknown. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vggrepro.config.settings import Config, Model
from vggrepro.errors import UserError
from vggrepro.evaluation.measure import COMBINED, Measured, NetResults
from vggrepro.evaluation.posteriors import PosteriorsKey
from vggrepro.models.table1 import TORCHVISION_NAMES, architecture_of
from vggrepro.paper import facts, value
from vggrepro.reporting.documents.blocks import template
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import without_folders
from vggrepro.storage.ledger import read_ledger

if TYPE_CHECKING:
    from vggrepro.storage.checkpoint import Checkpoint

_MARK = "<!-- made by `vggrepro {}`; SHA-256 of all above: "
_VERBS = ("weights export", "publish")


@dataclass(frozen=True)
class StoredErrors:
    """Errors of a net under a protocol."""

    measured: Measured
    printed: tuple[float, float] | None
    """(top-1, top-5) of the paper; None if it prints none, or if net or images differ."""
    data: str
    """Fingerprint of the index."""
    protocol: str
    """The method, Q, and differences from the paper, in words."""


def place_of(weights_file: Path) -> Path:
    """Returns the file of the card: beside the weight file, under the same name.

    Raises UserError if that file exists and was written or edited by hand.
    """
    card = weights_file.with_suffix(".md")
    try:
        text = card.read_text(encoding="utf-8") if card.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model card {card} cannot be read ({error}); move it away") from None
    if text is not None and not as_made(text):
        raise UserError(
            f"--out {weights_file}: its model card {card} was written or edited by hand, and would be lost; "
            f"move it away, or export under another name"
        )
    return card


def as_made(card: str) -> bool:
    """Whether a card was generated here and not edited since."""
    return any(card == _signed(card.rpartition(_MARK.format(verb))[0], verb) for verb in _VERBS)


def _signed(text: str, verb: str) -> str:
    """Appends the line that reveals edits."""
    return f"{text}{_MARK.format(verb)}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def function_of(model: Model) -> str | None:
    """Returns the name of a net in torchvision and timm; None if they have no net of its layers and geometry."""
    is_standard = model.layers is None and model.fully_connected and model.geometry == Model(net=model.net).geometry
    name = TORCHVISION_NAMES.get(model.net) if is_standard else None
    return name and name + ("_bn" if model.batch_norm else "")


def model_card(
    checkpoint: Checkpoint,
    weights: str,
    run: RunDirectory,
    file: str,
    sha256: str,
    *,
    published: str | None = None,
    evidence: bool = False,
) -> str:
    """Renders the card of a net that was written to a `.safetensors` file.

    Args:
        checkpoint: the net's checkpoint.
        weights: hash of the net (`checkpoint.weights_hash`).
        run: directory of the net's posteriors, ledger and data set, any of which may be missing.
        file: name of the written file.
        sha256: hash of the file, hex.
        published: `hf:owner/name` or FOLDER where the net is published; None if it is exported.
        evidence: whether its stored results are published with it.

    Raises:
        UserError: stored posteriors or a file of the run directory cannot be read.
    """
    config, model, imported = checkpoint.stage, checkpoint.stage.model, checkpoint.provenance.get("imported")
    errors = list(_errors(config, weights, run))
    data = {} if imported else run.read_json("dataset.json") or {}
    made = dict.fromkeys(("git_commit", "git_dirty", "command"))  # may be unknown
    made |= run.read_json("environment.json") or checkpoint.provenance.get("versions") or {}
    function = function_of(model)
    library = "timm" if published and function else "pytorch"
    variant = " with layers of its own" if model.layers is not None else ""
    variant += f", its first {model.blocks} blocks" if model.blocks else ""
    filters = {
        "cell": lambda text: text.replace("|", "\\|"),
        "count": "{:,}".format,
        "short": "{:g}".format,
        "rate": lambda rate: "{:.2f} ({:.2f} to {:.2f})".format(rate.percent, *rate.interval),
        "without_folders": without_folders,
    }
    text = template("card.md.j2", filters).render(
        header=yaml.safe_dump(
            _metadata(config, errors, data, library), sort_keys=False, allow_unicode=True, width=1000
        ),
        config=config,
        model=model,
        train=config.train,
        net=model.net + variant + (" with batch normalisation" if model.batch_norm else ""),
        architecture=architecture_of(config),
        step=checkpoint.step,
        preprocessing=checkpoint.preprocessing,
        imported=imported,
        parent=checkpoint.provenance.get("parent"),
        errors=errors,
        departures=read_ledger(run),
        file=file,
        sha256=sha256,
        weights=weights,
        data=data,
        source=Path(data["source"]).name if data else "",
        made=made,
        versions=", ".join(f"{name} {made[name]}" for name in ("python", "torch", "torchvision") if made.get(name)),
        function=function,
        papers_geometry=Model(net=model.net).geometry,
        published=published,
        evidence=evidence,
    )
    return _signed(text, "publish" if published else "weights export")


def _errors(config: Config, weights: str, run: RunDirectory) -> Iterator[StoredErrors]:
    """Yields the errors of the stored posteriors: at each Q, over several, and by combined methods."""
    stored: dict[tuple[str, bool, str], dict[str, set[int]]] = {}
    for key in [key for key, _ in PosteriorsKey.listed(run) if key.weights == weights]:
        flip = config.evaluation.flip if key.method == "centre" else key.flip  # a centre crop is never mirrored
        methods = stored.setdefault((key.data, flip, key.precision), {})
        methods.setdefault(key.method, set()).add(key.Q)
    for (data, flip, precision), methods in stored.items():
        testing = config.evaluation.model_copy(update={"flip": flip, "precision": precision})
        results = NetResults(run, weights, data, testing)
        combined = {
            name: set.intersection(*(methods.get(part, set()) for part in parts)) for name, parts in COMBINED.items()
        }
        for method, sides in (methods | combined).items():
            for Q in _groups(sides, config.multi_Q):
                found = results.measured(method, Q)
                assert found is not None, (method, Q)
                words = f"{method}, Q = {', '.join(map(str, Q))}"
                words += "" if flip or method == "centre" else ", not mirrored"
                words += "" if precision == "fp32" else f", {precision}"
                yield StoredErrors(found, _printed(config, found), data, words)


def _groups(sides: set[int], multi_Q: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns each Q, then several together: the Q of the run's Table 4 if stored, otherwise all."""
    several = multi_Q if set(multi_Q) <= sides else tuple(sorted(sides))
    return [(side,) for side in sorted(sides)] + ([several] if len(several) > 1 else [])


def _metadata(config: Config, tested: list[StoredErrors], data: dict[str, Any], library: str) -> dict[str, Any]:
    """Builds the header that the Hub reads (https://huggingface.co/docs/hub/model-cards)."""
    ilsvrc = data.get("ilsvrc") == []  # its classes, and no departures
    metadata: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["vgg", "vggrepro"],
        "metrics": ["accuracy"],
    }
    if ilsvrc:
        metadata["datasets"] = ["ILSVRC/imagenet-1k"]
    if tested:  # the Hub knows accuracies and no errors
        results = [
            {
                "task": {"type": "image-classification"},
                "dataset": {
                    "name": _images(data, test.data),
                    "type": "ILSVRC/imagenet-1k" if ilsvrc and test.data == data["fingerprint"] else "imagefolder",
                    "split": "validation",
                },
                "metrics": [
                    {
                        "type": "accuracy",
                        "name": f"{name} accuracy, % ({test.protocol})",
                        "value": round(100 - error.percent, 2),
                    }
                    for name, error in (("top-1", test.measured.top1), ("top-5", test.measured.top5))
                ],
            }
            for test in tested
        ]
        metadata["model-index"] = [{"name": config.name, "results": results}]
    return metadata


def _images(data: dict[str, Any], fingerprint: str) -> str:
    known = Path(data["source"]).name if data.get("fingerprint") == fingerprint else "images"
    return f"{known} ({fingerprint[:12]})"


def _printed(config: Config, found: Measured) -> tuple[float, float] | None:
    """Returns the paper's (top-1, top-5); None if it prints none for this net, geometry, images and protocol."""
    model = config.model
    measured = (model.geometry, model.classes, found.top1.n)
    papers = (Model(net=model.net).geometry, value("classes"), value("val_images"))
    if measured != papers or model.layers is not None or model.batch_norm:
        return None
    for table in (3, 4, 5):
        for row in facts().table(table):
            if (row.nets, row.S, row.Q, row.method) == ((model.net,), config.data.S, found.Q, found.method):
                return row.top1, row.top5
    return None
