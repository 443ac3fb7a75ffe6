"""Comments at the top of the recipes, compared with the paper's data."""

import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from tiny import REPOSITORY

from vggrepro.cli.main import app
from vggrepro.config.parsing import differences
from vggrepro.config.recipes import Graph, load_graph, load_stage
from vggrepro.config.settings import Config
from vggrepro.models.table1 import architecture_of
from vggrepro.paper import facts, value
from vggrepro.storage.ledger import ledger

BOXES = sorted((REPOSITORY / "configs" / "localisation").glob("D_*.yaml"))
TRANSFER = REPOSITORY / "configs" / "transfer"
RECIPES = sorted((REPOSITORY / "configs").glob("vgg_*.yaml"))


def head_of(file: Path) -> str:
    return "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_head_states_the_papers_rows(file: Path) -> None:
    stage, _ = load_stage(file)
    stated = {
        (int(table), tuple(map(int, Q.split(", "))), float(top1), float(top5))
        for table, Q, top1, top5 in re.findall(
            r"Table (\d): Q = ([\d, ]+): top-1 error ([\d.]+) %, top-5 ([\d.]+) %", head_of(file)
        )
    }
    printed = {
        (row.table, row.Q, row.top1, row.top5)
        for table in (3, 4)
        for row in facts().table(table)
        if row.nets == (stage.model.net,) and row.S == stage.data.S
    }
    assert stated == printed
    assert printed


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_head_names_its_command(file: Path) -> None:
    assert f"--config configs/{file.name} " in head_of(file)


def test_every_row_of_table_3_has_a_recipe() -> None:
    stages = [load_stage(file)[0] for file in RECIPES]
    assert {(s.model.net, s.data.S) for s in stages} == {(row.nets[0], row.S) for row in facts().table(3)}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_test_scales_are_those_of_tables_3_and_4(file: Path) -> None:
    stage, _ = load_stage(file)
    for table, Q in ((3, stage.single_Q), (4, stage.multi_Q)):
        for row in facts().table(table):
            if row.nets == (stage.model.net,) and row.S == stage.data.S:
                assert row.Q == Q


@pytest.mark.parametrize("file", BOXES, ids=lambda file: file.stem)
def test_the_head_states_the_papers_rows_of_boxes(file: Path) -> None:
    stage, parent = load_stage(file)
    assert stage.localisation is not None
    head = head_of(file)
    given = re.findall(r"Table (8): Q = ([\d, ]+): error ([\d.]+) % where the class is given$", head, re.MULTILINE)
    guessed = re.findall(r"Table (9): Q = ([\d, ]+): localisation error ([\d.]+) %$", head, re.MULTILINE)
    stated = [(int(table), tuple(map(int, Q.split(", "))), float(error)) for table, Q, error in given + guessed]
    kind = stage.localisation.regression, stage.localisation.fine_tune
    printed = [
        (row.table, row.members[0].Q, row.error)
        for rows in facts().localisation.values()
        for row in rows
        if len(row.members) == 1
        and (row.members[0].net, row.members[0].S) == (stage.model.net, stage.data.S)
        and (row.regression, row.fine_tune) == kind
    ]
    assert stated == printed
    assert printed
    assert len(re.findall(r"Table \d: Q = ", head)) == len(stated)
    for table, Q, _ in printed:
        assert Q in ((stage.single_Q,) if table == 8 else (stage.single_Q, stage.multi_Q))
    assert f"--config configs/localisation/{file.name} " in head
    assert parent is not None
    assert (parent.model.net, parent.data.S, parent.localisation) == (stage.model.net, stage.data.S, None)
    assert not ledger(stage, parent)


def test_every_net_of_tables_8_and_9_has_a_recipe_and_is_in_their_graph() -> None:
    def kind(stage: Config) -> tuple[object, ...]:
        assert stage.localisation is not None
        return stage.model.net, stage.data.S, stage.localisation.regression, stage.localisation.fine_tune

    printed = {
        (member.net, member.S, row.regression, row.fine_tune)
        for rows in facts().localisation.values()
        for row in rows
        for member in row.members
    }
    graph = load_graph(REPOSITORY / "configs" / "localisation" / "reproduce.yaml")
    assert {kind(load_stage(file)[0]) for file in BOXES} == printed
    assert {kind(stage) for stage in graph.stages.values() if stage.localisation} == printed


def test_the_nets_of_the_pooled_row_are_named_in_order() -> None:
    """Table 9's last row needs a separate command, which the recipes of both nets name."""
    folder = REPOSITORY / "configs" / "localisation"
    graph = load_graph(folder / "reproduce.yaml")
    (pooled,) = (row for row in facts().localisation[9] if len(row.members) > 1)
    stages = [
        next(
            stage
            for stage in graph.stages.values()
            if stage.localisation
            and (stage.data.S, stage.localisation.regression, stage.localisation.fine_tune)
            == (member.S, pooled.regression, pooled.fine_tune)
        )
        for member in pooled.members
    ]
    command = "vggrepro localise " + " ".join(str(stage.directory) for stage in stages)
    for file in ("reproduce.yaml", "D_384.yaml"):
        assert f"#   {command}" in head_of(folder / file).splitlines()
    assert [stage.multi_Q for stage in stages] == [member.Q for member in pooled.members]
    assert f"the last row of Table 9 ({pooled.error} %)" in head_of(folder / "D_384.yaml")
    assert "--config configs/localisation/reproduce.yaml " in head_of(folder / "reproduce.yaml")
    assert "Table 9's last row" in head_of(folder / "reproduce.yaml")


@pytest.mark.parametrize(("name", "nets"), [("D", ("D",)), ("E", ("E",)), ("reproduce", ("D", "E"))], ids=str)
def test_the_head_states_the_papers_figures_of_other_data_sets(name: str, nets: tuple[str, ...]) -> None:
    file = TRANSFER / f"{name}.yaml"
    head = head_of(file)
    stated = {
        (int(table), data_set, bool(boxes), float(figure), float(spread) if spread else None)
        for table, data_set, boxes, figure, spread in re.findall(
            r"Table (1[12]): (\w+)(, with boxes)?: ([\d.]+)(?: \+- ([\d.]+))? %", head
        )
    }
    printed = {
        (facts().transfer[row.set].table, row.set, row.boxes, row.figure, row.spread)
        for row in facts().transfer_figures
        if row.nets == nets
    }
    assert stated == printed
    assert printed
    assert len(re.findall(r"Table \d+: ", head)) == len(stated)


@pytest.mark.parametrize("name", ["D", "E", "reproduce"])
def test_the_commands_of_the_head_are_valid(name: str) -> None:
    """Checks the options and the settings of `--set`."""
    lines = re.findall(r"^#   ((?:vggrepro|python launch/submit.py) .*)", head_of(TRANSFER / f"{name}.yaml"), re.M)
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line)
        if "--config" not in words:
            command = typer.main.get_command(app)
            known = command.commands[words[1]]  # type: ignore[attr-defined]
            assert words[1] != "weights" or words[2] in known.commands
            continue
        changes = [after for word, after in pairwise(words) if word == "--set"]
        graph = load_graph(REPOSITORY / words[words.index("--config") + 1], changes)
        sets = {name: set(stage.transfer.sets) for name, stage in graph.stages.items() if stage.transfer.sets}
        assert sets.keys() == ({"D-jitter", "E-jitter"} if name == "reproduce" else {f"{name}-jitter"})
        assert all(names <= facts().transfer.keys() for names in sets.values())


@pytest.mark.parametrize("net", ["D", "E"])
def test_a_net_whose_features_are_tested_is_the_net_with_scale_jitter(net: str) -> None:
    """The graph finds the net that runs/paper has trained; its ancestors are not tested on other data sets."""
    changes = ["transfer.sets={caltech101: somewhere}"]
    plain = load_graph(REPOSITORY / "configs" / f"vgg_{net}_jitter.yaml")
    tested = load_graph(TRANSFER / f"{net}.yaml", changes)
    assert list(tested.parents.items()) == list(plain.parents.items())
    for name, stage in tested.stages.items():
        assert stage.directory == plain.stages[name].directory
        assert stage.trajectory() == plain.stages[name].trajectory()
        assert bool(stage.transfer.sets) == (name == f"{net}-jitter")
    assert not ledger(tested.stages[f"{net}-jitter"], tested.parent_of(f"{net}-jitter"))
    assert load_graph(TRANSFER / "reproduce.yaml", changes).stages[f"{net}-jitter"] == tested.stages[f"{net}-jitter"]


def descent(graph: Graph) -> set[tuple[object, ...]]:
    """Stages with their parents, each as (net, the paper's S)."""
    recipe = {name: (stage.model.net, stage.papers_S) for name, stage in graph.stages.items()}
    return {(recipe[name], recipe.get(graph.parents[name] or "")) for name in recipe}


ABLATIONS = ("D-scratch", "B-5x5")
"""Stages of the reduced graphs without a row in Tables 3-7."""


@pytest.mark.parametrize(("name", "divisor"), [("imagenette", 4), ("imagenette_gpu", 4), ("imagenette_96", 2)])
def test_the_reduced_graph_has_all_stages_of_the_paper_and_two_ablations(name: str, divisor: int) -> None:
    """The reduced graph divides the paper's S and Q by a constant."""
    reproduced = load_graph(REPOSITORY / "configs" / "reproduce.yaml")
    reduced = load_graph(REPOSITORY / "configs" / "reduced" / f"{name}.yaml")
    papers = {stage: config for stage, config in reduced.stages.items() if stage not in ABLATIONS}
    assert len(papers) == len(reproduced.stages) == 12
    assert descent(replace(reduced, stages=papers)) == descent(reproduced)
    twin, _ = load_stage(REPOSITORY / "configs" / "ablation_B-5x5.yaml")
    assert reduced.stages["B-5x5"].model.layers == twin.model.layers
    cold, warm = reduced.stages["D-scratch"], reduced.stages["D"]
    assert cold.trajectory() == warm.trajectory()
    assert (cold.run.parent, warm.run.parent) == (None, "A")
    for stage in papers.values():
        full = full_size(stage, reproduced)
        assert [divisor * S for S in stage.data.S_range] == list(full.data.S_range)
        assert tuple(divisor * Q for Q in stage.multi_Q) == full.multi_Q


def full_size(stage: Config, reproduced: Graph) -> Config:
    """Full-size stage of the paper that a reduced stage represents."""
    (found,) = (
        config
        for config in reproduced.stages.values()
        if (config.model.net, config.papers_S) == (stage.model.net, stage.papers_S)
    )
    return found


@pytest.mark.parametrize("name", ["imagenette", "imagenette_gpu"])
def test_the_reduced_graph_has_the_papers_places_and_kernels(name: str) -> None:
    """At every Q the dense test has as many positions, and deeper nets inherit the same layers."""
    reproduced = load_graph(REPOSITORY / "configs" / "reproduce.yaml")
    stages = load_graph(REPOSITORY / "configs" / "reduced" / f"{name}.yaml").stages
    for key, stage in stages.items():
        small = architecture_of(stage)
        assert (small.fc6_kernel, small.stride) == (7, 8)
        if key not in ABLATIONS:
            paper = full_size(stage, reproduced)
            full = architecture_of(paper)
            assert small.fc6_kernel == full.fc6_kernel
            for ours, theirs in ((stage.single_Q, paper.single_Q), (stage.multi_Q, paper.multi_Q)):
                for longer in (1, 4 / 3):
                    sides = [(Q, round(Q * longer)) for Q in ours]
                    assert [small.places(*side) for side in sides] == [full.places(4 * a, 4 * b) for a, b in sides]
                assert [small.places(Q, Q) for Q in ours] == [full.places(Q, Q) for Q in theirs]
    convolutions = {layer.name for layer in architecture_of(stages["A"]).layers() if layer.kind == "conv"}
    assert convolutions == set(value("warm_start_layers")) - {"fc6", "fc7", "fc8"}, "deeper nets take all of A"


def test_the_gpus_graph_differs_from_the_cpus_in_width_dropout_rate_and_precision() -> None:
    cpu, gpu = (
        load_graph(REPOSITORY / "configs" / "reduced" / f"{name}.yaml").stages
        for name in ("imagenette", "imagenette_gpu")
    )
    for name, stage in cpu.items():
        changed = {key for key, *_ in differences(stage.trajectory(), gpu[name].trajectory())}
        assert changed == {"model.width", "model.dropout", "train.learning_rate", "train.precision"}
        assert (gpu[name].model.width, gpu[name].model.dropout) == (1.0, 0.5)
