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

from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.evaluation.errors import ErrorRate
from vggrepro.evaluation.measure import COMBINED, Measured, NetAnswers
from vggrepro.evaluation.posteriors import PosteriorsKey
from vggrepro.models.table1 import TORCHVISION_NAMES, architecture_of
from vggrepro.paper import facts, value
from vggrepro.reporting.blocks import DASH, Bullets, Heading, Sheet, Text, to_markdown
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.environment import without_folders
from vggrepro.storage.ledger import read_ledger

if TYPE_CHECKING:
    from vggrepro.storage.checkpoint import Checkpoint

_MARK = "<!-- made by `vggrepro weights export`; SHA-256 of all above: "
_LICENCE = (
    "# license: yours to give, e.g. apache-2.0: it depends on the images' terms, too, and nothing here knows it\n"
)
_PAPER = "https://arxiv.org/abs/1409.1556"


@dataclass(frozen=True)
class Tested:
    """The errors of a net under one protocol, and on which images."""

    measured: Measured
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
        if card.exists() and not _is_as_made(card.read_text(encoding="utf-8")):
            raise UserError(
                f"--out {weights_file}: its model card {card} was written or edited by hand, and would be lost; "
                f"move it away, or export under another name"
            )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model card {card} cannot be read ({error}); move it away") from None
    return card


def _is_as_made(text: str) -> bool:
    above, mark, digest = text.rpartition(_MARK)
    return bool(mark) and digest == f"{_sha256(above.encode())} -->\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def model_card(kept: Checkpoint, weights: str, run: RunDirectory, file: Path) -> str:
    """The card of a net that was written to a `.safetensors` file.

    Args:
        kept: the net's checkpoint.
        weights: the net's hash (`checkpoint.weights_hash`).
        run: the directory whose posteriors, ledger and data set belong to it; it may lack any of them.
        file: the written file.

    Raises:
        UserError: stored posteriors, or a file of the run directory, cannot be read.
    """
    config, imported = kept.stage, kept.provenance.get("imported")
    tested = list(_tested(config, weights, run))
    data = {} if imported else run.read_json("dataset.json") or {}
    header = yaml.safe_dump(_metadata(config, tested, data), sort_keys=False, allow_unicode=True, width=1000)
    title = f"{config.name}: net {_net(config)} of Simonyan & Zisserman (2014)"
    body = to_markdown(
        [
            Heading(1, title),
            Text(
                f"[Very Deep Convolutional Networks for Large-Scale Image Recognition]({_PAPER}), "
                + (f"imported: {imported['source']}." if imported else "trained by vggrepro.")
            ),
            Sheet(("", ""), list(_net_rows(kept, data))),
            Heading(2, "Input"),
            Text(_input(kept.preprocessing, config.model.crop)),
            Heading(2, "Errors"),
            *_errors(config, tested, imported is not None),
            Heading(2, "Departures from the paper"),
            *_departures(run),
            Heading(2, "Where it comes from"),
            Sheet(("", ""), list(_origin_rows(kept, weights, run, data, file))),
            Heading(2, "Use"),
        ]
    )
    above = f"---\n{_LICENCE}{header}---\n\n{body}\n{_use(config, file.name)}\n"
    return f"{above}{_MARK}{_sha256(above.encode())} -->\n"


def _net(config: Config) -> str:
    model = config.model
    own = " with layers of its own" if model.layers is not None else ""
    return model.net + own + (" with batch normalisation" if model.batch_norm else "")


def _tested(config: Config, weights: str, run: RunDirectory) -> Iterator[Tested]:
    """Every error that the stored posteriors of the net give: at each Q, over several, and by methods combined."""
    stored: dict[tuple[str, bool, str], dict[str, set[int]]] = {}
    for key in [key for key, _ in PosteriorsKey.listed(run) if key.weights == weights]:
        flip = config.evaluation.flip if key.method == "centre" else key.flip  # which is never mirrored
        methods = stored.setdefault((key.data, flip, key.precision), {})
        methods.setdefault(key.method, set()).add(key.Q)
    for (data, flip, precision), methods in stored.items():
        testing = config.evaluation.model_copy(update={"flip": flip, "precision": precision})
        answers = NetAnswers(run, weights, data, testing)
        both = {name: set.intersection(*(methods.get(one, set()) for one in of)) for name, of in COMBINED.items()}
        for method, sides in (methods | both).items():
            for Q in _groups(sides, config.multi_Q):
                found = answers.measured(method, Q)
                assert found is not None, (method, Q)
                words = f"{method}, Q = {', '.join(map(str, Q))}"
                words += "" if flip or method == "centre" else ", not mirrored"
                yield Tested(found, data, words + ("" if precision == "fp32" else f", {precision}"))


def _groups(sides: set[int], multi_Q: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Each Q, then several together: those of the run's own Table 4, else all that are stored."""
    several = multi_Q if set(multi_Q) <= sides else tuple(sorted(sides))
    return [(side,) for side in sorted(sides)] + ([several] if len(several) > 1 else [])


def _metadata(config: Config, tested: list[Tested], data: dict[str, Any]) -> dict[str, Any]:
    """The header, as the Hub reads it (https://huggingface.co/docs/hub/model-cards)."""
    ilsvrc = data.get("ilsvrc") == []  # its classes, and departs in nothing
    metadata: dict[str, Any] = {
        "library_name": "pytorch",
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
                    {"type": "accuracy", "name": f"top-{k} accuracy, % ({one.protocol})", "value": _accuracy(rate)}
                    for k, rate in ((1, one.measured.top1), (5, one.measured.top5))
                ],
            }
            for one in tested
        ]
        metadata["model-index"] = [{"name": config.name, "results": results}]
    return metadata


def _accuracy(rate: ErrorRate) -> float:
    return round(100 - rate.percent, 2)


def _images(data: dict[str, Any], fingerprint: str) -> str:
    known = Path(data["source"]).name if data.get("fingerprint") == fingerprint else "images"
    return f"{known} ({fingerprint[:12]})"


def _net_rows(kept: Checkpoint, data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    config, model, train = kept.stage, kept.stage.model, kept.stage.train
    net = architecture_of(config)
    imported, parent = kept.provenance.get("imported"), kept.provenance.get("parent")
    yield "column of Table 1", f"{_net(config)}, {net.weight_layers} weight layers"
    blocks = model.layers or facts().architectures[model.net]
    yield "layers", "; maxpool; ".join(", ".join(block) for block in blocks) + "; maxpool; fc6, fc7, fc8"
    yield "parameters", f"{net.parameters:,}"
    width = "as in the paper" if model.width == 1 else f"x {model.width:g}"
    yield "geometry", f"crop {model.crop} px, width {width}, {model.classes:,} classes"
    if imported:
        yield "training", "not known here"
        return
    yield "training scale S", config.data.S_text
    whole = "" if kept.step == train.iterations else f" of {train.iterations:,}"
    yield "training", f"{kept.step:,}{whole} iterations of {train.batch} images in {train.precision}"
    yield "seed", str(config.run.seed)
    yield "starts from", f"{parent['name']} (weights {parent['weights'][:12]})" if parent else "random weights"


def _input(preprocessing: dict[str, Any], crop: int) -> str:
    mean, std = (", ".join(f"{part:g}" for part in preprocessing[key]) for key in ("mean", "std"))
    low, high = preprocessing["range"]
    return (
        f"{preprocessing['channels']}, grey levels {low} to {high} (not 0 to 1), from which the mean ({mean}) is "
        f"subtracted; then divided by ({std}). A batch is N x 3 x {crop} x {crop}; the scores are logits."
    )


def _errors(config: Config, tested: list[Tested], imported: bool) -> Iterator[Text | Sheet]:
    if not tested:
        yield Text("Not evaluated: no posteriors of this net are stored beside it.")
        return
    rows, printed_any = [], False
    for one in tested:
        printed = _printed(config, one.measured)
        printed_any |= printed is not None
        rows.append(
            (
                one.protocol,
                _with_interval(one.measured.top1),
                f"{printed[0]:.1f}" if printed else DASH,
                _with_interval(one.measured.top5),
                f"{printed[1]:.1f}" if printed else DASH,
                f"{one.measured.top1.n:,}",
                one.data[:12],
            )
        )
    head = ("protocol", "top-1 error, %", "printed", "top-5 error, %", "printed", "n", "images")
    yield Sheet(head, rows, numbers=frozenset({1, 2, 3, 4, 5}))
    text = (
        "Of the validation images, each counted once, with 95 % Wilson intervals. `dense`, `multicrop` and `both` "
        "are the methods of Section 3.2, averaged over the values of Q (shorter side, px); `centre` is one crop, and "
        "must not be compared with the paper's figures."
    )
    if printed_any:
        text += " Printed: the paper's figure for this net, S, Q and method."
        text += " That this net is the paper's is its file's word." if imported else ""
    else:
        text += " The paper prints no figure for this net, geometry, data and protocol."
    yield Text(text)


def _with_interval(rate: ErrorRate) -> str:
    low, high = rate.interval
    return f"{rate.percent:.2f} ({low:.2f} to {high:.2f})"


def _printed(config: Config, found: Measured) -> tuple[float, float] | None:
    """(top-1, top-5) that the paper prints for the net under the protocol; None where it prints none, or of others."""
    model = config.model
    own = (model.crop, model.width, model.classes, found.top1.n)
    papers = (value("crop"), 1.0, value("classes"), value("val_images"))
    if own != papers or model.layers is not None or model.batch_norm:
        return None
    for table in (3, 4, 5):
        for row in facts().table(table):
            if (row.nets, row.S, row.Q, row.method) == ((model.net,), config.data.S, found.Q, found.method):
                return row.top1, row.top5
    return None


def _departures(run: RunDirectory) -> Iterator[Text | Bullets]:
    listed = read_ledger(run)
    if listed is None:
        yield Text("Not known: there is no ledger.json beside this net.")
    elif not listed:
        yield Text("None.")
    else:
        yield Bullets([str(departure) for departure in listed])


def _origin_rows(
    kept: Checkpoint, weights: str, run: RunDirectory, data: dict[str, Any], file: Path
) -> Iterator[tuple[str, str]]:
    imported = kept.provenance.get("imported")
    made = run.read_json("environment.json") or kept.provenance.get("versions") or {}
    yield "file", f"`{file.name}`, SHA-256 `{_sha256_of(file)}`"
    yield "weights", f"`{weights}` (over names, shapes and values)"
    if imported:
        yield "imported from", f"{imported['source']}, SHA-256 `{imported['sha256']}`"
    elif data:
        counts = ", ".join(f"{n:,} {split}" for split, n in data["splits"].items())
        yield "images", f"{Path(data['source']).name}: {counts}; {data['classes']:,} classes"
        yield "their fingerprint", f"`{data['fingerprint']}`"
    else:
        yield "images", "not known: there is no dataset.json beside this net"
    commit = made.get("git_commit")
    changed = ", with uncommitted changes" if made.get("git_dirty") else ""
    yield "code", f"vggrepro, commit `{commit}`{changed}" if commit else "vggrepro, of no known commit"
    if command := made.get("command"):
        yield "imported by" if imported else "command", f"`{without_folders(command)}`"
    versions = ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "torchvision") if made.get(name))
    yield "versions", versions or "not known"


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _use(config: Config, name: str) -> str:
    """How to load it, as Markdown."""
    model = config.model
    lines = ["With vggrepro, tested on your images:", "", "```"]
    lines += [f"vggrepro weights import {name} --out runs/published/net"]
    lines += ["vggrepro evaluate runs/published/net --set data.index=FILE", "```", ""]
    if model.net in TORCHVISION_NAMES and model.layers is None and (model.width, model.crop) == (1.0, value("crop")):
        function = TORCHVISION_NAMES[model.net] + ("_bn" if model.batch_norm else "")
        overlay = f'{{"file": "{name}", "num_classes": {model.classes}}}'
        lines += ["With torchvision:", "", "```python"]
        lines += [f"net = torchvision.models.{function}(num_classes={model.classes})"]
        lines += [f'net.load_state_dict(safetensors.torch.load_file("{name}"))', "```", ""]
        lines += ["With timm:", "", "```python"]
        lines += [f"overlay = {overlay}"]
        lines += [
            f'net = timm.create_model("{function}", pretrained=True, num_classes={model.classes}, '
            f"pretrained_cfg_overlay=overlay)",
            "```",
            "",
        ]
    else:
        lines += [
            "torchvision and timm have no such net: theirs are A, B, D and E at full width and crop "
            f"{value('crop')}, with Table 1's layers.",
            "",
        ]
    return "\n".join(lines)
