"""Programs to measure where the package has no separate command: each runs in a separate process.

    python benchmarks/rehearsal/programs.py NAME ARGUMENT ...

A program is a generator: its first `yield` says that all is imported, its second what it found. That is the last line
of output, as JSON, with the seconds from the one to the other.
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

Program = Iterator[dict[str, Any] | None]
BATCH, CROP, JITTER = 256, 224, (256, 512)
_STAYS = "REHEARSAL_STAYS"
"""Environment variable of a process that is to stay until its standard input ends."""


def open_index(file: str) -> Program:
    from vggrepro.data.images.index import load

    yield None
    index = load(Path(file))
    splits = [index.split(name) for name in ("train", "val")]
    yield {"fingerprint": index.fingerprint, "images": sum(map(len, splits))}


def open_data(root: str, runs: str) -> Program:
    from vggrepro.config.recipes import load_stage
    from vggrepro.data.dataset import open_data

    yield None
    config, _ = load_stage(Path("vgg_D"), [f"data.root={root}", f"run.root={runs}"])
    index = open_data(config)
    splits = [index.split(name) for name in ("train", "val")]
    yield {"fingerprint": index.fingerprint, "images": sum(map(len, splits))}


def several(number: str, *words: str) -> Program:
    """A program in so many processes, all of which are there in the end."""
    yield None
    command, environment = [sys.executable, __file__, *words], os.environ | {_STAYS: "1"}
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(int(number))
    ]
    found = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
    time.sleep(0.5)  # for whoever looks at their memory
    for process in processes:
        process.communicate()
    yield {"slowest_after_imports_s": max(process["after_imports_s"] for process in found)}


def open_boxes(file: str, boxes_file: str) -> Program:
    """The boxes of a stage, and the images that they are of."""
    from vggrepro.data.boxes.box_set import load as load_boxes
    from vggrepro.data.images.index import load

    yield None
    found = load_boxes(Path(boxes_file), load(Path(file)))
    yield {"images": int(found.split("train").has.sum())}


def first_batch(file: str, step: str) -> Program:
    import torch

    from vggrepro.config.settings import Data
    from vggrepro.data.images.index import load
    from vggrepro.data.loading.loader import make_loader
    from vggrepro.data.sampler import TrainingSampler

    yield None
    started, data, split = perf_counter(), Data(backend="torchvision"), load(Path(file)).split("train")
    views = TrainingSampler(split.size, data, CROP, 0).views(int(step) * BATCH, BATCH)
    drawn_s = perf_counter() - started
    batch = next(make_loader(data, torch.device("cpu")).batches(split, [views]))
    yield {"views_s": drawn_s, "images": len(batch.labels)}


def epoch_views(file: str) -> Program:
    """The views of every step of an epoch."""
    from vggrepro.config.settings import Data
    from vggrepro.data.images.index import load
    from vggrepro.data.sampler import TrainingSampler

    yield None
    split = load(Path(file)).split("train")
    sampler, steps = TrainingSampler(split.size, Data(S=JITTER), CROP, 0), len(split) // BATCH
    for step in range(steps):
        sampler.views(step * BATCH, BATCH)
    yield {"steps": steps}


def masks(scale: str) -> Program:
    """The dropout masks of a fifth of an epoch's steps, at step 300,000."""
    from vggrepro.data.sampler import dropout_masks

    yield None
    steps = max(1, 1000 // int(scale))
    for step in range(300_000, 300_000 + steps):
        dropout_masks(0, step, BATCH, slice(0, BATCH), (stand_in.UNITS, stand_in.UNITS), 0.5)
    yield {"steps": steps}


class Indifferent:
    """A net that costs nothing: every class scores alike."""

    training = False

    class architecture:
        crop = CROP

    def __call__(self, images: Any) -> Any:
        return images.new_zeros(len(images), stand_in.CLASSES)

    def eval(self) -> None: ...

    def train(self, _: bool) -> None: ...


def validation(file: str) -> Program:
    """Runs the end of an epoch of training, with decoding and without a net."""
    import torch

    from vggrepro.config.settings import Data
    from vggrepro.data.images.index import load
    from vggrepro.data.loading.loader import make_loader
    from vggrepro.evaluation.methods import centre_error
    from vggrepro.evaluation.run_split import SplitPass
    from vggrepro.ranks.watch import Watch

    yield None
    split, loader = load(Path(file)).split("val"), make_loader(Data(backend="torchvision"), torch.device("cpu"))
    with Watch() as watch:
        errors = centre_error(Indifferent(), SplitPass(split, loader, watch, "fp32"), JITTER[0], 64)  # type: ignore[arg-type]
    yield {"top1_error": errors[1].percent}


def test_views(file: str) -> Program:
    """Whole images at each Q of net D with jitter, and centre crops."""
    from vggrepro.data.images.index import load
    from vggrepro.evaluation.methods import centre_views, uncropped_views

    yield None
    split = load(Path(file)).split("val")
    dense = [len(uncropped_views(split, Q, 32, CROP)) for Q in (256, 384, 512)]
    yield {"batches": [*dense, len(centre_views(split, 256, 64, CROP))]}


class Undecoded:
    """A loader that opens no image: of each one a pixel."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def batches(self, split: Any, stream: Any) -> Iterator[Any]:
        import torch

        from vggrepro.data.loading.loader import Batch

        for views in stream:
            labels = torch.from_numpy(np.array(split.label[views.image]))
            yield Batch(torch.zeros(len(views), 3, 1, 1), labels, views)


def store(file: str, runs: str, methods: str, share: str = "inf") -> Program:
    """Answers of net D at its three Q by some methods; left when a share of the first Q's is there."""
    import torch

    from vggrepro.config.recipes import load_stage
    from vggrepro.data.images.index import load
    from vggrepro.errors import Interrupted
    from vggrepro.evaluation import stage
    from vggrepro.evaluation.measure import NetResults
    from vggrepro.pipeline.session import open_session
    from vggrepro.storage.directory import RunDirectory

    yield None
    index, names = load(Path(file)), methods.split(",")
    changes = [f"data.index={file}", f"run.root={runs}", "run.device=cpu", "tracking.mlflow=false"]
    config, _ = load_stage(Path("vgg_D_jitter"), changes)
    rows = torch.rand(4096, stand_in.CLASSES).softmax(1)
    results = NetResults(
        RunDirectory(config.directory), stand_in.weights_of(config), index.fingerprint, config.evaluation
    )
    with open_session([config], training=False) as session:
        most, seen = float(share) * len(index.split("val")) / session.topology.world, 0

        def predict(net: Any, images: Any, testing: Any) -> Any:
            nonlocal seen
            seen += len(images)
            if seen > most:
                raise Interrupted("the share is there")
            return rows[seen % 3000 :][: len(images)]

        stage.METHODS = dict.fromkeys(names, predict)  # type: ignore[assignment]
        opened, tests = (Indifferent(), Undecoded(session.device)), [(name, config.multi_Q) for name in names]
        with suppress(Interrupted):
            stage.evaluate(results, lambda: opened, index, session.watch, tests)  # type: ignore[arg-type, return-value]
    yield {"answered": seen}


def descriptors(runs: str, scale: str, name: str) -> Program:
    """A test of Appendix B from stored features: descriptors, then two classes' SVMs at one C."""
    from vggrepro.evaluation.feature_spec import feature_specs
    from vggrepro.evaluation.svm import into_span, learn
    from vggrepro.pipeline.features import Descriptors

    yield None
    data, net = stand_in.transfer_set(name, int(scale)), stand_in.transfer_net(Path(runs))
    seconds = [perf_counter()]
    values = Descriptors(data, (net,), (feature_specs(name, net.config)[0],)).values()
    seconds.append(perf_counter())
    train = data.partitions[0].train
    learn(into_span(values[train])[0], data.targets[train][:, :2], 1.0, len(os.sched_getaffinity(0)))
    seconds.append(perf_counter())
    sizes = {"samples": values.shape[0], "dimensions": values.shape[1], "learnt_from": len(train)}
    yield dict(zip(("descriptors_s", "svm_s"), np.diff(seconds).tolist(), strict=True)) | sizes


def resume_metrics(source: str, scratch: str) -> Program:
    """Reads and writes metrics.jsonl as a requeued job does: removes the last lines, scans the events."""
    from vggrepro.storage.directory import RunDirectory

    run = RunDirectory(Path(scratch))
    run.path.mkdir(parents=True, exist_ok=True)
    run.metrics.write_bytes((Path(source) / "metrics.jsonl").read_bytes())
    last = json.loads(run.metrics.read_bytes().splitlines()[-1])["step"]
    yield None
    run.rewind(max(20, last - 500))
    yield {"events": len(run.records("event")), "mb": run.metrics.stat().st_size / 1e6}


def read_records(run: str) -> Program:
    from vggrepro.storage.directory import RunDirectory

    yield None
    yield {"records": len(RunDirectory(Path(run)).records("train"))}


def curves(runs: str) -> Program:
    """The learning curves of all runs in one figure."""
    from vggrepro.reporting.documents.figures import learning_curves
    from vggrepro.storage.directory import RunDirectory

    yield None
    found = {folder.name: RunDirectory(folder) for folder in sorted(Path(runs).glob("paper/*/"))}
    yield {"runs": len(found), "bytes": len(learning_curves(found))}


def mirror(source: str, scratch: str, tenths: str, uri: str = "") -> Program:
    """Brings some tenths of a run's metrics into MLflow, as each job does that works on the run."""
    from vggrepro.storage.directory import RunDirectory
    from vggrepro.storage.mirror import MlflowMirror, RunDescription

    place, run = Path(scratch).absolute(), RunDirectory(Path(scratch) / "run")
    run.path.mkdir(parents=True, exist_ok=True)
    lines = (Path(source) / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    there = run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0
    with run.metrics.open("ab") as file:
        file.writelines(lines[there : len(lines) * int(tenths) // 10])
    where = uri or f"sqlite:///{place / 'mlruns.db'}"
    following = MlflowMirror(run, RunDescription(where, "rehearsal", "run", {}, {}, place / "artifacts"))
    following.start()
    yield None
    yield {"done": following.close("FINISHED", 900)}


def mirror_on_server(source: str, scratch: str) -> Program:
    """The same with a server on this machine: nine tenths, once more with nothing new, the last tenth."""
    place = Path(scratch).absolute()
    place.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, database = f"http://127.0.0.1:{port}", f"sqlite:///{place / 'server.db'}"
    options = f"--host 127.0.0.1 --port {port} --workers 1 --backend-store-uri {database}"
    command = [sys.executable, "-m", "mlflow", "server", *options.split()]
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=place)
    try:
        until = perf_counter() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            if perf_counter() > until or server.poll() is not None:
                sys.exit(f"the server does not start: {(place / 'log').read_text()[-200:]}")
            time.sleep(0.5)
        yield None
        parts = {"first": "9", "requeued": "9", "rest": "10"}
        yield {
            f"{name}_s": run(mirror(source, scratch, tenths, uri))["after_imports_s"] for name, tenths in parts.items()
        }
    finally:
        server.terminate()
        server.wait()


def card(run: str) -> Program:
    """The errors in the model card of a net."""
    from vggrepro.reporting.documents.card import _errors
    from vggrepro.storage.directory import RunDirectory
    from vggrepro.storage.status import known_weights, stage_at

    yield None
    directory = RunDirectory(Path(run))
    yield {"errors": len(list(_errors(stage_at(directory.path), known_weights(directory) or "", directory)))}


def stage_end(index: str, runs: str) -> Program:
    """Runs the end of the last stage: its errors and figure, then the tables of all stages."""
    from vggrepro.config.recipes import load_graph
    from vggrepro.data.images.index import load
    from vggrepro.pipeline.done import tests_of
    from vggrepro.pipeline.graph import write_tables
    from vggrepro.pipeline.net import Net
    from vggrepro.pipeline.stage import errors_by_name
    from vggrepro.reporting.stored.predictions import PredictionCache
    from vggrepro.reporting.stored.runs import StoredRun

    yield None
    graph = load_graph(Path("reproduce"), [f"run.root={runs}", f"data.index={index}", "tracking.mlflow=false"])
    config = list(graph.stages.values())[-1]
    results = Net.of_stage(config).results(load(Path(index)).fingerprint)
    seconds = [perf_counter()]
    errors_by_name(config, results, tests_of(config))
    seconds.append(perf_counter())
    PredictionCache().of([(StoredRun(config.directory, config), config.multi_Q)], "dense")
    seconds.append(perf_counter())
    write_tables(graph)
    seconds.append(perf_counter())
    yield dict(zip(("errors_s", "figure_s", "tables_s"), np.diff(seconds).tolist(), strict=True))


def run(program: Program) -> dict[str, Any]:
    """Returns a program's result and seconds."""
    next(program)
    started = perf_counter()
    found = next(program) or {}
    return {"after_imports_s": perf_counter() - started} | found


if __name__ == "__main__":
    chosen = globals()[sys.argv[1]](*sys.argv[2:])  # which keeps what it has opened until it goes
    print(json.dumps(run(chosen)), flush=True)
    if os.environ.get(_STAYS):
        sys.stdin.read()
    chosen.close()
