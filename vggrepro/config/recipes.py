"""Recipes: YAML files that describe a stage or a graph of stages.

A *stage* is a training run with its evaluation, described by a :class:`Config`. A YAML file contains either a single
stage or a graph of stages::

    extends: base.yaml            # optional; relative to this file, or a name in configs/; or a list
    model: {net: D}               # any section of Config
    run: {name: D-256, parent: vgg_A.yaml}

    stages: [vgg_A.yaml, vgg_D.yaml]              # a graph of stage files, or
    stages: {A: {model: {net: A}}, D: {...}}      # stages in the same file, which inherit its other sections

``--set section.key=value`` overrides the setting in every stage. Stages that are loaded only as parents of the listed
stages are not tested on transfer data sets (`transfer`). A recipe in configs/, which the installed package includes,
is found by its name from any folder: ``--config vgg_D``, ``--config reduced/imagenette``.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggrepro.config.parsing import merge, parse, shown
from vggrepro.config.settings import Config, Transfer
from vggrepro.config.strict_yaml import load_yaml
from vggrepro.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# An installed package contains the recipes (see pyproject.toml); in a clone they are beside the package.
RECIPES = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"

_MOST_EXTENDED = 20  # maximum length of a chain of `extends`


@dataclass(frozen=True)
class Graph:
    """Stages and their parents by name. Parents come before their children."""

    name: str
    stages: Mapping[str, Config]
    parents: Mapping[str, str | None]

    def parent_of(self, name: str) -> Config | None:
        """Returns the configuration of a stage's parent, or None if the stage starts from random weights."""
        parent = self.parents[name]
        return self.stages[parent] if parent else None


def _over_seeds(graph: Graph, text: str) -> Graph:
    """Repeats the graph for each seed; a stage's parent is the one with the same seed. See :func:`load_graph`."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--seeds {text}: expected whole numbers separated by commas, e.g. 0,1,2")
    seeds = [int(number) for number in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed is listed twice; list each seed once")
    if max(seeds) >= 2**63:
        raise UserError(f"--seeds {text}: {max(seeds)} is too large; use numbers below 2^63")
    stages: dict[str, Config] = {}
    parents: dict[str, str | None] = {}
    for seed in seeds:
        named = {name: name if seed == stage.run.seed else f"{name}-seed{seed}" for name, stage in graph.stages.items()}
        for name, stage in graph.stages.items():
            if named[name] in stages:
                raise UserError(f"--seeds {text}: the name {named[name]} is taken; give that stage another run.name")
            parent = graph.parents[name]
            run = {"name": named[name], "seed": seed} | ({"parent": named[parent]} if parent else {})
            stages[named[name]] = stage.with_settings("run", **run)
            parents[named[name]] = named[parent] if parent else None
    return Graph(graph.name, stages, parents)


def recipe(path: Path | str, folder: Path = Path()) -> Path:
    """Resolves the value of `--config`, or a recipe in `folder`: an existing file, else the recipe in configs/."""
    named = RECIPES / f"{str(path).removesuffix('.yaml')}.yaml"
    return named if os.path.isfile(named) and not os.path.isfile(folder / path) else folder / path


def load_graph(path: Path, overrides: Iterable[str] = (), seeds: str | None = None) -> Graph:
    """Reads a graph file, or a stage file together with its ancestors.

    Args:
        path: a YAML file, or the name of a recipe in configs/.
        overrides: `section.key=value` changes, applied to every stage.
        seeds: seeds such as "0,1,2" for which the graph is repeated. A stage with its recipe's seed keeps its name, so
            that existing runs are reused; with another seed it is named e.g. NAME-seed1.

    Raises:
        UserError: a file or parent does not exist, a key is unknown or a value is not allowed.
    """
    changes = list(overrides)
    path = recipe(path)
    source = _read(path)
    listed = source.pop("stages", None)
    stages: dict[str, Config] = {}
    parents: dict[str, str | None] = {}
    listed_names: set[str] = set()  # the other stages are loaded only as parents

    def add(stage: Config, parent: str | None, file: Path) -> str:
        if stages.setdefault(stage.name, stage) != stage:
            raise UserError(f"{file}: two different stages are named {stage.name}; give one of them another run.name")
        parents[stage.name] = parent
        return stage.name

    def add_file(file: Path, base: dict[str, Any], *below: Path) -> str:
        tree = _read(file)
        if file.resolve() in below:
            raise UserError(f"{file}: run.parent leads back to this file; remove one of the links")
        if "stages" in tree:
            raise UserError(f"{file}: a graph cannot be a stage of another graph; list its stage files")
        stage = _stage(merge(tree, base), changes, file)
        parent = stage.run.parent and recipe(stage.run.parent, file.parent)
        return add(stage, add_file(parent, base, *below, file.resolve()) if parent else None, file)

    if listed is None:
        listed_names.add(add_file(path, {}))
    elif isinstance(listed, list):
        listed_names.update(add_file(recipe(str(item), path.parent), source) for item in listed)
    elif isinstance(listed, dict):
        for name, tree in listed.items():
            if not isinstance(tree, dict | None):
                raise UserError(f"{path}: stages.{name}={shown(tree)} is not allowed: expected sections, e.g. model")
            stage = _stage(merge(merge(source, {"run": {"name": str(name)}}), tree or {}), changes, path)
            if stage.run.parent and stage.run.parent not in stages:
                raise UserError(
                    f"{path}: run.parent={stage.run.parent} of stage {name} is not an earlier stage of the file; "
                    f"known: {', '.join(stages) or 'none'}"
                )
            listed_names.add(add(stage, stage.run.parent, path))
    else:
        raise UserError(f"{path}: stages must be a list of stage files or a mapping of stages")
    if not stages:
        raise UserError(f"{path}: stages is empty; list at least one stage")
    for name in stages.keys() - listed_names:
        stages[name] = stages[name].model_copy(update={"transfer": Transfer()})
    graph = Graph(name=next(iter(stages.values())).run.experiment, stages=stages, parents=parents)
    return graph if seeds is None else _over_seeds(graph, seeds)


def load_stage(path: Path, overrides: Iterable[str] = ()) -> tuple[Config, Config | None]:
    """Reads the stage of a stage file and its parent's configuration, if any. Raises UserError as load_graph."""
    graph = load_graph(path, overrides)
    name = list(graph.stages)[-1]
    if "stages" in _read(recipe(path)):
        raise UserError(f"{path} has a graph of stages ({', '.join(graph.stages)}); run it with `vggrepro reproduce`")
    return graph.stages[name], graph.parent_of(name)


def load_resolved(path: Path) -> Config:
    """Reads the configuration of a run directory, as written by :meth:`Config.to_yaml`. Raises UserError."""
    return parse(_read(path), [], path)


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """Reads a file's sections merged over the ones it extends, `depth` files deep. Raises UserError."""
    if depth > _MOST_EXTENDED:
        raise UserError(f"{path}: extends leads back to this file; remove one of the links")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        if not near:
            names = {p.stem: str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.yaml")}
            near = [names[stem] for stem in difflib.get_close_matches(path.stem, names)]
        advice = f"did you mean {', '.join(near)}?" if near else "name a YAML file, or one of configs/, such as vgg_D"
        raise UserError(f"configuration {path} does not exist; {advice}") from None
    except (OSError, ValueError) as error:  # of the text's encoding, of a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"configuration {path} cannot be read ({reason}); name another file") from None
    tree = load_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections ({', '.join(Config.model_fields)}), found {type(tree).__name__}")
    bases = tree.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: extends={shown(bases)} is not allowed: expected a path or a list of paths")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _read(recipe(base, path.parent), depth + 1))
    return merge(merged, tree)


def _stage(tree: Mapping[str, Any], overrides: list[str], source: Path) -> Config:
    """Parses a stage. The recipe's reasons for departures (run.why) do not cover values set with `--set`."""
    config, data = parse(tree, overrides, source), tree.get("data") or {}
    changed = {override.partition("=")[0].strip() for override in overrides}
    explained = {key.removeprefix("run.why.") for key in changed if key.startswith("run.why.")}
    why = dict(config.run.why)
    if (data.get("root") or data.get("index")) and changed & {"data.root", "data.index"}:
        about_images = {key for key in why if key.split(".")[0] in ("data", "evaluation")}
        why |= dict.fromkeys(sorted(about_images - explained), "the recipe's, made for other images")
    unexplained = {
        key for key in changed - explained if any(f"{key}.".startswith(f"{known}.") for known in config.run.why)
    }
    why |= dict.fromkeys(sorted(unexplained), "set on the command line")
    return config.with_settings("run", why=why)
