"""The model card beside an exported net: Markdown with the Hub's metadata, made from what the run directory holds.

Nothing in it is typed by hand: errors come from stored posteriors, departures from the ledger, the rest from the
checkpoint and the run's own files. Where something is not known, the card says so. No torch.
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
    """The errors of a net under one protocol, and on which images."""

    measured: Measured
    printed: tuple[float, float] | None
    """(top-1, top-5) of the paper; None where it prints none, or of another net or other images."""
    data: str
    """Fingerprint of the index."""
    protocol: str
    """In words: the method, Q, and what is not as in the paper."""


def place_of(weights_file: Path) -> Path:
    """The card of a weight file: beside it, under its name.

    Raises UserError where a file of that name is there that was not made here, or was edited since.
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
    """Whether a card was made here, and not edited since."""
    return any(card == _signed(card.rpartition(_MARK.format(verb))[0], verb) for verb in _VERBS)


def _signed(text: str, verb: str) -> str:
    """A card with its last line, by which edits are noticed."""
    return f"{text}{_MARK.format(verb)}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def function_of(model: Model) -> str | None:
    """What torchvision and timm call a net; None where they have none of its layers and geometry."""
    like_theirs = model.layers is None and model.fully_connected and model.geometry == Model(net=model.net).geometry
    theirs = TORCHVISION_NAMES.get(model.net) if like_theirs else None
    return theirs and theirs + ("_bn" if model.batch_norm else "")


def model_card(
    kept: Checkpoint,
    weights: str,
    run: RunDirectory,
    file: str,
    sha256: str,
    *,
    published: str | None = None,
    evidence: bool = False,
) -> str:
    """The card of a net that was written to a `.safetensors` file.

    Args:
        kept: the net's checkpoint.
        weights: the net's hash (`checkpoint.weights_hash`).
        run: the directory whose posteriors, ledger and data set belong to it; it may lack any of them.
        file: the name of the written file.
        sha256: of its content, hex.
        published: where the net is published, `hf:owner/name` or FOLDER; None where it is exported.
        evidence: whether its answers are published with it.

    Raises:
        UserError: stored posteriors, or a file of the run directory, cannot be read.
    """
    config, model, imported = kept.stage, kept.stage.model, kept.provenance.get("imported")
    errors = list(_errors(config, weights, run))
    data = {} if imported else run.read_json("dataset.json") or {}
    made = dict.fromkeys(("git_commit", "git_dirty", "command"))  # which may be unknown
    made |= run.read_json("environment.json") or kept.provenance.get("versions") or {}
    function = function_of(model)
    library = "timm" if published and function else "pytorch"
    own = " with layers of its own" if model.layers is not None else ""
    own += f", its first {model.blocks} blocks" if model.blocks else ""
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
        net=model.net + own + (" with batch normalisation" if model.batch_norm else ""),
        architecture=architecture_of(config),
        step=kept.step,
        preprocessing=kept.preprocessing,
        imported=imported,
        parent=kept.provenance.get("parent"),
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
    """Every error that the stored posteriors of the net give: at each Q, over several, and by methods combined."""
    stored: dict[tuple[str, bool, str], dict[str, set[int]]] = {}
    for key in [key for key, _ in PosteriorsKey.listed(run) if key.weights == weights]:
        flip = config.evaluation.flip if key.method == "centre" else key.flip  # which is never mirrored
        methods = stored.setdefault((key.data, flip, key.precision), {})
        methods.setdefault(key.method, set()).add(key.Q)
    for (data, flip, precision), methods in stored.items():
        testing = config.evaluation.model_copy(update={"flip": flip, "precision": precision})
        results = NetResults(run, weights, data, testing)
        both = {name: set.intersection(*(methods.get(one, set()) for one in of)) for name, of in COMBINED.items()}
        for method, sides in (methods | both).items():
            for Q in _groups(sides, config.multi_Q):
                found = results.measured(method, Q)
                assert found is not None, (method, Q)
                words = f"{method}, Q = {', '.join(map(str, Q))}"
                words += "" if flip or method == "centre" else ", not mirrored"
                words += "" if precision == "fp32" else f", {precision}"
                yield StoredErrors(found, _printed(config, found), data, words)


def _groups(sides: set[int], multi_Q: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Each Q, then several together: those of the run's own Table 4, else all that are stored."""
    several = multi_Q if set(multi_Q) <= sides else tuple(sorted(sides))
    return [(side,) for side in sorted(sides)] + ([several] if len(several) > 1 else [])


def _metadata(config: Config, tested: list[StoredErrors], data: dict[str, Any], library: str) -> dict[str, Any]:
    """The header, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""
    ilsvrc = data.get("ilsvrc") == []  # its classes, and departs in nothing
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
                    "name": _images(data, one.data),
                    "type": "ILSVRC/imagenet-1k" if ilsvrc and one.data == data["fingerprint"] else "imagefolder",
                    "split": "validation",
                },
                "metrics": [
                    {
                        "type": "accuracy",
                        "name": f"{name} accuracy, % ({one.protocol})",
                        "value": round(100 - percent, 2),
                    }
                    for name, percent in (("top-1", one.measured.top1.percent), ("top-5", one.measured.top5.percent))
                ],
            }
            for one in tested
        ]
        metadata["model-index"] = [{"name": config.name, "results": results}]
    return metadata


def _images(data: dict[str, Any], fingerprint: str) -> str:
    known = Path(data["source"]).name if data.get("fingerprint") == fingerprint else "images"
    return f"{known} ({fingerprint[:12]})"


def _printed(config: Config, found: Measured) -> tuple[float, float] | None:
    """(top-1, top-5) that the paper prints for the net under the protocol; None where it prints none, or of others."""
    model = config.model
    own = (model.geometry, model.classes, found.top1.n)
    papers = (Model(net=model.net).geometry, value("classes"), value("val_images"))
    if own != papers or model.layers is not None or model.batch_norm:
        return None
    for table in (3, 4, 5):
        for row in facts().table(table):
            if (row.nets, row.S, row.Q, row.method) == ((model.net,), config.data.S, found.Q, found.method):
                return row.top1, row.top5
    return None
