"""Final nets as models in MLflow: storage, links, registration and failures."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import tiny_vgg
from programs import free_port

from vggrepro.config.settings import Config, Data, Evaluation, Model
from vggrepro.models.weights import PREPROCESSING
from vggrepro.storage import checkpoint, logged_model
from vggrepro.storage.checkpoint import Checkpoint
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.logged_model import ModelDescription
from vggrepro.storage.mirror import MlflowMirror, is_behind
from vggrepro.storage.mlflow_run import RunDescription, import_quietly

LONG_S = 60.0
CLASSES = [f"class {number}" for number in range(7)]
DATASET = {"source": "images", "fingerprint": "f" * 64, "splits": {"train": 1, "val": 2}}


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(
        model=Model(net="A", classes=7, crop=32, width=0.0625), data=Data(S=40), evaluation=Evaluation(flip=False)
    )
    net, file = tiny_vgg("A"), tmp_path_factory.mktemp("net") / "final.pt"
    described: dict[str, Any] = {"classes": CLASSES, "data": "f" * 64, "versions": {}, "parent": None}
    content = (config.model_dump(mode="json"), 0, net.state_dict(), PREPROCESSING["paper"], described)
    checkpoint.save(Checkpoint(*content), file)
    return file


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Database, whose migration takes seconds."""
    import_quietly()
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('database')}/mlruns.db"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def run_with(final: Path, folder: Path, top1: float | None = None) -> RunDirectory:
    run = RunDirectory(folder)
    run.checkpoints.mkdir(parents=True)
    shutil.copy(final, run.checkpoints)
    if top1 is not None:
        add_errors(run, top1)
    return run


def add_errors(run: RunDirectory, top1: float, **more: float) -> None:
    run.append({"step": 6, "kind": "evaluation", "n": 2, "dense_multi_Q_top1_error": top1, **more})


def mirror_of(run: RunDirectory, uri: str, *, data: str = "f" * 64, register: str | None = None) -> MlflowMirror:
    final = run.checkpoints / "final.pt"
    model = ModelDescription(final, run.path.name, {"net": "A"}, data, register)
    described = RunDescription(
        uri=uri,
        experiment="nets",
        name=run.path.name,
        params={},
        tags={},
        artifact_root=run.path.parent / "artifacts",
        dataset=DATASET | {"fingerprint": data},
        graph=f"nets of {run.path.parent.name}",
        model=model,
    )
    return MlflowMirror(run, described)


def end_of(run: RunDirectory, uri: str, **changes: Any) -> bool:
    mirror = mirror_of(run, uri, **changes)
    mirror.start()
    return mirror.close("FINISHED", LONG_S)


def model_of(run: RunDirectory, client: Any) -> Any:
    return client.get_logged_model(run.read_json("mlflow.json")["model_id"])


def test_a_net_is_logged_with_its_errors_and_linked(final: Path, tmp_path: Path, uri: str, client: Any) -> None:
    run = run_with(final, tmp_path / "A", 12.5)
    assert end_of(run, uri)
    model, state = model_of(run, client), run.read_json("mlflow.json")
    assert (model.name, model.status, model.source_run_id) == ("A", "READY", state["run_id"])
    assert model.params == {"net": "A"}
    (error,) = [each for each in model.metrics if each.key == "evaluation/dense_multi_Q_top1_error"]
    assert (error.value, error.dataset_name, error.dataset_digest) == (12.5, "images", "f" * 12)
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert os.path.samefile(folder / "final.pt", run.checkpoints / "final.pt"), "a link, not a copy"
    described = json.loads(json.dumps(client.get_run(state["run_id"]).outputs.to_dictionary()))
    assert [output["model_id"] for output in described["model_outputs"]] == [model.model_id]
    text = (folder / "MLmodel").read_text()
    assert "class 6" in text
    assert '"default": [8, 40, 72]' not in text
    assert f'"default": {list(checkpoint.load(final).stage.multi_Q)}' in text
    assert "torch==" in (folder / "requirements.txt").read_text()
    assert not [file for file in (folder / "code").rglob("*") if file.suffix == ".pyc"]
    assert not list(run.checkpoints.glob(".model-*"))

    add_errors(run, 12.0, dense_single_Q_top1_error=13.0)  # tested again, by more
    assert end_of(run, uri)
    assert model_of(run, client).model_id == model.model_id, "once is enough"
    found = {each.key: each.value for each in model_of(run, client).metrics}
    assert (found["evaluation/dense_multi_Q_top1_error"], found["evaluation/dense_single_Q_top1_error"]) == (12.0, 13.0)
    graph = client.get_run(client.get_run(state["run_id"]).data.tags["mlflow.parentRunId"])
    assert (graph.info.run_name, graph.info.status) == (f"nets of {tmp_path.name}", "FINISHED")
    assert graph.data.metrics == {"A/dense_multi_Q_top1_error": 12.0, "A/dense_single_Q_top1_error": 13.0}


def test_the_model_equals_the_net(final: Path, tmp_path: Path) -> None:
    """Includes MLflow's checks of the signature; test_pipeline_logged_model.py tests without this package."""
    from mlflow import pyfunc

    from vggrepro.pipeline.pretrained import load

    logged_model.write_model(tmp_path / "model", final)
    model, net = pyfunc.load_model(str(tmp_path / "model")), load(final)
    assert net.flip is False
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 44, 3), dtype=np.uint8)
    expected = net.predict(list(images))
    assert np.abs(model.predict(images) - expected).max() == 0
    assert np.abs(expected - net.predict(list(images), flip=True)).max() > 1e-4
    ragged = np.empty(2, dtype=object)
    ragged[:] = [images[0], images[1][:40].astype(np.float32)]
    found = model.predict(ragged, params={"Q": [33, 47]})
    assert found.shape == (2, 7)
    assert np.abs(found[0] - net.predict(images[:1], [33, 47])[0]).max() == 0
    # float images are not rounded between the filter's two passes
    assert 0 < np.abs(model.predict(images.astype(np.float32)) - expected).max() < 0.02
    assert model.predict(model.input_example).shape == (1, 7)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((1, 40, 40, 3), 0.5), r"image 0 has grey levels from 0.5 to 0.5, .* multiply it by 255"),
        (np.full((1, 40, 40, 3), 256.0), "from 256 to 256"),
        (np.full((1, 40, 40, 3), np.nan), "from nan to nan"),
        (np.zeros((1, 40, 40, 4), np.uint8), r"the shape \(40, 40, 4\)"),
        (np.zeros((40, 40, 3), np.uint8), r"put one into a list: \[image\]"),
        (np.array(["no image"], dtype=object), "image 0 cannot be decoded"),
        (np.array([b"no image"], dtype=object), "image 0 cannot be decoded"),
    ],
)
def test_invalid_images_are_errors(final: Path, image: Any, words: str) -> None:
    from vggrepro.errors import UserError
    from vggrepro.pipeline.pretrained import load
    from vggrepro.pipeline.served import ServedNet

    with pytest.raises(UserError, match=words):
        ServedNet(load(final)).predict(image)


def test_the_best_version_of_a_net_is_the_champion(final: Path, tmp_path: Path, uri: str, client: Any) -> None:
    runs = {name: run_with(final, tmp_path / name, top1) for name, top1 in (("one", 20.0), ("two", 10.0), ("x", 5.0))}

    def champion() -> str:
        version = client.get_registered_model("nets-A").aliases["champion"]
        return client.get_model_version("nets-A", version).tags["stage"]

    assert end_of(runs["one"], uri, register="nets-A")
    assert champion() == "one"
    assert end_of(runs["two"], uri, register="nets-A")
    assert champion() == "two"
    assert end_of(runs["x"], uri, register="nets-A", data="e" * 64)
    assert champion() == "two", "on other images nothing is compared"
    add_errors(runs["one"], 9.0)
    assert end_of(runs["one"], uri, register="nets-A")
    assert champion() == "one"
    add_errors(runs["one"], 15.0)
    assert end_of(runs["one"], uri, register="nets-A")
    assert champion() == "two"
    assert len(client.search_model_versions("name = 'nets-A'")) == 3
    (shown,) = json.loads(model_of(runs["two"], client).tags["mlflow.modelVersions"])
    assert (shown["name"], int(shown["version"])) == ("nets-A", 2)

    from mlflow import pyfunc, set_registry_uri, set_tracking_uri

    set_tracking_uri(uri)
    try:
        assert (
            pyfunc.load_model("models:/nets-A@champion").metadata.run_id
            == runs["two"].read_json("mlflow.json")["run_id"]
        )
    finally:
        set_tracking_uri(None)
        set_registry_uri(None)


def test_the_registered_model_of_another_program_is_unchanged(
    final: Path, tmp_path: Path, uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client.create_registered_model("theirs")
    run = run_with(final, tmp_path / "A", 12.5)
    assert not end_of(run, uri, register="theirs")
    (line,) = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert "registered model theirs is not from vggrepro; set another tracking.register" in line
    assert model_of(run, client).status == "READY", "nothing is lost"
    assert not client.search_model_versions("name = 'theirs'")
    assert end_of(run, uri, register="ours"), "under another name it goes on"
    assert not is_behind(run, model=True)


@pytest.mark.parametrize("full", ["the disk", "the server"])
def test_an_interrupted_upload_is_completed(
    final: Path, tmp_path: Path, uri: str, client: Any, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    run = run_with(final, tmp_path / "A", 12.5)
    with monkeypatch.context() as broken:
        if full == "the disk":

            def no_space(*_: Any, **__: Any) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            broken.setattr(logged_model.shutil, "copytree", no_space)
        else:
            broken.setattr(logged_model, "_local_folder", lambda _: None)
            refused = lambda *_: (_ for _ in ()).throw(ConnectionError("reset by peer"))  # noqa: E731
            broken.setattr(type(client), "log_model_artifacts", refused)
        mirror = mirror_of(run, uri)
        mirror.start()
        assert not mirror.close("FINISHED", 3.0)
        mirror._thread.join()
    begun = model_of(run, client)
    assert begun.status == "PENDING"
    assert is_behind(run, model=True)
    assert not list(run.checkpoints.glob(".model-*")), "nothing is left behind"
    assert end_of(run, uri)
    assert (model_of(run, client).model_id, model_of(run, client).status) == (begun.model_id, "READY")
    assert not is_behind(run, model=True)


def test_a_remote_store_gets_all_files(
    final: Path, tmp_path: Path, uri: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(final, tmp_path / "A", 12.5)
    monkeypatch.setattr(logged_model, "_local_folder", lambda _: None)
    assert end_of(run, uri)
    folder = Path(model_of(run, client).artifact_location.removeprefix("file://"))
    assert {"MLmodel", "final.pt", "requirements.txt", "code", "input_example.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert (folder / "final.pt").read_bytes() == (run.checkpoints / "final.pt").read_bytes()


def test_an_older_run_gets_its_model_later(final: Path, tmp_path: Path, uri: str, client: Any) -> None:
    run = run_with(final, tmp_path / "A", 12.5)
    mirror = mirror_of(run, uri)
    mirror.description = replace(mirror.description, model=None, graph="")
    mirror.start()
    assert mirror.close("FINISHED", LONG_S)
    older = run.read_json("mlflow.json")
    run.write_json("mlflow.json", {key: older[key] for key in ("key", "run_id", "bytes", "last_step", "ended")})
    assert not is_behind(run)
    assert is_behind(run, model=True)
    assert end_of(run, uri)
    assert run.read_json("mlflow.json")["run_id"] == older["run_id"]
    assert len(model_of(run, client).metrics) == 2
    assert client.get_run(older["run_id"]).data.tags["mlflow.parentRunId"]


def test_seeds_are_grouped(final: Path, tmp_path: Path, uri: str, client: Any) -> None:
    parents = {}
    for stage, seed in (("A", 0), ("D", 0), ("A-seed1", 1)):
        run = run_with(final, tmp_path / stage, 12.5)
        mirror = mirror_of(run, uri)
        mirror.description = replace(mirror.description, model=None, graph=f"of {tmp_path.name}, seed {seed}")
        mirror.start()
        assert mirror.close("FINISHED", LONG_S)
        parents[stage] = client.get_run(run.read_json("mlflow.json")["run_id"]).data.tags["mlflow.parentRunId"]
    assert parents["A"] == parents["D"] != parents["A-seed1"]


def test_the_run_of_the_graph_ends_with_its_last_stage(final: Path, tmp_path: Path, uri: str, client: Any) -> None:
    first, last = (mirror_of(run_with(final, tmp_path / stage), uri) for stage in ("A", "D"))
    for mirror in (first, last):
        mirror.start()
        mirror.copy()
    run_id = first.run.read_json("mlflow.json")["run_id"]
    graph = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    assert first.close("FINISHED", LONG_S)
    assert client.get_run(graph).info.status == "RUNNING"
    assert last.close("KILLED", LONG_S)
    assert client.get_run(graph).info.status == "KILLED"


@pytest.mark.slow
def test_a_server_of_mlflow_stores_and_loads_models(final: Path, tmp_path: Path) -> None:
    """Uses the REST interface, which also transfers artifacts."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    program = [sys.executable, "-m", "mlflow", "server", "--port", str(port)]
    places = ["--backend-store-uri", f"sqlite:///{tmp_path}/db", "--artifacts-destination", str(tmp_path / "store")]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*program, *places], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health").close()
                break
            except OSError:
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.5)
        run = run_with(final, tmp_path / "A", 12.5)
        assert end_of(run, address, register="nets-A")
        from mlflow import MlflowClient

        client = MlflowClient(address)
        model = model_of(run, client)
        assert (model.status, len(model.metrics)) == ("READY", 2)
        (found,) = (tmp_path / "store").rglob("final.pt")
        assert found.read_bytes() == final.read_bytes()
        assert client.get_model_version_by_alias("nets-A", "champion").tags["vggrepro.model"] == model.model_id
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
