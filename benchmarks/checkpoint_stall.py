"""Pause of training for a checkpoint: a copy, then a write in a thread; beside torch.save in the loop.

    python benchmarks/checkpoint_stall.py [--folder FOLDER]

Net D in the paper's geometry with its momentum: 1.1 GB. What is timed is what the loop waits for: ours the copy, since
the write goes on behind it (and is over before the next turn begins), the usual way the whole file. FOLDER, by
default the system's for temporary files, takes two files of that size; both ways flush them to the disk.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vggrepro.bench.machine import name_of
from vggrepro.config.parsing import override
from vggrepro.config.settings import Config, Model
from vggrepro.models.table1 import architecture_of
from vggrepro.models.vgg import VGG
from vggrepro.ranks.group import pick_device
from vggrepro.ranks.topology import Topology
from vggrepro.storage import checkpoint
from vggrepro.storage.environment import environment
from vggrepro.training.stage import State
from vggrepro.training.step import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    arguments = parser.parse_args()
    config = override(Config(model=Model(net="D")), arguments.changes, Path("checkpoint_stall"))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(stall(config, Path(folder), arguments.rounds), indent=1))


def stall(config: Config, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds that the loop waits, in turns, `rounds` times, the first of which warms up."""
    device = pick_device(config.run.device, 0)
    net = VGG(architecture_of(config)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(net, config, Topology(), device)
    trainer.set_momentum({name: torch.rand(weight.shape) for name, weight in net.named_parameters()})
    usual_file = folder / "usual.pt"
    ours, usual, written = [], [], []
    with ThreadPoolExecutor(1) as writer:
        for _ in range(rounds):
            started = time.perf_counter()
            weights, momentum = trainer.snapshot()
            state = {"momentum": momentum, "state": asdict(State())}
            content = checkpoint.Checkpoint({}, 0, weights, {}, {}, state)
            saving = writer.submit(checkpoint.store, content, folder, 1, best=False)
            ours.append(time.perf_counter() - started)
            assert saving.result(), "not written"
            written.append(time.perf_counter() - started)

            started = time.perf_counter()
            with usual_file.open("wb") as file:
                torch.save({"model": net.state_dict(), "momentum": trainer.momentum()}, file)
                file.flush()
                os.fsync(file.fileno())
            usual.append(time.perf_counter() - started)
    details = {
        "first_s": ours[0],
        "ours_s": ours[1:],
        "usual_s": usual[1:],
        "written_s": written[1:],
        "bytes": usual_file.stat().st_size,
        "load_average": os.getloadavg()[0],
        "device": name_of(device),
        "versions": {key: item for key, item in environment().items() if key != "command"},
    }
    medians = {"ours": statistics.median(ours[1:]), "usual": statistics.median(usual[1:])}
    ratio = statistics.median([b / a for a, b in zip(ours[1:], usual[1:], strict=True)])
    return {"name": "checkpoint-stall", **medians, "ratio": ratio, "unit": "s", "details": details}


if __name__ == "__main__":
    main()
