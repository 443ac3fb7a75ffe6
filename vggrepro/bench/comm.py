"""Benchmark of the three exchanges of gradients: bytes and time per step on these ranks."""

import os
import statistics
import time
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import distributed
from torch.nn import functional as F

from vggrepro.bench.machine import conditions, wait_for
from vggrepro.bench.step import noise, untrained
from vggrepro.bench.turns import rates_in_turn, result
from vggrepro.config.settings import Config
from vggrepro.errors import UserError
from vggrepro.models.precision import autocast
from vggrepro.models.table1 import architecture_of
from vggrepro.ranks.group import pick_device, process_group
from vggrepro.ranks.topology import topology_of
from vggrepro.training.exchange import Comm, Exchange
from vggrepro.training.step import shard_of
from vggrepro.training.throughput import sent_bytes

Backend = Literal["nccl", "gloo"]


def run(config: Config, steps: int, rounds: int, backend: Backend | None = None) -> dict[str, Any] | None:
    """Times each exchange in turn, `rounds` turns of `steps` steps; returns None on all ranks except the first.

    ours: factor exchange, in steps per second; usual: DDP's all-reduce. The details have the bytes handed to
    collectives in a step (counted), and what a ring of these ranks sends for them from each rank. `backend` is NCCL on
    CUDA devices and gloo on CPUs unless it is named: gloo copies through host memory, and takes several ranks on one
    GPU, which NCCL does not. Raises UserError on a single rank.
    """
    topology = topology_of(os.environ)
    if topology.world == 1:
        raise UserError(
            "bench comm needs several ranks; start it with torchrun --nproc-per-node N -m vggrepro bench comm"
        )
    device = pick_device(config.run.device, topology.local_rank)
    share = shard_of(topology, config.train.batch, None).size
    if backend == "nccl" and device.type == "cpu":
        raise UserError("--backend nccl needs CUDA devices; leave it out, or use --backend gloo")
    used: Backend = backend or ("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)

    def clock() -> float:
        wait_for(device)
        distributed.barrier()
        return time.perf_counter()

    with process_group(topology, torch.device("cpu") if used == "gloo" else device):
        images, labels = noise(config, share, device)
        exchanges = {comm: Exchange(untrained(config, device), topology, comm) for comm in get_args(Comm)}
        ways = {comm: partial(_step, exchange, config, images, labels) for comm, exchange in exchanges.items()}
        rates_in_turn(ways, 1, steps, 1)  # nothing is cold afterwards
        (rates,) = rates_in_turn(ways, rounds, steps, 1, clock)
    payload = {comm: exchange.payload_bytes // (steps * (rounds + 1)) for comm, exchange in exchanges.items()}
    if not topology.is_first:
        return None
    model = config.model
    net, train = architecture_of(config), config.train
    sent = {comm: sent_bytes(net, train.batch, comm, topology.world, train.precision) for comm in payload}
    details = {
        **{f"{comm} steps/s": statistics.median(several) for comm, several in rates.items()},
        **{f"{comm} MB in collectives": size / 1e6 for comm, size in payload.items()},
        **{f"{comm} MB sent by each rank of a ring": size / 1e6 for comm, size in sent.items()},
        "net": f"{model.net}, {model.geometry}, {model.classes} classes",
        "batch": config.train.batch,
        "ranks": topology.world,
        "backend": used,
        "precision": config.train.precision,
        "steps": steps,
        "rounds": rounds,
        **conditions(device),
    }
    return result("comm", rates["factor"], rates["ddp"], "steps/s", details)


def _step(exchange: Exchange, config: Config, images: torch.Tensor, labels: torch.Tensor) -> None:
    with exchange.micro_batch(last=True), autocast(images.device, config.train.precision):
        loss = F.cross_entropy(exchange.forward(images).float(), labels)
    loss.backward()
    exchange.finish()
    exchange.forward.zero_grad(set_to_none=True)
