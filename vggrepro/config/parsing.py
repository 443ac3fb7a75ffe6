"""Parsing of plain values into typed settings, with `--set` overrides and one-line errors."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vggrepro.config.section import Section
from vggrepro.config.settings import Config
from vggrepro.config.strict_yaml import load_yaml
from vggrepro.errors import UserError

_LONGEST_SHOWN = 80  # maximum number of characters of a wrong value in a message
AnySection = TypeVar("AnySection", bound=Section)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to {"section.key": value}."""
    flat: dict[str, Any] = {}
    for key, item in tree.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (key, left value, right value) for each setting that differs between two trees of settings."""
    a, b = flatten(left), flatten(right)
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `over` into `base`: sections are merged recursively, other values (including lists) are replaced."""
    merged = dict(base)
    for key, item in over.items():
        both = isinstance(item, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], item) if both else item
    return merged


def checked(kind: type[AnySection], **settings: Any) -> AnySection:
    """Validates the settings of a section. Raises UserError, which names the first wrong setting."""
    try:
        return kind(**settings)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def override(config: Config, overrides: Iterable[str], source: Path) -> Config:
    """Applies `section.key=value` overrides to a configuration. Raises the same errors as :func:`parse`."""
    return parse(config.model_dump(mode="json"), overrides, source)


def parse(tree: Mapping[str, Any], overrides: Iterable[str], source: Path) -> Config:
    """Parses values, with `section.key=value` overrides. Raises UserError, which names the override or `source`."""
    changed: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: expected section.key=value")
        change: Any = load_yaml(text, f"--set {override}")
        changed[key.strip() + "."] = override
        for part in reversed(key.strip().split(".")):
            change = {part: change}
        tree = merge(tree, change)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        wrong = ".".join(map(str, _most_telling(error)["loc"])) + "."
        # An override is at fault if it sets the wrong value, a section around it, or a part of it.
        at_fault = [override for key, override in changed.items() if wrong.startswith(key) or key.startswith(wrong)]
        raise UserError(f"{f'--set {at_fault[-1]}' if at_fault else source}: {_first_problem(error)}") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _most_telling(error: ValidationError) -> Any:
    """Selects the problem to report: an unknown key first, because a misspelt key is also reported as missing."""
    return min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")


def _first_problem(error: ValidationError) -> str:
    """Describes a problem in one line: the key, the value and what is allowed, or the closest known key."""
    problem = _most_telling(error)
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
    return f"{key}={shown(problem['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def shown(given: Any) -> str:
    """Formats a wrong value for a message, shortened to 80 characters."""
    text = repr(given)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _known_keys(path: list[str]) -> list[str]:
    section: Any = Config
    for part in path:
        section = section.model_fields[part].annotation
        if typing.get_origin(section) in (typing.Union, types.UnionType):
            section = typing.get_args(section)[0]
    return list(section.model_fields)
