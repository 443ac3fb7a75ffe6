from pathlib import Path

import pytest
from tiny import REPOSITORY

from vggrepro.config import Config, load_graph
from vggrepro.ledger import Departure, Pictures, ledger

PAPER = {"train": Pictures(1_281_167, 0), "val": Pictures(50_000, 0)}


@pytest.mark.parametrize("name", list(load_graph(REPOSITORY / "configs" / "reproduce.yaml").stages))
def test_the_papers_own_configurations_depart_in_nothing(name: str) -> None:
    graph = load_graph(REPOSITORY / "configs" / "reproduce.yaml")
    parent = graph.parents[name]
    assert ledger(graph.stages[name], graph.stages[parent] if parent else None, PAPER) == []


@pytest.mark.parametrize(
    ("setting", "run"),
    [
        ("model.batch_norm", True),
        ("model.init", "kaiming"),
        ("model.dropout", 0.4),
        ("model.width", 0.5),
        ("data.flip", False),
        ("data.colour_shift.mode", "off"),
        ("data.colour_shift.sigma", 0.2),
        ("data.mean", [0, 0, 0]),
        ("train.batch", 512),
        ("train.momentum", 0.8),
        ("train.weight_decay", 1e-4),
        ("train.learning_rate", 0.1),
        ("train.iterations", 1000),
        ("train.precision", "bf16"),
        ("train.schedule.factor", 0.5),
        ("train.schedule.max_drops", 1),
        ("evaluation.flip", False),
        ("evaluation.single_Q", [384]),
    ],
)
def test_each_departure_is_found(setting: str, run: object) -> None:
    tree: dict = {"model": {"net": "A"}}
    *path, key = setting.split(".")
    section = tree
    for part in path:
        section = section.setdefault(part, {})
    section[key] = run
    found = ledger(Config.model_validate(tree), None)
    assert [departure.setting for departure in found] == [setting]


def test_descent_is_part_of_it() -> None:
    A, D = Config(model={"net": "A"}), Config(model={"net": "D"})
    assert [str(d) for d in ledger(D, None)] == [
        "run.parent: none instead of A at S=256 (no reason given; say why in run.why)"
    ]
    assert ledger(D, A) == []
    assert [d.setting for d in ledger(A, D)] == ["run.parent"]


def test_the_data_set_is_part_of_it() -> None:
    found = ledger(Config(model={"net": "A"}), None, {"train": Pictures(100, 3), "val": Pictures(50_000, 0)})
    assert found == [
        Departure("data.pictures.train", 1_281_167, 100, "another data set"),
        Departure("data.rejected.train", 0, 3, "they cannot be read"),
    ]


def test_reasons_come_from_the_nearest_section() -> None:
    why = {"model": "small machine", "model.width": "very small machine"}
    config = Config(model={"net": "A", "width": 0.5, "init": "kaiming"}, run={"why": why})
    assert {d.setting: d.why for d in ledger(config, None)} == {
        "model.width": "very small machine",
        "model.init": "small machine",
    }


@pytest.mark.parametrize("file", ["demo.yaml", "reduced/tiny_imagenet.yaml"])
def test_the_reduced_configurations_give_a_reason_for_each(file: str) -> None:
    graph = load_graph(REPOSITORY / "configs" / Path(file))
    for name, config in graph.stages.items():
        parent = graph.parents[name]
        pictures = {"train": Pictures(1, 1), "val": Pictures(1, 1)}
        found = ledger(config, graph.stages[parent] if parent else None, pictures)
        assert found
        assert [str(d) for d in found if "no reason given" in d.why] == []
