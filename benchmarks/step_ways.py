"""The training step in several ways, in turns: modes of torch.compile beside no compilation, or values of a setting.

    python benchmarks/step_ways.py eager default reduce-overhead max-autotune-no-cudagraphs --batch 256
    python benchmarks/step_ways.py train.cudnn=benchmark train.cudnn=deterministic

A way is `eager`, a mode of torch.compile (reduce-overhead: CUDA graphs), or a setting without compilation. Ratios are
to the first way, medians of the rounds. Another way that fails is reported and keeps none from being timed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from vggrepro.bench.machine import clock, wait_for
from vggrepro.bench.step import Step, about, mfu, plain, trainer_of, training_step
from vggrepro.config.parsing import override
from vggrepro.config.settings import Config
from vggrepro.ranks.group import pick_device

Flags = tuple[bool, bool]
WARM_UP = 4  # the third call is the first that replays a CUDA graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="+", metavar="WAY")
    parser.add_argument("--net", default="D")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    arguments = parser.parse_args()
    changes = [*arguments.changes, f"train.batch={arguments.batch}", "train.compile=false"]
    config = override(plain(arguments.net), changes, Path("step_ways"))
    print(json.dumps(compare(config, arguments.ways, arguments.steps, arguments.rounds), indent=1))


def compare(config: Config, ways: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Times `steps` steps of each way in turn, `rounds` times."""
    device = pick_device(config.run.device, 0)
    timed: dict[str, tuple[Step, Flags]] = {}
    found: dict[str, dict[str, Any]] = {way: {} for way in ways}
    for way in ways:
        started = time.perf_counter()
        try:
            timed[way] = prepared(config, way, device)
        except Exception as error:  # whatever a compiler raises
            if not timed:
                raise  # the others are held against it
            found[way]["failed"] = f"{type(error).__name__}: {error}"[:500]
            continue
        found[way]["warm_up_s"] = time.perf_counter() - started
        if device.type == "cuda":
            found[way]["memory_gib_with_those_before"] = torch.cuda.max_memory_allocated(device) / 2**30
    rates: dict[str, list[float]] = {way: [] for way in timed}
    for number in range(rounds):
        order = list(timed.items())
        for way, (step, flags) in order if number % 2 else reversed(order):
            restore(flags)
            started = clock(device)
            for _ in range(steps):
                step()
            rates[way].append(config.train.batch * steps / (clock(device) - started))
    first = ways[0]
    for way, several in rates.items():
        median = statistics.median(several)
        found[way] |= {
            "images_per_s": median,
            "range": [min(several), max(several)],
            "mfu": mfu(config, device, median),
            f"ratio_to_{first}": statistics.median([a / b for a, b in zip(several, rates[first], strict=True)]),
        }
    best = max(rates, key=lambda way: statistics.median(rates[way]))
    return {
        "name": "step-ways",
        "ours": found[best]["images_per_s"],
        "usual": found[first]["images_per_s"],
        "ratio": found[best][f"ratio_to_{first}"],
        "unit": "images/s" if device.type == "cuda" else "images/s of processor time",
        "mfu": found[best]["mfu"],
        "details": {
            "ours is": best,
            "usual is": first,
            **found,
            **about(config, device),
            "steps": steps,
            "rounds": rounds,
        },
    }


def prepared(config: Config, way: str, device: torch.device) -> tuple[Step, Flags]:
    """A step that is warm, and the flags of cuDNN that it wants: they are the process's, so each turn restores them."""
    compiled = "=" not in way and way != "eager"
    trainer = trainer_of(override(config, [way] if "=" in way else [], Path("step_ways")), device)
    if compiled:
        trainer.net.compile_features(mode=way)
    step = training_step(trainer)
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    for _ in range(WARM_UP):
        step()
    wait_for(device)
    return step, flags


def restore(flags: Flags) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags


if __name__ == "__main__":
    main()
