"""Graph of the demo on 36 images, with everything small."""

import json
import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from programs import free_port
from tiny import REPOSITORY, TINY, link_digits

from vggrepro.config.recipes import Graph, load_graph, load_stage
from vggrepro.errors import Interrupted, UserError
from vggrepro.models.table1 import architecture_of
from vggrepro.paper import value
from vggrepro.pipeline import tracking
from vggrepro.pipeline.evaluate import evaluate_nets
from vggrepro.pipeline.graph import reproduce, write_tables
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import train_stage
from vggrepro.reporting.stored.find_runs import find_runs
from vggrepro.reporting.tables.build import build_report
from vggrepro.storage import checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.training.loop import Training
from vggrepro.training.throughput import flop_per_image

DEMO = REPOSITORY / "configs" / "demo.yaml"
# The demo drops the learning rate, and validates, after more steps than the tests have.
SMALL = ("train.schedule.kind=plateau", "train.schedule.drops_at=[]", "train.validate_every=1")


def graph_of(settings: list[str], *more: str) -> Graph:
    return load_graph(DEMO, [*settings, *SMALL, *more])


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of the demo."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    reproduce(graph_of([*TINY, f"data.root={images}", f"run.root={runs}"]))
    return runs


@pytest.fixture
def rerun(finished: Path, settings: list[str], tmp_path: Path) -> list[str]:
    """Settings with a copy of the finished runs."""
    shutil.copytree(finished, tmp_path / "runs")
    return settings


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_graph_is_trained_evaluated_and_tabulated(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, later = graph_of(settings), []
    train = Training.train
    monkeypatch.setattr(Training, "train", lambda self, **how: later.append(self.later_flop) or train(self, **how))
    tables = reproduce(graph)
    printed = capsys.readouterr()

    assert tables is not None
    assert printed.out.strip() == tables.read_text().strip()
    assert re.search(r"^A: training 6/6 .* 0 s left, \d+ s with later stages$", printed.err, re.MULTILINE)
    assert re.search(r"^D: training 6/6 .* 0 s left$", printed.err, re.MULTILINE)
    assert later == [6 * 8 * flop_per_image(architecture_of(graph.stages["D"])), 0]
    rows = [[cell.strip() for cell in line.split("|")] for line in printed.out.splitlines() if line.startswith("| ")]
    assert [row[1:4] for row in rows if row[1] in "AD"] == [
        ["A", "37", "37"],
        ["D", "37", "37"],
        ["A", "37", "32, 37, 42"],
        ["D", "37", "32, 37, 42"],
    ]
    measured = [row for row in build_report(find_runs([graph.stages["A"].run.root])).rows if row.run]
    assert len(measured) == 4
    for row in measured:
        low, high = row.top1.interval
        assert row.n == 12
        assert 0 <= low <= row.top1.measured <= high <= 100
        assert row.top5.measured == 0  # of three classes, five guesses find one
        assert row.verdict == "not comparable"
    assert "model.crop: 32 instead of 224" in printed.out
    gained = re.findall(r"demo:(\w): dense, Q = 37 [+-]\d+\.\d \(", printed.out)
    assert gained == ["A", "D"], "what the dense test gained over the centre crop"

    A, D = (RunDirectory(config.directory) for config in graph.stages.values())
    for run in (A, D):
        assert [record["step"] for record in run.records("train")] == [1, 2, 3, 4, 5, 6]
        assert [record["step"] for record in run.records("validation")] == [3, 6]  # 24 images, batch 8
        (evaluation,) = run.records("evaluation")
        assert {"dense_single_Q_top1_error", "dense_multi_Q_top1_error"} <= evaluation.keys()
        assert evaluation["centre_single_Q_top1_error"] == run.records("validation")[-1]["top1_error"]
        assert {path.name for path in run.path.iterdir()} >= {
            *("config.yaml", "dataset.json", "environment.json", "ledger.json", "metrics.jsonl"),
            *("checkpoints", "posteriors"),
        }

    child = checkpoint.load(D.checkpoints / "final.pt")
    inherited = {layer["child"] for layer in child.provenance["parent"]["layers"] if layer["parent"]}
    assert inherited == set(value("warm_start_layers"))
    assert child.provenance["parent"]["weights"] == A.read_json("final.json")["weights"]
    assert child.preprocessing["mean"] == [123.68, 116.779, 103.939]


def test_a_second_call_trains_and_evaluates_nothing(rerun: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    graph = graph_of(rerun)
    root = graph.stages["A"].run.root
    stages = [contents(stage.directory) for stage in graph.stages.values()]
    reproduce(graph)
    assert [contents(stage.directory) for stage in graph.stages.values()] == stages
    before, first = contents(root), capsys.readouterr().out
    reproduce(graph_of(rerun))
    assert contents(root) == before
    assert capsys.readouterr().out == first


def test_missing_results_are_computed_again(rerun: list[str]) -> None:
    graph = graph_of(rerun)
    run = RunDirectory(graph.stages["D"].directory)
    before = {file.name: file.read_bytes() for file in run.posteriors.iterdir()}
    (lost, *_) = run.posteriors.iterdir()
    lost.unlink()
    reproduce(graph)
    assert {file.name: file.read_bytes() for file in run.posteriors.iterdir()} == before


def test_another_configuration_does_not_overwrite_a_run(rerun: list[str]) -> None:
    with pytest.raises(UserError, match=r"belongs to another configuration \(train.momentum was 0.9, is 0.5\)"):
        reproduce(graph_of(rerun, "train.momentum=0.5"))


def test_a_run_cannot_resume_with_other_images(rerun: list[str], images: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(images)
    reproduce(graph_of(rerun, f"data.root={moved}"))  # the same images elsewhere are the same images
    fewer = tmp_path / "fewer"
    for file in images.glob("*/*/*_[0-2].JPEG"):
        copy = fewer / file.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="was begun with other images"):
        reproduce(graph_of(rerun, f"data.root={fewer}"))


def test_a_run_cannot_resume_with_other_classes(rerun: list[str], images: Path, tmp_path: Path) -> None:
    other = shutil.copytree(images, tmp_path / "other")
    for split in ("train", "val"):
        (other / split / "n01").rename(other / split / "n04")
    with pytest.raises(UserError, match="was begun with other images"):
        reproduce(graph_of(rerun, f"data.root={other}"))


def test_a_stage_needs_a_finished_parent(settings: list[str]) -> None:
    stage, parent = load_stage(REPOSITORY / "configs" / "vgg_D.yaml", settings)
    with open_session([stage]) as session, pytest.raises(UserError, match="A-256 is not finished"):
        train_stage(stage, parent, session)


def test_a_session_reserves_a_core_for_each_decoding_process(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that compute would wait for the one whose core it shares."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    threads = []
    for processes in (0, 1, 3, 9):
        stage, _ = load_stage(
            REPOSITORY / "configs" / "vgg_A.yaml", [*settings, f"data.processes={processes}", "data.workers=9"]
        )
        with open_session([stage]):
            threads.append(torch.get_num_threads())
        assert torch.get_num_threads() == 4
    torch.set_num_threads(before)
    assert threads == [4, 3, 1, 1]


@pytest.fixture(scope="module")
def mirrored(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Runs of the demo in MLflow, which take seconds; tests that continue them use a copy."""
    settings = [*TINY, f"data.root={images}", f"run.root={tmp_path_factory.mktemp('mirrored') / 'runs'}"]
    graph = graph_of(settings, "tracking.mlflow=true", "train.iterations=2")
    reproduce(graph)
    return graph


def test_mlflow_has_the_runs_of_a_graph(mirrored: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(mirrored)
    assert "ui --backend-store-uri sqlite:///" in capsys.readouterr().err
    from mlflow import MlflowClient

    root = mirrored.stages["A"].run.root
    client = MlflowClient(f"sqlite:///{root.absolute() / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("demo")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    graph = runs.pop("demo, seed 0")
    assert runs.keys() == {"A", "D"}
    assert (
        graph.data.metrics["D/dense_multi_Q_top1_error"]
        == runs["D"].data.metrics["evaluation/dense_multi_Q_top1_error"]
    )
    for name, run in runs.items():
        assert run.info.status == graph.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == graph.info.run_id
        assert run.data.params["model.net"] == name
        assert run.data.params["train.batch"] == "8"
        assert run.data.metrics.keys() >= {"train/loss", "validation/top1_error", "evaluation/dense_multi_Q_top1_error"}
        assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "ledger.json"}
        assert run.data.params["evaluation.multi_Q"] == "[32, 37, 42]"  # those that were used
        assert "train/epoch" not in run.data.metrics
        assert run.data.tags["mlflow.note.content"].startswith("Departures from the paper:\n\n- model.blocks: 3")
        assert run.data.tags["mlflow.source.name"]
        (given,) = run.inputs.dataset_inputs
        assert given.dataset.name == Path(str(mirrored.stages["A"].data.root)).name
        assert len(given.dataset.digest) == 12
    assert len(client.get_metric_history(runs["A"].info.run_id, "train/loss")) == 2


def test_records_that_mlflow_lacks_are_copied_later(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    graph = graph_of(settings, "tracking.mlflow=true", "train.iterations=2")
    uri = f"sqlite:///{graph.stages['A'].run.root.absolute() / 'mlruns.db'}"
    with monkeypatch.context() as down:
        down.setattr(tracking, "resolve_uri", lambda *_: f"http://127.0.0.1:{free_port()}")
        down.setattr(tracking, "_MLFLOW_PATIENCE_S", 0.2)
        reproduce(graph)
    assert not any((stage.directory / "mlflow.json").exists() for stage in graph.stages.values())
    reproduce(graph)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["A", "D", "demo, seed 0"]
    for run in runs:
        assert run.info.status == "FINISHED"
        if run.info.run_name == "demo, seed 0":
            continue
        assert run.data.metrics.keys() >= {"train/loss", "evaluation/dense_multi_Q_top1_error"}
        assert "figures" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    rerun = {stage.name: (stage.directory / "mlflow.json").stat().st_mtime_ns for stage in graph.stages.values()}
    reproduce(graph)
    assert rerun == {
        stage.name: (stage.directory / "mlflow.json").stat().st_mtime_ns for stage in graph.stages.values()
    }


def test_later_evaluations_are_logged_in_metrics_and_mlflow(mirrored: Graph, tmp_path: Path) -> None:
    moved = shutil.copytree(mirrored.stages["A"].run.root, tmp_path / "moved")
    path = moved / "demo" / "D"
    before = len(RunDirectory(path).records())
    for rerun in range(2):
        (evaluated,) = evaluate_nets([path], ["both"], None) or []
        assert evaluated.Q == (32, 37, 42)  # Table 5's
        added = RunDirectory(path).records("evaluation")[1:]
        assert len(RunDirectory(path).records()) == before + 1, f"call {rerun + 1}"
    errors = {f"{method}_multi_Q_top{k}_error" for method in ("dense", "multicrop", "both") for k in (1, 5)}
    assert added[0].keys() == errors | {"kind", "step", "n", "time"}
    assert added[0]["both_multi_Q_top1_error"] == evaluated.results.measured("both", evaluated.Q).top1.percent
    evaluate_nets([path], ["centre"], (33, 40))
    evaluate_nets([path], ["centre"], (37,), ["evaluation.flip=true"])  # a protocol that is not the run's
    last = RunDirectory(path).records()[-1]
    assert last.keys() == {"centre_Q_33_40_top1_error", "centre_Q_33_40_top5_error", "kind", "step", "n", "time"}

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{moved / 'mlruns.db'}")
    run = client.get_run(RunDirectory(path).read_json("mlflow.json")["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() >= {f"evaluation/{key}" for key in errors} | {"evaluation/centre_Q_33_40_top1_error"}
    assert len(client.search_runs(["1"])) == 3, "the run that was there goes on, below the graph's"


def test_the_run_directory_has_the_ledger(finished: Path) -> None:
    departures = json.loads((finished / "demo" / "D" / "ledger.json").read_text())
    assert {"model.width", "data.images.train"} <= {line["setting"] for line in departures}


def test_the_run_directory_has_the_latest_test_settings(rerun: list[str]) -> None:
    graph = graph_of(rerun, "evaluation.flip=false", "evaluation.single_Q=[40]")
    reproduce(graph)
    root = graph.stages["A"].run.root
    rows = [row for row in build_report(find_runs([root])).rows if (row.table, row.net) == (3, "D") and row.run]
    assert [(row.Q, row.flip, row.top1.measured is None) for row in rows] == [("40", False, False)]
    path = graph.stages["D"].directory
    ledger = {line["setting"]: line["run"] for line in RunDirectory(path).read_json("ledger.json")}
    assert (ledger["evaluation.flip"], ledger["model.crop"]) == (False, 32)
    (evaluated,) = evaluate_nets([path], ["dense"], None) or []
    assert (evaluated.net.config.evaluation.flip, evaluated.Q) == (False, (40,))


def test_the_tables_of_several_seeds_have_means_and_spreads(
    settings: list[str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the built-in digits; the runs of the first seed are those that were there without --seeds."""
    link_digits(digits, tmp_path / "runs" / "data")
    changes = [*settings, *SMALL, "data.root=builtin:digits", "model.classes=10", "evaluation.batch=250"]
    reproduce(load_graph(DEMO, changes))
    alone = capsys.readouterr().out
    graph = load_graph(DEMO, changes, "0,1,2")
    stored = {name: contents(graph.stages[name].directory / "checkpoints") for name in ("A", "D")}
    reproduce(graph)
    text = capsys.readouterr().out
    assert {name: contents(graph.stages[name].directory / "checkpoints") for name in stored} == stored

    report = build_report(find_runs([graph.stages["A"].run.root]))
    assert len(report.groups) == 1
    assert len({run.weights for run in report.groups[0].runs}) == 6, "each seed is another net"
    for name in ("D", "D-seed1", "D-seed2"):
        config, parent = graph.stages[name], graph.stages[graph.parents[name] or ""]
        inherited = checkpoint.load(config.directory / "checkpoints" / "final.pt").provenance["parent"]
        assert (config.run.seed, inherited["name"]) == (parent.run.seed, parent.name)
    measured = [row.top1.measured for row in report.rows if (row.table, row.net) == (3, "D") and row.run]
    mean, sd = statistics.mean(measured), statistics.stdev(measured)
    assert f"| D | 37 | 37 | dense | 3 | (27.0) | **{mean:.2f}** | {sd:.2f} |" in text
    assert "Mean and standard deviation over seeds" not in alone
    (claim,) = [each for each in report.claims if "D is better than A" in each.claim]
    assert claim.seeds == 3
    assert claim.spread is not None


def test_an_interrupted_graph_resumes(settings: list[str], finished: Path) -> None:
    graph = graph_of(settings)
    with pytest.raises(Interrupted, match="wall time nearly spent"):
        reproduce(graph, stop_after_s=0.0)
    assert not (graph.stages["A"].directory / "checkpoints" / "final.pt").exists()
    reproduce(graph)
    for name, config in graph.stages.items():
        undisturbed = RunDirectory(finished / "demo" / name)
        assert RunDirectory(config.directory).read_json("final.json") == undisturbed.read_json("final.json")
