"""What is measured where no command of the package does it alone: each is run as a process of its own.

    python benchmarks/rehearsal/programs.py NAME ARGUMENT ...

Its last line is JSON: what it found, among it the seconds that it took once everything was imported.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import stand_in

BATCH, CROP = 256, 224
_kept: list[Any] = []
"""What is to stay in memory while several processes are measured together."""
_HOLD = "REHEARSAL_HOLD"


def open_index(file: str) -> dict[str, Any]:
    from vggrepro.data.images.index import load

    started = perf_counter()
    index = load(Path(file))
    _kept.append((index, index.fingerprint, splits := [index.split(name) for name in ("train", "val")]))
    return {"after_imports_s": perf_counter() - started, "images": sum(map(len, splits))}


def open_data(root: str, runs: str) -> dict[str, Any]:
    from vggrepro.config.recipes import load_stage
    from vggrepro.data.dataset import open_data

    config, _ = load_stage(Path("vgg_D"), [f"data.root={root}", f"run.root={runs}"])
    started = perf_counter()
    index = open_data(config)
    _kept.append((index, index.fingerprint, splits := [index.split(name) for name in ("train", "val")]))
    return {"after_imports_s": perf_counter() - started, "images": sum(map(len, splits))}


def several(number: str, *words: str) -> dict[str, Any]:
    """A program in so many processes, all of which are there at the end."""
    held = os.environ | {_HOLD: "1"}
    command = [sys.executable, __file__, *words]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=held) for _ in range(int(number))
    ]
    found = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
    time.sleep(0.5)  # for whoever looks at their memory
    for process in processes:
        process.communicate()
    return {"slowest_after_imports_s": max(one["after_imports_s"] for one in found)}


def first_batch(file: str, step: str) -> dict[str, Any]:
    import torch

    from vggrepro.config.settings import Data
    from vggrepro.data.images.index import load
    from vggrepro.data.loading.loader import make_loader
    from vggrepro.data.sampler import TrainingSampler

    started = perf_counter()
    data = Data(backend="torchvision")
    split = load(Path(file)).split("train")
    sampler = TrainingSampler(split.size, data, CROP, 0)
    views = sampler.views(int(step) * BATCH, BATCH)
    drawn = perf_counter() - started
    batch = next(make_loader(data, torch.device("cpu")).batches(split, [views]))
    return {"after_imports_s": perf_counter() - started, "views_s": drawn, "images": len(batch.labels)}


def epoch_views(file: str) -> dict[str, Any]:
    """The views of every step of an epoch."""
    from vggrepro.config.settings import Data
    from vggrepro.data.images.index import load
    from vggrepro.data.sampler import TrainingSampler

    started = perf_counter()
    split = load(Path(file)).split("train")
    sampler, steps = TrainingSampler(split.size, Data(S=(256, 512)), CROP, 0), len(split) // BATCH
    for step in range(steps):
        sampler.views(step * BATCH, BATCH)
    return {"after_imports_s": perf_counter() - started, "steps": steps}


def masks(scale: str) -> dict[str, Any]:
    """The dropout masks of a fifth of an epoch's steps, at step 300,000."""
    from vggrepro.data.sampler import dropout_masks

    started, steps = perf_counter(), 1000 // int(scale)
    for step in range(300_000, 300_000 + steps):
        dropout_masks(0, step, BATCH, slice(0, BATCH), (4096, 4096), 0.5)
    return {"after_imports_s": perf_counter() - started, "steps": steps}


def test_views(file: str) -> dict[str, Any]:
    """Whole images at each Q of net D with jitter, and centre crops."""
    from vggrepro.data.images.index import load
    from vggrepro.evaluation.methods import centre_views, whole_views

    started = perf_counter()
    split = load(Path(file)).split("val")
    batches = [len(whole_views(split, Q, 32, CROP)) for Q in (256, 384, 512)]
    centre_views(split, 256, 64, CROP)
    return {"after_imports_s": perf_counter() - started, "batches": batches}


class Guessing:
    """A net that costs nothing: every class scores alike."""

    training = False

    class architecture:
        crop = CROP

    def __call__(self, images: Any) -> Any:
        import torch

        return torch.zeros(len(images), stand_in.CLASSES)

    def eval(self) -> None: ...

    def train(self, _: bool) -> None: ...


def validation(file: str) -> dict[str, Any]:
    """What training does at the end of each epoch, with decoding and without a net."""
    import torch

    from vggrepro.config.settings import Data
    from vggrepro.data.images.index import load
    from vggrepro.data.loading.loader import make_loader
    from vggrepro.evaluation.methods import centre_error
    from vggrepro.evaluation.run_split import SplitPass
    from vggrepro.ranks.watch import Watch

    started = perf_counter()
    split = load(Path(file)).split("val")
    loader = make_loader(Data(backend="torchvision"), torch.device("cpu"))
    with Watch() as watch:
        errors = centre_error(Guessing(), SplitPass(split, loader, watch, "fp32"), 256, 64)  # type: ignore[arg-type]
    return {"after_imports_s": perf_counter() - started, "top1_error": errors[1].percent}


class Undecoded:
    """A loader that opens no image: of each batch one pixel an image."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def batches(self, split: Any, stream: Any) -> Iterator[Any]:
        import torch

        from vggrepro.data.loading.loader import Batch

        for views in stream:
            labels = torch.from_numpy(np.array(split.label[views.image]))
            yield Batch(torch.zeros(len(views), 3, 1, 1), labels, views)


def store(file: str, runs: str, methods: str, share: str = "1") -> dict[str, Any]:
    """Answers of net D at its three Q, all but the net: stored whole, or left once a share of the first is done."""
    import torch

    from vggrepro.config.recipes import load_stage
    from vggrepro.data.images.index import load
    from vggrepro.errors import Interrupted
    from vggrepro.evaluation import stage
    from vggrepro.evaluation.measure import NetAnswers
    from vggrepro.pipeline.session import open_session
    from vggrepro.storage.directory import RunDirectory

    index = load(Path(file))
    changes = [f"data.index={file}", f"run.root={runs}", "run.device=cpu", "tracking.mlflow=false"]
    config, _ = load_stage(Path("vgg_D_jitter"), changes)
    rows = np.random.default_rng(0).random((4096, stand_in.CLASSES), np.float32)
    rows = torch.from_numpy(rows / rows.sum(axis=1, keepdims=True))
    tests = [(method, config.multi_Q) for method in methods.split(",")]
    with open_session([config], training=False) as session:
        least = float(share) * len(index.split("val")) / session.topology.world if float(share) < 1 else np.inf
        seen = 0

        def predict(net: Any, images: Any, testing: Any) -> Any:
            nonlocal seen
            seen += len(images)
            if seen > least:
                raise Interrupted("half of it is done")
            return rows[seen % 3000 :][: len(images)]

        stage.METHODS = dict.fromkeys(methods.split(","), predict)  # type: ignore[assignment]
        run = RunDirectory(config.directory)
        answers = NetAnswers(run, stand_in.weights_of(config), index.fingerprint, config.evaluation)
        started = perf_counter()
        with suppress(Interrupted):
            stage.evaluate(answers, lambda: (Guessing(), Undecoded(session.device)), index, session.watch, tests)  # type: ignore[arg-type, return-value]
        return {"after_imports_s": perf_counter() - started, "shown": seen}


def boxes(file: str, boxes_file: str) -> dict[str, Any]:
    """The boxes of a stage, as it opens them."""
    from vggrepro.data.boxes.box_set import load as load_boxes
    from vggrepro.data.images.index import load

    started = perf_counter()
    index = load(Path(file))
    found = load_boxes(Path(boxes_file), index)
    return {"after_imports_s": perf_counter() - started, "boxed": int(found.split("train").has.sum())}


def card(run: str) -> dict[str, Any]:
    """The errors in the model card of a net."""
    from vggrepro.reporting.documents.card import _errors
    from vggrepro.storage.directory import RunDirectory
    from vggrepro.storage.status import known_weights, stage_at

    started = perf_counter()
    directory = RunDirectory(Path(run))
    found = list(_errors(stage_at(Path(run)), known_weights(directory) or "", directory))
    return {"after_imports_s": perf_counter() - started, "errors": len(found)}


def stage_end(index: str, runs: str) -> dict[str, Any]:
    """What follows the last stage's last answer: its errors and figure, then the tables of all stages."""
    from vggrepro.config.recipes import load_graph
    from vggrepro.data.images.index import load
    from vggrepro.pipeline.done import tests_of
    from vggrepro.pipeline.graph import write_tables
    from vggrepro.pipeline.net import Net
    from vggrepro.pipeline.stage import errors_by_name
    from vggrepro.reporting.stored.predictions import PredictionCache
    from vggrepro.reporting.stored.runs import StoredRun

    graph = load_graph(Path("reproduce"), [f"run.root={runs}", f"data.index={index}", "tracking.mlflow=false"])
    config = list(graph.stages.values())[-1]
    seconds = [perf_counter()]
    answers = Net.of_stage(config).answers(load(Path(index)).fingerprint)
    errors_by_name(config, answers, tests_of(config))
    seconds.append(perf_counter())
    PredictionCache().of([(StoredRun(config.directory, config), config.multi_Q)], "dense")
    seconds.append(perf_counter())
    write_tables(graph)
    seconds.append(perf_counter())
    parts = dict(zip(("errors_s", "figure_s", "tables_s"), np.diff(seconds).tolist(), strict=True))
    return {"after_imports_s": seconds[-1] - seconds[0]} | parts


def resume_metrics(source: str, scratch: str) -> dict[str, Any]:
    """What a requeued job reads and writes of metrics.jsonl: the last lines go, the notes are looked through."""
    from vggrepro.storage.directory import RunDirectory

    run = RunDirectory(Path(scratch))
    run.path.mkdir(parents=True, exist_ok=True)
    run.metrics.write_bytes((Path(source) / "metrics.jsonl").read_bytes())
    last = json.loads(run.metrics.read_bytes().splitlines()[-1])["step"]
    started = perf_counter()
    run.rewind(max(20, last - 500))
    run.records("event")
    seconds = perf_counter() - started
    return {"after_imports_s": seconds, "mb": run.metrics.stat().st_size / 1e6}


def read_records(run: str) -> dict[str, Any]:
    from vggrepro.storage.directory import RunDirectory

    started = perf_counter()
    found = RunDirectory(Path(run)).records("train")
    return {"after_imports_s": perf_counter() - started, "records": len(found)}


def curves(runs: str) -> dict[str, Any]:
    """The learning curves of all runs in one figure."""
    from vggrepro.reporting.documents.figures import learning_curves
    from vggrepro.storage.directory import RunDirectory

    found = {folder.name: RunDirectory(folder) for folder in sorted(Path(runs).glob("paper/*"))}
    started = perf_counter()
    png = learning_curves(found)
    return {"after_imports_s": perf_counter() - started, "runs": len(found), "bytes": len(png)}


def mirror(source: str, scratch: str, tenths: str, uri: str = "") -> dict[str, Any]:
    """Brings some tenths of a run's metrics into MLflow, as a job does that works on the run."""
    from vggrepro.storage.directory import RunDirectory
    from vggrepro.storage.mirror import MlflowMirror, RunDescription

    place, run = Path(scratch), RunDirectory(Path(scratch) / "run")
    run.path.mkdir(parents=True, exist_ok=True)
    lines = (Path(source) / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    there = run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0
    with run.metrics.open("ab") as file:
        file.writelines(lines[there : len(lines) * int(tenths) // 10])
    where = uri or f"sqlite:///{place.absolute() / 'mlruns.db'}"
    following = MlflowMirror(run, RunDescription(where, "rehearsal", "run", {}, {}, place / "artifacts"))
    following.start()
    started = perf_counter()
    done = following.close("FINISHED", 900)
    return {"after_imports_s": perf_counter() - started, "done": done}


def mirror_on_server(source: str, scratch: str) -> dict[str, Any]:
    """The same with a server on this machine: all but a tenth, once more with nothing new, the last tenth."""
    place = Path(scratch).absolute()
    place.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{place / 'server.db'}"]  # fmt: skip
    with (place / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=place)
    try:
        until = perf_counter() + 90
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            if perf_counter() > until or server.poll() is not None:
                raise RuntimeError(f"the server did not start: {(place / 'server.log').read_text()[-200:]}")
            time.sleep(0.5)
        found = {name: mirror(source, scratch, tenths, uri) for name, tenths in MIRRORED.items()}
        return {f"{name}_s": one["after_imports_s"] for name, one in found.items()}
    finally:
        server.terminate()
        server.wait()


MIRRORED = {"first": "9", "requeued": "9", "last_tenth": "10"}


def descriptors(runs: str, scale: str, name: str) -> dict[str, Any]:
    """A test of Appendix B from stored features: descriptors, then SVMs of two classes at one C; it has five C."""
    from vggrepro.evaluation.feature_spec import feature_specs
    from vggrepro.evaluation.svm import into_span, learn
    from vggrepro.pipeline.features import Descriptors

    data, net = stand_in.transfer_set(name, int(scale)), stand_in.transfer_net(Path(runs))
    cores = len(os.sched_getaffinity(0))
    seconds = [perf_counter()]
    values = Descriptors(data, (net,), (feature_specs(name, net.config)[0],)).values()
    seconds.append(perf_counter())
    partition = data.partitions[0]
    learnt, _ = into_span(values[partition.train])
    learn(learnt, data.targets[partition.train][:, :2], 1.0, cores)
    seconds.append(perf_counter())
    parts = dict(zip(("descriptors_s", "two_classes_s"), np.diff(seconds).tolist(), strict=True))
    whole = {"samples": values.shape[0], "dimensions": values.shape[1], "learnt_from": len(partition.train)}
    return {"after_imports_s": seconds[-1] - seconds[0]} | parts | whole | {"classes": len(data.classes)}


if __name__ == "__main__":
    outcome = globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(outcome), flush=True)
    if os.environ.get(_HOLD):
        sys.stdin.read()
