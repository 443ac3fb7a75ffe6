"""Training on photographs: an epoch by `vggrepro train`, then what its steps lose to the images.

    python benchmarks/epoch.py IMAGES --set model.classes=10 --set data.backend=dali_gpu

The epoch is a stage as users train it, in a temporary folder: index, checks, steps, validation, checkpoint; its log
says how fast it was and what share of the time the host waited for images. On a GPU the host may wait while the
device still computes, and that costs nothing. What steps lose is therefore timed besides: steps on photographs as the
loader brings them, and the same steps on a batch that lies ready, in turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from itertools import count, repeat
from pathlib import Path
from typing import Any

from vggrepro.bench.machine import wait_for
from vggrepro.bench.step import about, mfu, plain, trainer_of
from vggrepro.config.parsing import override
from vggrepro.config.settings import Config
from vggrepro.data.dataset import open_data
from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import make_loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.pipeline.session import open_session
from vggrepro.pipeline.stage import train_stage
from vggrepro.ranks.group import pick_device
from vggrepro.storage.directory import RunDirectory

WARM_UP = 5  # steps at the start of a turn: batches lie ready since the last one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--net", default="D")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        fixed = {
            "model.init": "glorot_uniform",
            "data.root": arguments.images,
            "data.S": "[256, 512]",
            "train.learning_rate": 0.001,
            "train.log_every": 5,
            "run.root": runs,
            "tracking.mlflow": "false",
        }
        changes = [*(f"{key}={setting}" for key, setting in fixed.items()), *arguments.changes]
        config = override(plain(arguments.net), changes, Path("epoch"))
        index = open_data(config)
        epoch = real_epoch(config, index)
        print(json.dumps(in_turns(config, index, arguments.steps, arguments.rounds, epoch), indent=1))


def real_epoch(config: Config, index: Index) -> dict[str, Any]:
    """Reads the log of an epoch of training; the medians omit the first report, before warm-up."""
    iterations = max(2 * config.train.log_every, -(-len(index.split("train")) // config.train.batch))
    config = override(config, [f"train.iterations={iterations}"], Path("epoch"))
    started = time.perf_counter()
    with open_session([config]) as session:
        train_stage(config, None, session, force=True)
    seconds = time.perf_counter() - started
    run = RunDirectory(config.directory)
    reports = run.records("train")[1:]
    keys = [key for key in ("images_per_s", "data_wait", "mfu", "memory_gib") if key in reports[0]]
    return {
        "seconds_in_all": seconds,
        "iterations": iterations,
        "last_loss": reports[-1]["loss"],
        "top1_error": run.records("validation")[-1]["top1_error"],
        **{key: statistics.median([report[key] for report in reports]) for key in keys},
    }


def in_turns(config: Config, index: Index, steps: int, rounds: int, epoch: dict[str, Any]) -> dict[str, Any]:
    """`steps` steps on photographs and as many on one batch that lies ready, `rounds` times."""
    device = pick_device(config.run.device, 0)
    loader = make_loader(config.data, device)
    split = index.split("train")
    sampler = TrainingSampler(split.size, config.data, config.model.crop, config.run.seed)
    trainer = trainer_of(config, device)
    batch, number = config.train.batch, count()
    seconds: dict[str, list[float]] = {"photographs": [], "ready": []}
    with closing(trainer.batches(loader, split, sampler, 0)) as photographs:
        ways = {"photographs": photographs, "ready": repeat(next(photographs))}
        for _ in range(rounds + 1):
            for way, batches in ways.items():
                for _ in range(WARM_UP):
                    trainer.step(next(number), batches, config.train.learning_rate)
                wait_for(device)
                started = time.perf_counter()
                for _ in range(steps):
                    trainer.step(next(number), batches, config.train.learning_rate)
                wait_for(device)
                seconds[way].append(time.perf_counter() - started)
    rates = {way: [batch * steps / elapsed for elapsed in several[1:]] for way, several in seconds.items()}
    ratios = [a / b for a, b in zip(rates["photographs"], rates["ready"], strict=True)]
    ours = statistics.median(rates["photographs"])
    return {
        "name": "epoch",
        "ours": ours,
        "usual": statistics.median(rates["ready"]),
        "ratio": statistics.median(ratios),
        "unit": "images/s",
        "mfu": mfu(config, device, ours),
        "details": {
            "ours is": "steps on photographs",
            "usual is": "the same steps on a batch that lies ready",
            "share_lost_to_images": 1 - statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "epoch": epoch,
            **about(config, device),
            "S": list(config.data.S_range),
            "images": len(split),
            "mean_bytes": float(split.length.mean()),
            "compile": config.train.compile,
            "backend": loader.backend,
            "workers": loader.workers,
            "steps": steps,
            "rounds": rounds,
        },
    }


if __name__ == "__main__":
    main()
