"""Search for the net in a checkpoint of another trainer, among optimizers and copies, and renaming of its tensors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggrepro.errors import UserError

_WRAPPERS = ("module", "_orig_mod")
"""Parts of names that DataParallel, DDP, averaged copies and torch.compile insert."""
_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow", "teacher", "momentum"}
"""Words in the names of averaged copies, which are chosen only if there is no other net."""
_TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
"""Torchvision's names of timm's fully-connected layers, which are convolutions."""
_MAX_DEPTH = 5  # dicts in dicts; a dict may contain itself
_MAX_NAMES = 20  # in a message


@dataclass(frozen=True)
class _Candidate:
    """A dict of tensors, or its tensors with a common prefix, that includes a first convolution."""

    name: str
    """Keys that lead to it, "." for none, and the prefix if a dict has several nets."""
    prefix: str
    """Prefix of all names."""
    items: dict[str, Any]
    """Items by name without the prefix."""
    leftover: list[str]
    """Tensors of the same dict that belong to no net."""


def net_in(content: Any, file: Path, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Finds the net in the content of a file.

    A net is a dict of tensors with a `features.0.weight`, after any common prefix and with or without `module` and
    `_orig_mod` in names. Averaged copies are chosen only if there is no other net. `key` has the keys that lead to the
    net, joined by dots.

    Returns the tensors under torchvision's names, and a description to append to the file's format, which is empty for
    a plain state dict: which net was chosen, and what was left out. Raises UserError if there is no net or several,
    none matches `key`, an item of the net is not a tensor, or the file is a checkpoint of this program.
    """
    if not isinstance(content, dict):
        raise UserError(
            f"weights {file} hold no state dict ({_kind(content)}); give what torch.save(net.state_dict(), FILE) writes"
        )
    if "format" in content:
        raise UserError(
            f"weights {file} are a checkpoint, which cannot be imported; `vggrepro evaluate` accepts it as it is"
        )
    nets = [net for path, holder in _dicts(content) for net in _nets(path, holder)]
    if not nets:
        raise UserError(f"weights {file} hold no net with features.0.weight ({_contents(content)}); give another file")
    net = _choose(nets, file, key)
    tensors: dict[str, Tensor] = {}
    for raw, item in net.items.items():
        key_name = ".".join(_unwrapped(raw))
        layer, dot, part = key_name.rpartition(".")
        name = _TIMM.get(layer, layer) + dot + part
        if name in tensors:
            raise UserError(f"weights {file} hold two tensors named {key_name}; give another file")
        if (
            isinstance(item, Tensor)
            and item.layout == torch.strided
            and not (item.is_quantized or item.is_meta or item.is_complex())
        ):
            tensors[name] = item.detach().flatten(1) if layer in _TIMM and item.ndim == 4 else item.detach()
        elif dot:  # other items are values of the trainer
            raise UserError(f"weights {file} hold no plain tensor as {key_name} but {_kind(item)}; give another file")
    return tensors, _describe_choice(content, net, [other.name for other in nets if other is not net])


def _dicts(content: dict[Any, Any]) -> Iterator[tuple[list[str], dict[Any, Any]]]:
    """Yields all dicts of a file and the keys that lead to them, breadth first."""
    found: list[tuple[list[str], dict[Any, Any]]] = [([], content)]
    seen = {id(content)}
    for path, holder in found:
        yield path, holder
        for key, item in _by_name(holder).items():
            if isinstance(item, dict) and id(item) not in seen and len(path) < _MAX_DEPTH:
                seen.add(id(item))
                found.append(([*path, key], item))


def _nets(path: list[str], holder: dict[Any, Any]) -> Iterator[_Candidate]:
    named = _by_name(holder)
    tensors = [name for name, item in named.items() if isinstance(item, Tensor)]
    items: dict[str, dict[str, Any]] = {
        name[: name.rindex("features")]: {} for name in tensors if _unwrapped(name)[-3:] == ["features", "0", "weight"]
    }  # by prefix of a first convolution's weights
    leftover = []
    for name, item in named.items():
        if prefixes := [prefix for prefix in items if name.startswith(prefix)]:
            prefix = max(prefixes, key=len)
            items[prefix][name[len(prefix) :]] = item
        elif isinstance(item, Tensor):
            leftover.append(name)
    for prefix, found in items.items():
        keys = [*path, prefix[:-1]] if prefix and len(items) > 1 else path
        yield _Candidate(".".join(keys) or ".", prefix, found, leftover)


def _by_name(holder: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): item for key, item in holder.items() if isinstance(key, str | int)}


def _unwrapped(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _WRAPPERS]


def _choose(nets: list[_Candidate], file: Path, key: str | None) -> _Candidate:
    names = _join_names([net.name for net in nets], _MAX_NAMES)
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


def _describe_choice(content: dict[Any, Any], net: _Candidate, others: list[str]) -> str:
    epoch, arch = content.get("epoch"), content.get("arch")
    text = ""
    if net.name != ".":
        text += f", {_sanitise(net.name)} of a checkpoint"
        text += f" of epoch {_sanitise(str(epoch))}" if type(epoch) is int else ""
        text += f", arch {_sanitise(arch)}" if isinstance(arch, str) else ""
    parts = {part for name in net.items for part in name.split(".")}
    wrappers = [f"{part}." for part in _WRAPPERS if part in parts]
    if dropped := [f"`{_sanitise(part)}`" for part in (net.prefix, *wrappers) if part]:
        text += f", without {' and '.join(dropped)}"
    if net.leftover:
        text += f"; left out: {_join_names(net.leftover)}"
    if others:
        text += f"; not taken: {_join_names(others)} (--key takes {'it' if len(others) == 1 else 'them'})"
    return text


def _contents(content: dict[Any, Any]) -> str:
    """Describes a file: its tensors, and the first of its other keys."""
    others = {key: item for key, item in _by_name(content).items() if not isinstance(item, Tensor)}
    parts = [_kind(content)] if len(others) < len(content) else []
    parts += [f"{_sanitise(key)}: {_kind(item)}" for key, item in list(others.items())[:_MAX_NAMES]]
    return "; ".join(parts) or "nothing"


def _kind(item: Any) -> str:
    items = _by_name(item) if isinstance(item, dict) else {}
    if names := [name for name, inner in items.items() if isinstance(inner, Tensor)]:
        return f"{len(names)} tensor{'s' * (len(names) > 1)}, the first {_sanitise(names[0])}"
    if item is None or isinstance(item, bool | int | float | str):
        return f"{item!r:.40}"
    return _sanitise((item if isinstance(item, type) else type(item)).__name__)


def _join_names(names: list[str], most: int = 3) -> str:
    return ", ".join(map(_sanitise, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _sanitise(name: str) -> str:
    """Restricts a name from a file to plain characters, because it appears in reports and cards."""
    return re.sub(r"[^\w .+/-]", "?", name[:60])
