"""The heads of the configuration files are contracts: they are held against the paper's data."""

import re
from pathlib import Path

import pytest
from tiny import REPOSITORY

from vggrepro.config.parsing import differences
from vggrepro.config.recipes import Graph, load_graph, load_stage
from vggrepro.paper import facts

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


def descent(graph: Graph) -> set[tuple[object, ...]]:
    """Each stage as (net, the paper's S), after the one that it starts from."""
    recipe = {name: (stage.model.net, stage.papers_S) for name, stage in graph.stages.items()}
    return {(recipe[name], recipe.get(graph.parents[name] or "")) for name in recipe}


@pytest.mark.parametrize("name", ["imagenette", "imagenette_gpu"])
def test_the_reduced_graph_is_the_whole_papers(name: str) -> None:
    whole = load_graph(REPOSITORY / "configs" / "reproduce.yaml")
    reduced = load_graph(REPOSITORY / "configs" / "reduced" / f"{name}.yaml")
    assert len(reduced.stages) == len(whole.stages) == 12
    assert descent(reduced) == descent(whole)
    assert {stage.train.schedule.kind for stage in reduced.stages.values()} == {"plateau"}


def test_the_gpus_graph_differs_from_the_cpus_in_width_dropout_and_precision() -> None:
    cpu, gpu = (
        load_graph(REPOSITORY / "configs" / "reduced" / f"{name}.yaml").stages
        for name in ("imagenette", "imagenette_gpu")
    )
    for name, stage in cpu.items():
        changed = {key for key, *_ in differences(stage.trajectory(), gpu[name].trajectory())}
        assert changed == {"model.width", "model.dropout", "train.precision"}
        assert (gpu[name].model.width, gpu[name].model.dropout) == (1.0, 0.5)
