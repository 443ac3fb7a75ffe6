from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import REPOSITORY

from vggrepro.config.parsing import override
from vggrepro.config.recipes import load_graph
from vggrepro.config.settings import Config
from vggrepro.models.table1 import architecture_of
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import Departure, ledger, read_ledger

PAPER = {"splits": {"train": 1_281_167, "val": 50_000}, "rejected_splits": {"train": 0, "val": 0}}


@pytest.mark.parametrize("name", list(load_graph(REPOSITORY / "configs" / "reproduce.yaml").stages))
def test_the_papers_configurations_have_no_departures(name: str) -> None:
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
    departures = ledger(Config.model_validate(tree), None)
    assert [departure.setting for departure in departures] == [setting]


def test_another_parent_is_a_departure() -> None:
    A, D = Config(model={"net": "A"}), Config(model={"net": "D"})
    assert [str(d) for d in ledger(D, None)] == [
        "run.parent: none instead of A at S=256 (no reason given; give one in run.why)"
    ]
    assert ledger(D, A) == []
    assert [d.setting for d in ledger(A, D)] == ["run.parent"]


def test_another_data_set_is_a_departure() -> None:
    counts = {"splits": {"train": 100, "val": 50_000}, "rejected_splits": {"train": 3, "val": 0}}
    departures = ledger(Config(model={"net": "A"}), None, counts)
    assert departures == [
        Departure("data.images.train", 1_281_167, 100, "another data set"),
        Departure("data.rejected.train", 0, 3, "they cannot be read"),
    ]


def test_a_ledger_with_former_names_can_be_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_ledger(run) is None
    lines = [Departure(f"data.pictures.{split}", 1_281_167, 100, "another data set") for split in ("train", "val")]
    run.write_json("ledger.json", [asdict(line) for line in lines])
    assert [departure.setting for departure in read_ledger(run) or []] == ["data.images.train", "data.images.val"]


def test_reasons_come_from_the_closest_section() -> None:
    why = {"model": "small machine", "model.width": "very small machine"}
    config = Config(model={"net": "A", "width": 0.5, "init": "kaiming"}, run={"why": why})
    assert {d.setting: d.why for d in ledger(config, None)} == {
        "model.width": "very small machine",
        "model.init": "small machine",
    }


def test_a_reduced_stage_is_compared_with_the_papers_stage_of_its_proportions() -> None:
    def stage(S: object, **train: object) -> Config:
        model = {"net": "D", "crop": 128}
        return Config(model=model, data={"S": S}, train=train, evaluation={"multi_Q": [160]})

    fixed, fine, jitter = stage(160), stage(224, learning_rate=1e-3), stage([160, 288], learning_rate=1e-3)
    for config, parent in ((fine, fixed), (jitter, fine)):
        assert not {"run.parent", "train.learning_rate"} & {d.setting for d in ledger(config, parent)}
    assert [d.paper for d in ledger(fine, jitter) if d.setting == "run.parent"] == ["D at S=256"]
    assert [d.paper for d in ledger(jitter, None) if d.setting == "run.parent"] == ["D at S=384"]
    assert [(d.paper, d.run) for d in ledger(fine, fixed) if d.setting == "data.S"] == [(384, 224)]
    assert [d.paper for d in ledger(stage(224), fixed) if d.setting == "train.learning_rate"] == [1e-3]


def test_fewer_blocks_are_a_departure() -> None:
    config = Config(model={"net": "A", "crop": 56, "blocks": 3}, data={"S": 64})
    (departures,) = (d for d in ledger(config, None) if d.setting == "model.blocks")
    assert (departures.paper, departures.run) == (5, 3)
    assert "a last map of the paper's size" in departures.why
    for model in ({"net": "A"}, {"net": "A", "blocks": 5}, {"net": "x", "layers": [["conv3-8"]] * 5, "blocks": 5}):
        assert "model.blocks" not in {d.setting for d in ledger(Config(model=model), None)}
    six = {"net": "x", "layers": [["conv3-8"]] * 6, "blocks": 5}
    assert [(d.paper, d.run) for d in ledger(Config(model=six), None) if d.setting == "model.blocks"] == [(6, 5)]


@pytest.mark.parametrize(("Q", "places"), [(128, [1]), (159, [1]), (160, [])])
def test_a_dense_test_with_a_single_position_is_a_departure(Q: int, places: list[int]) -> None:
    config = Config(model={"net": "A", "crop": 128}, data={"S": Q}, evaluation={"multi_Q": [160]})
    departures = [d for d in ledger(config, None) if d.setting == "evaluation.dense_places"]
    assert [(d.paper, d.run) for d in departures] == [(4, count) for count in places]
    assert all("shows nothing of Section 3.2" in d.why for d in departures)


REDUCED = ["demo.yaml", *(f"reduced/{file.name}" for file in (REPOSITORY / "configs" / "reduced").glob("*.yaml"))]


@pytest.mark.parametrize("file", REDUCED)
def test_the_reduced_configurations_have_several_dense_positions(file: str) -> None:
    """Score maps of square images have at least 2 x 2 positions at some Q, and S and Q the paper's proportions."""
    for config in load_graph(REPOSITORY / "configs" / Path(file)).stages.values():
        net, Q = architecture_of(config), config.single_Q[0]
        assert net.places(Q, Q) >= 4
        kind = {"localisation": config.localisation, "run": {"parent": config.run.parent}}
        paper = Config(model={"net": config.model.net}, data={"S": config.papers_S}, **kind)
        if config.papers_S == 256:
            places = [net.places(Q, Q) for Q in config.multi_Q]
            proportional = [256 * Q / config.single_Q[0] for Q in config.multi_Q] == list(paper.multi_Q)
            assert proportional or places == [architecture_of(paper).places(Q, Q) for Q in paper.multi_Q]


@pytest.mark.parametrize("file", REDUCED)
def test_the_reduced_configurations_have_a_reason_for_each_departure(file: str) -> None:
    graph = load_graph(REPOSITORY / "configs" / Path(file))
    for name, config in graph.stages.items():
        parent = graph.parents[name]
        images = {"splits": {"train": 1, "val": 1}, "rejected_splits": {"train": 1, "val": 1}}
        departures = ledger(config, graph.stages[parent] if parent else None, images)
        assert departures
        assert [str(d) for d in departures if "no reason given" in d.why] == []


LOCALISATION = load_graph(REPOSITORY / "configs" / "localisation" / "reproduce.yaml")


@pytest.mark.parametrize("name", list(LOCALISATION.stages))
def test_the_papers_nets_for_boxes_have_no_departures(name: str) -> None:
    assert ledger(LOCALISATION.stages[name], LOCALISATION.parent_of(name), PAPER) == []


@pytest.mark.parametrize(
    ("stage", "change", "start"),
    [
        ("D-384-boxes", "train.learning_rate=0.01", "train.learning_rate: 0.01 instead of 0.001"),
        ("D-384-boxes", "evaluation.multi_Q=[384]", "evaluation.multi_Q: [384] instead of [352, 384]"),
        ("D-256-boxes", "evaluation.single_Q=[288]", "evaluation.single_Q: [288] instead of [256]"),
        ("D-384-boxes", "data.flip=false", "data.flip: False instead of True"),
        ("D-384-boxes", "evaluation.precision=bf16", "evaluation.precision: bf16 instead of fp32"),
    ],
)
def test_departures_of_nets_for_boxes(stage: str, change: str, start: str) -> None:
    config = override(LOCALISATION.stages[stage], [change], Path("test"))
    (departures,) = ledger(config, LOCALISATION.parent_of(stage), PAPER)
    assert str(departures).startswith(start)


def test_a_net_for_boxes_starts_from_the_net_for_classes_at_its_scale() -> None:
    stage, other = LOCALISATION.stages["D-384-boxes"], LOCALISATION.stages["D-256"]
    (departures,) = ledger(stage, other, PAPER)
    assert str(departures).startswith("run.parent: D at S=256 instead of D at S=384, of classes")
    (departures,) = ledger(stage, stage, PAPER)
    assert departures.setting == "run.parent"
