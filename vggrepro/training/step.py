"""Training iteration (Section 3.1): mini-batch SGD with momentum on the sampler's batch.

A run is a function of (configuration, seed, data set). The sampler draws the views and dropout masks of a step for the
global batch, and each rank computes its rows. The number of ranks and of micro-batches only changes the order of
floating-point sums.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from vggrepro.config.settings import Config
from vggrepro.data.images.index import Split
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.data.loading.prefetch import prefetch, to_device
from vggrepro.data.sampler import MicroBatches, TrainingSampler, dropout_masks
from vggrepro.errors import UserError
from vggrepro.models.boxes import encode, euclidean_loss
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.vgg import VGG, DropoutMasks
from vggrepro.ranks.collectives import from_every_rank, sum_over_ranks
from vggrepro.ranks.topology import Topology, divisors
from vggrepro.training.exchange import Exchange
from vggrepro.training.throughput import Comm, comm_of


@dataclass(frozen=True)
class Shard:
    """Rows of each global batch that a rank computes, divided into micro-batches."""

    batch: int
    rows: tuple[slice, ...]
    """Rows of the global batch, a slice per micro-batch; all except the last have equal length."""

    @property
    def size(self) -> int:
        """Number of this rank's rows."""
        return self.rows[-1].stop - self.rows[0].start


def shard_of(topology: Topology, batch: int, micro_batch: int | None) -> Shard:
    """Computes this rank's shard. Raises UserError if the number of ranks does not divide the batch."""
    if batch % topology.world:
        raise UserError(
            f"train.batch={batch} cannot be split evenly over {topology.world} ranks; "
            f"start one of {divisors(batch)} ranks, or change train.batch"
        )
    size = batch // topology.world
    start = topology.rank * size
    step = min(micro_batch or size, size)
    edges = [*range(start, start + size, step), start + size]
    return Shard(batch, tuple(slice(low, high) for low, high in pairwise(edges)))


class Trainer:
    """Net and optimiser; `boxes` are targets in pixels of the original images, shape (n, 4), None for classes."""

    def __init__(
        self,
        net: VGG,
        config: Config,
        topology: Topology,
        device: torch.device,
        boxes: NDArray[np.float64] | None = None,
    ) -> None:
        self.net = net
        self.config = config
        self._boxes = boxes
        self.device = device
        self.shard = shard_of(topology, config.train.batch, config.train.micro_batch)
        self.waited_s = 0.0
        """Seconds that this rank has waited for images so far."""
        set_arithmetic(device, config.train.precision, config.train.cudnn)
        net.train()
        if config.keeps_features:
            net.features.requires_grad_(False)  # nothing is computed for their gradients
        if config.train.compile:
            net.compile_features()
        self._optimiser = torch.optim.SGD(
            _groups(net, config),
            lr=config.train.learning_rate,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
            fused=True,
        )
        self.comm = _comm(net, config, topology, device)
        """Mode of the gradient exchange; None on a single rank."""
        self._exchange = Exchange(net, topology, self.comm)  # after the optimiser: removes parameters from autograd
        self._parameters = list(net.parameters())
        self._host: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        self._loss_sum = torch.zeros((), device=device)
        self._bad_step = torch.full((), -1, device=device)

    def momentum(self) -> dict[str, torch.Tensor]:
        """Returns the momentum buffers by parameter name; empty before the first step."""
        state = self._optimiser.state
        return {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.net.named_parameters()
            if "momentum_buffer" in state[parameter]
        }

    def set_momentum(self, buffers: dict[str, torch.Tensor]) -> None:
        """Restores the buffers that :meth:`momentum` returned."""
        for name, parameter in self.net.named_parameters():
            if name in buffers:
                # a copy in the parameter's memory format, which the optimiser would have used
                buffer = torch.empty_like(parameter).copy_(buffers[name])
                self._optimiser.state[parameter]["momentum_buffer"] = buffer

    def require_equal_nets(self) -> None:
        """Raises UserError on every rank if the ranks' weights are not bitwise equal, which `factor` can cause."""
        # The bits are summed as integers, so that the sum does not depend on the order.
        sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in self._parameters]
        ranks = from_every_rank(torch.stack(sums).tolist())
        for rank, rank_sums in enumerate(ranks):
            if rank_sums != ranks[0]:
                raise UserError(
                    f"the weights of rank {rank} differ from those of rank 0, because their gradients differed "
                    f"(train.comm={self.comm}); resume from the newest checkpoint with --set train.comm=ddp, and "
                    f"check that rank's GPU"
                )

    def snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Copies weights and momentum to host memory, which the next snapshot reuses."""
        for host, tensors in zip(self._host, (self.net.state_dict(), self.momentum()), strict=True):
            for name, tensor in tensors.items():
                if name not in host:
                    host[name] = torch.empty_like(tensor, device="cpu", pin_memory=self.device.type == "cuda")
                host[name].copy_(tensor.detach(), non_blocking=True)
        if self.device.type == "cuda":  # step and copies are on this stream, prefetching is on another
            torch.cuda.current_stream(self.device).synchronize()
        weights, momentum = self._host
        return dict(weights), dict(momentum)

    def views(self, sampler: TrainingSampler, first_step: int) -> MicroBatches:
        """Returns this rank's micro-batches from `first_step` (iterations already done) to the end."""
        return MicroBatches(sampler, self.shard.batch, self.shard.rows, first_step, self.config.train.iterations)

    def batches(self, loader: Loader, training: Split, sampler: TrainingSampler, first_step: int) -> Generator[Batch]:
        """Yields prefetched batches for :meth:`step`, from `first_step` to the end."""
        if self.config.train.precision == "bf16":  # the dtype under autocast, in half the memory
            loader = replace(loader, dtype=torch.bfloat16)
        rendered = loader.render(training, self.views(sampler, first_step))
        return prefetch(self.completed(rendered, first_step), self.device)

    def completed(self, batches: Generator[Batch], first_step: int) -> Generator[Batch]:
        """Adds box targets and dropout masks to the batches of :meth:`views`."""
        with closing(batches):
            for number, batch in enumerate(batches):
                steps, part = divmod(number, len(self.shard.rows))
                masks = self._dropout_masks(first_step + steps, self.shard.rows[part])
                targets = None
                if self._boxes is not None:
                    edges = torch.from_numpy(batch.views.boxes_in_window(self._boxes[batch.views.image]))
                    targets = to_device(encode(edges, self.config.model.crop).float(), self.device)
                yield replace(batch, dropout_masks=masks, targets=targets)

    def step(self, step: int, batches: Iterator[Batch], learning_rate: float) -> None:
        """Runs the iteration after `step` finished ones on its micro-batches, the next of :meth:`batches`.

        The host does not wait for the device. After a gradient that is not finite, the device skips this step and all
        later ones, and :meth:`bad_step` reports it.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        for left in reversed(range(len(self.shard.rows))):
            start = time.perf_counter()
            batch = next(batches)
            self.waited_s += time.perf_counter() - start
            if not self._exchange.settled:
                self._rehearse(batch)
            self._accumulate(batch, last=not left)
        self._exchange.finish()
        # Gradients are now averaged over the global batch, so all ranks compute the same norm.
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        bad = (self._bad_step < 0) & ~norm.isfinite()
        self._bad_step = torch.where(bad, step, self._bad_step)
        # In the first step, SGD would keep an allocated but unfilled momentum; no checkpoint is written after it.
        self._optimiser.found_inf = (self._bad_step >= 0).float()  # type: ignore[attr-defined]
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def loss_sum(self) -> float:
        """Sums the losses of all ranks' images since :meth:`restart_loss`; every rank must call it."""
        return float(sum_over_ranks(self._loss_sum.clone()))

    def restart_loss(self, start: float = 0.0) -> None:
        """Resets the sum of losses to `start`; the first rank passes the sum over all ranks, the others 0."""
        self._loss_sum.fill_(start)

    def bad_step(self) -> int | None:
        """Returns the first step (iterations before it) whose gradient was not finite and not applied, or None."""
        step = int(self._bad_step)
        return step if step >= 0 else None

    def _rehearse(self, batch: Batch) -> None:
        """Runs a pass and discards its gradients, so that every later step sums gradients in the same order."""
        loss_sum, payload_bytes = self._loss_sum.clone(), self._exchange.payload_bytes
        self._accumulate(batch, last=True)
        self._exchange.finish()
        self._optimiser.zero_grad(set_to_none=True)
        self._loss_sum.copy_(loss_sum)
        self._exchange.payload_bytes = payload_bytes
        self._exchange.settled = True

    def _accumulate(self, batch: Batch, *, last: bool) -> None:
        masks = batch.dropout_masks
        assert (masks is not None) == (self.config.model.dropout > 0), "the sampler, not torch, draws dropout masks"
        with self._exchange.micro_batch(last=last):
            with autocast(self.device, self.config.train.precision):
                outputs = self._exchange.forward(batch.images, masks)
            if batch.targets is None:
                loss = F.cross_entropy(outputs.float(), batch.labels, reduction="sum")
            else:
                loss = euclidean_loss(outputs.float(), batch.targets, batch.labels)
            # The average over ranks of these means is the mean over the global batch.
            (loss / self.shard.size).backward()
        self._loss_sum += loss.detach()

    def _dropout_masks(self, step: int, rows: slice) -> DropoutMasks | None:
        rate = self.config.model.dropout
        if not rate:
            return None
        masks = dropout_masks(self.config.run.seed, step, self.shard.batch, rows, self.net.fc_widths, rate)
        fc6, fc7 = (to_device(torch.from_numpy(mask), self.device) for mask in masks)
        return fc6, fc7


def _comm(net: VGG, config: Config, topology: Topology, device: torch.device) -> Comm | None:
    """Calls `comm_of`, except that `auto` is ddp on different kinds of GPU, whose products could differ in rounding."""
    setting = config.train.comm
    if setting == "auto" and topology.world > 1:
        kinds = from_every_rank(torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)
        if len(set(kinds)) > 1:
            return "ddp"
    precision, frozen = config.train.precision, config.keeps_features
    return comm_of(setting, net.architecture, config.train.batch, topology.world, precision, frozen=frozen)


def _groups(net: VGG, config: Config) -> list[dict[str, Any]]:
    """Groups the trained parameters by the factor of their learning rate."""
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if config.train.biases == "paper":
        return [{"params": list(trained.values()), "rate_factor": 1.0}]
    biases = [parameter for name, parameter in trained.items() if name.endswith("bias")]
    weights = [parameter for name, parameter in trained.items() if not name.endswith("bias")]
    return [{"params": weights, "rate_factor": 1.0}, {"params": biases, "rate_factor": 2.0, "weight_decay": 0.0}]
