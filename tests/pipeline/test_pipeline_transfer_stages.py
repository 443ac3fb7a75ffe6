"""Stages with transfer data sets (Appendix B) are tested with their graph, separately and stacked, and logged."""

import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from programs import Command
from stores import assert_same_arrays
from tiny import TWO_STEPS, set_words, tiny_graph
from transfer_sets import write_class_folders

from vggrepro.config.recipes import Graph
from vggrepro.errors import UserError
from vggrepro.evaluation import svm
from vggrepro.evaluation.transfers import list_transferred
from vggrepro.pipeline.done import is_evaluated, is_transferred
from vggrepro.pipeline.graph import reproduce
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.transfer import transfer_together
from vggrepro.storage import lease
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.mlflow_run import RunDescription


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("sets") / "mine")


def graph_of(images: Path, runs: Path, mine: Path, *changes: str) -> Graph:
    transfer = ("transfer.train_per_class=5", "transfer.splits=2", f"transfer.sets={json.dumps({'mine': str(mine)})}")
    few = (*TWO_STEPS, "train.validate_every=1", "data.backend=torchvision", *transfer)
    return tiny_graph("demo.yaml", images, runs, *few, *changes)


class Mirror:
    """Replaces MLflow's mirror, which takes seconds, and collects the logged figures."""

    instances: ClassVar[list["Mirror"]] = []

    def __init__(self, run: RunDirectory, description: RunDescription) -> None:
        self.run, self.name, self.seen, self.status = run, description.name, set[str](), ""
        self._before: set[str] = set()
        Mirror.instances.append(self)

    def start(self) -> None:
        self._before = set(figures(self.run))

    def close(self, status: str, timeout_s: float) -> None:
        self.status, self.seen = status, set(figures(self.run)) - self._before


@pytest.fixture(scope="module")
def finished(images: Path, mine: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Finished and tested graph of the demo's two stages."""
    torch.set_num_threads(1)
    graph = graph_of(images, tmp_path_factory.mktemp("whole") / "runs", mine, "tracking.mlflow=true")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vggrepro.pipeline.tracking.MlflowMirror", Mirror)
        reproduce(graph)
    return graph


@pytest.fixture
def copied(finished: Graph, images: Path, mine: Path, tmp_path: Path) -> Graph:
    """Copy of the finished graph, without MLflow."""
    shutil.copytree(finished.stages["A"].run.root, tmp_path / "runs")
    return graph_of(images, tmp_path / "runs", mine)


def figures(run: RunDirectory) -> dict[str, float]:
    known: dict[str, float] = {}
    for record in run.records("evaluation"):
        known |= {key: figure for key, figure in record.items() if key.startswith("transfer_")}
    return known


def test_stages_are_tested_alone_and_stacked(finished: Graph) -> None:
    A, D = (RunDirectory(config.directory) for config in finished.stages.values())
    names = [f"transfer_mine_{how}_3Q_recall{end}" for how in ("stack", "average") for end in ("", "_spread")]
    assert figures(D).keys() == set(names)
    assert figures(A).keys() == {*names, *(name.replace("mine", "mine_and_D") for name in names)}
    tests = {(len(each.protocol.nets), each.protocol.combine): each.result for each in list_transferred(A)}
    assert tests.keys() == {(1, "stack"), (1, "average"), (2, "stack"), (2, "average")}
    assert figures(A)["transfer_mine_and_D_stack_3Q_recall"] == tests[2, "stack"].mean
    assert figures(A)["transfer_mine_average_3Q_recall_spread"] == tests[1, "average"].spread
    for name, config in finished.stages.items():
        assert is_evaluated(config, finished.parent_of(name))


def test_mlflow_is_open_when_figures_are_logged(finished: Graph) -> None:
    for name, config in finished.stages.items():
        logged = figures(RunDirectory(config.directory)).keys()
        assert logged == {key for mirror in Mirror.instances if mirror.name == name for key in mirror.seen}
        assert all(re.fullmatch(r"[/\w.\- :]*", key) for key in logged), "MLflow takes no other names"
    assert {mirror.status for mirror in Mirror.instances} == {"FINISHED"}


def test_a_second_call_neither_loads_nor_trains(copied: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    A = RunDirectory(copied.stages["A"].directory)
    before = A.metrics.read_bytes()
    monkeypatch.setattr("vggrepro.pipeline.net.load_final", None)
    monkeypatch.setattr(svm, "classify", None)
    reproduce(copied)
    assert A.metrics.read_bytes() == before


def test_missing_results_are_computed_again(finished: Graph, copied: Graph) -> None:
    """Follows the message for a damaged file: remove it, and test again."""
    A, D = (config.directory for config in copied.stages.values())
    shutil.rmtree(D / "transfers")
    next((A / "transfers").glob("truth-*.npz")).unlink()
    assert not any(is_transferred(config) for config in copied.stages.values())
    reproduce(copied)
    for name, config in copied.stages.items():
        assert_same_arrays(finished.stages[name].directory / "transfers", config.directory / "transfers")
        assert is_evaluated(config, copied.parent_of(name))


def test_other_settings_are_tested_separately(copied: Graph, images: Path, mine: Path) -> None:
    changed = graph_of(images, copied.stages["A"].run.root, mine, "transfer.seed=1")
    assert not is_transferred(changed.stages["A"])
    assert not is_evaluated(changed.stages["A"], None)


def test_cluster_jobs_log_only_to_their_runs(copied: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run as separate jobs; the last job tests all nets together, and may not write to the first job's run."""
    A, D = (RunDirectory(config.directory) for config in copied.stages.values())
    lease.take(A.path, "1:0")
    lease.take(D.path, "2:0")
    monkeypatch.setenv(lease.VARIABLE, "2:0")
    before = A.metrics.read_bytes()
    with open_session(list(copied.stages.values())) as session:
        transfer_together(copied.stages.values(), session)
    assert A.metrics.read_bytes() == before
    stacked = figures(A)["transfer_mine_and_D_stack_3Q_recall"]
    assert figures(D)["transfer_mine_and_A_stack_3Q_recall"] == stacked


def test_invalid_transfer_sets_are_an_error_before_training(
    images: Path, mine: Path, tmp_path: Path, command: Command
) -> None:
    graph = graph_of(images, tmp_path / "runs", mine / "none")
    with pytest.raises(UserError, match=r"transfer\.sets\.mine=.*none of stage A does not exist; correct the path"):
        reproduce(graph)
    assert not (tmp_path / "runs").exists()
    status, out, _ = command("doctor", "-c", "demo", *set_words(f'transfer.sets={{"mine": {mine}/none}}'))
    assert status == 1
    assert f"{mine}/none does not exist; give a folder of classes" in out


@pytest.mark.parametrize("verb", ["plan", "train", "reproduce"])
def test_nets_without_fc_layers_are_not_trained(
    images: Path, tmp_path: Path, command: Command, verb: str, settings: list[str]
) -> None:
    words = set_words(*settings, "model.fully_connected=false")
    message = command.mistake(verb, "-c", "vgg_A.yaml" if verb == "train" else "demo.yaml", *words)
    assert "has no fully-connected layers (model.fully_connected=false)" in message
    assert "compute its features with `vggrepro features`" in message
    assert not (tmp_path / "runs").exists()
