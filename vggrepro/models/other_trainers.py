"""The net in a checkpoint of another trainer: where it lies among optimizers and copies, and under which names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggrepro.errors import UserError

_WRAPPERS = ("module", "_orig_mod")
"""What DataParallel, DDP, averaged copies and torch.compile put into names, wherever they wrap."""
_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow", "teacher", "momentum"}
"""Words in the names of copies that are taken only where there is no other."""
_TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
"""timm's fully-connected layers, which are convolutions, and torchvision's."""
_DEEPEST = 5  # dicts in dicts; a dict may contain itself
_MOST = 20  # names in a message


@dataclass(frozen=True)
class _Candidate:
    """A dict of tensors, or those of its tensors whose names begin alike, with a first convolution among them."""

    name: str
    """The keys that lead to it, "." for none, with the prefix where several nets lie in one dict."""
    prefix: str
    """What stands before every name."""
    items: dict[str, Any]
    """By names without the prefix."""
    beside: list[str]
    """Tensors of the same dict that are of no net."""


def net_in(content: Any, file: Path, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Finds the net in the content of a file, and says what that took.

    A net is a dict of tensors with a `features.0.weight` among them, after whatever common prefix, and with or without
    `module` and `_orig_mod` as parts of names. Averaged copies stand back where there is another net.

    Args:
        content: tensors by name, or dicts of such among anything else.
        file: where it was read, for messages.
        key: the net to take: the keys that lead to it, joined by dots.

    Returns:
        The net's tensors under torchvision's names, and text to go on with after the file's format: which net it is,
        what was left out, and what was not taken. It is empty where the file is a plain state dict.

    Raises:
        UserError: there is no net, there are several, none is called `key`, something in the net's place is no tensor,
            or it is a checkpoint of this program.
    """
    if not isinstance(content, dict):
        raise UserError(
            f"weights {file} hold no state dict ({_kind(content)}); give what torch.save(net.state_dict(), FILE) writes"
        )
    if "format" in content:
        raise UserError(
            f"weights {file} cannot be read (it is a checkpoint; `vggrepro evaluate` takes it as it is); "
            f"give another file"
        )
    nets = [net for place, holder in _dicts(content) for net in _nets(place, holder)]
    if not nets:
        raise UserError(f"weights {file} hold no net with features.0.weight ({_contents(content)}); give another file")
    net = _choice(nets, file, key)
    tensors: dict[str, Tensor] = {}
    for raw, item in net.items.items():
        theirs = ".".join(_unwrapped(raw))
        layer, dot, part = theirs.rpartition(".")
        name = _TIMM.get(layer, layer) + dot + part
        if name in tensors:
            raise UserError(f"weights {file} hold two tensors of the name {theirs}; give another file")
        if (
            isinstance(item, Tensor)
            and item.layout == torch.strided
            and not (item.is_quantized or item.is_meta or item.is_complex())
        ):
            tensors[name] = item.detach().flatten(1) if layer in _TIMM and item.ndim == 4 else item.detach()
        elif dot:  # others are a trainer's own values
            raise UserError(f"weights {file} hold no plain tensor as {theirs} but {_kind(item)}; give another file")
    return tensors, _account(content, net, [other.name for other in nets if other is not net])


def _dicts(content: dict[Any, Any]) -> Iterator[tuple[list[str], dict[Any, Any]]]:
    """All dicts of a file and the keys that lead to them, the nearest first."""
    found: list[tuple[list[str], dict[Any, Any]]] = [([], content)]
    seen = {id(content)}
    for place, holder in found:
        yield place, holder
        for key, item in _named(holder).items():
            if isinstance(item, dict) and id(item) not in seen and len(place) < _DEEPEST:
                seen.add(id(item))
                found.append(([*place, key], item))


def _nets(place: list[str], holder: dict[Any, Any]) -> Iterator[_Candidate]:
    named = _named(holder)
    tensors = [name for name, item in named.items() if isinstance(item, Tensor)]
    items: dict[str, dict[str, Any]] = {
        name[: name.rindex("features")]: {} for name in tensors if _unwrapped(name)[-3:] == ["features", "0", "weight"]
    }  # by what stands before the name of a first convolution's weights
    beside = []
    for name, item in named.items():
        if under := [prefix for prefix in items if name.startswith(prefix)]:
            prefix = max(under, key=len)
            items[prefix][name[len(prefix) :]] = item
        elif isinstance(item, Tensor):
            beside.append(name)
    for prefix, found in items.items():
        keys = [*place, prefix[:-1]] if prefix and len(items) > 1 else place
        yield _Candidate(".".join(keys) or ".", prefix, found, beside)


def _named(holder: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): item for key, item in holder.items() if isinstance(key, str | int)}


def _unwrapped(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _WRAPPERS]


def _choice(nets: list[_Candidate], file: Path, key: str | None) -> _Candidate:
    names = _some([net.name for net in nets], _MOST)
    if key is not None:
        chosen = [net for net in nets if net.name == key]
        if len(chosen) != 1:
            remedy = "leave --key out" if len(nets) == 1 else "choose one of these"
            raise UserError(f"--key {key}: weights {file} hold the net{'s' * (len(nets) > 1)} {names}; {remedy}")
        return chosen[0]
    chosen = [net for net in nets if not _AVERAGED & set(re.split(r"[\W\d_]+", f"{net.name}.{net.prefix}".lower()))]
    if len(chosen or nets) > 1:
        raise UserError(
            f"weights {file} hold several nets: {names}; choose one with --key of `vggrepro weights import`"
        )
    return (chosen or nets)[0]


def _account(content: dict[Any, Any], net: _Candidate, others: list[str]) -> str:
    epoch, arch = content.get("epoch"), content.get("arch")
    text = ""
    if net.name != ".":
        text += f", {_shown(net.name)} of a checkpoint"
        text += f" of epoch {_shown(str(epoch))}" if type(epoch) is int else ""
        text += f", arch {_shown(arch)}" if isinstance(arch, str) else ""
    parts = {part for name in net.items for part in name.split(".")}
    wrappers = [f"{part}." for part in _WRAPPERS if part in parts]
    if dropped := [f"`{_shown(part)}`" for part in (net.prefix, *wrappers) if part]:
        text += f", without {' and '.join(dropped)}"
    if net.beside:
        text += f"; left out: {_some(net.beside)}"
    if others:
        text += f"; not taken: {_some(others)} (--key takes {'it' if len(others) == 1 else 'them'})"
    return text


def _contents(content: dict[Any, Any]) -> str:
    """What a file holds: its tensors, and what lies under the first of its other keys."""
    others = {key: item for key, item in _named(content).items() if not isinstance(item, Tensor)}
    parts = [_kind(content)] if len(others) < len(content) else []
    parts += [f"{_shown(key)}: {_kind(item)}" for key, item in list(others.items())[:_MOST]]
    return "; ".join(parts) or "nothing"


def _kind(item: Any) -> str:
    names = [key for key, inner in _named(item).items() if isinstance(inner, Tensor)] if isinstance(item, dict) else []
    if names:
        return f"{len(names)} tensor{'s' * (len(names) > 1)}, the first {_shown(names[0])}"
    if item is None or isinstance(item, bool | int | float | str):
        return f"{item!r:.40}"
    return _shown((item if isinstance(item, type) else type(item)).__name__)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(map(_shown, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shown(name: str) -> str:
    """A name from a file, of no more than plain characters: it goes into reports and cards."""
    return re.sub(r"[^\w .+/-]", "?", name[:60])
