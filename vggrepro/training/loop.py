"""The training loop (Section 3.1): mini-batch SGD with momentum on the plan's batches.

The course of a run is a function of (configuration, seed, data set): the views and the dropout units of a step come
from the plan, for the global batch, and each rank computes its rows. The number of ranks and of micro-batches changes
the order of floating-point sums and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from vggrepro.config import Config
from vggrepro.data.index import Split
from vggrepro.data.loader import Batch, Loader
from vggrepro.data.plan import TrainingPlan, dropout_masks
from vggrepro.data.views import Views
from vggrepro.distributed import Topology, sum_over_ranks
from vggrepro.errors import UserError
from vggrepro.models.vgg import VGG, DropoutMasks


@dataclass(frozen=True)
class Share:
    """The rows of each global batch that one rank computes, cut into micro-batches."""

    batch: int
    rows: tuple[slice, ...]
    """Rows of the global batch, one slice a micro-batch; all but the last are equally long."""

    @property
    def size(self) -> int:
        """Rows of this rank."""
        return self.rows[-1].stop - self.rows[0].start


def share_of(here: Topology, batch: int, micro_batch: int | None) -> Share:
    """This rank's share. Raises UserError when the ranks do not divide the batch, naming the counts that do."""
    if batch % here.world:
        allowed = ", ".join(str(world) for world in range(1, batch + 1) if batch % world == 0)
        raise UserError(
            f"train.batch={batch} cannot be split evenly over {here.world} ranks; "
            f"start one of {allowed} ranks, or change train.batch"
        )
    size = batch // here.world
    start = here.rank * size
    step = min(micro_batch or size, size)
    edges = [*range(start, start + size, step), start + size]
    return Share(batch, tuple(slice(low, high) for low, high in pairwise(edges)))


@dataclass(frozen=True)
class Interval:
    """What happened since the last report, over all ranks."""

    step: int
    loss: float
    """Mean over the interval's pictures."""
    learning_rate: float
    images_per_s: float
    data_wait: float
    """Share of the time that rank 0 waited for pictures."""


class Trainer:
    """A net with its momentum, advanced step by step."""

    def __init__(self, net: VGG, config: Config, here: Topology, device: torch.device) -> None:
        self.net = net
        self.config = config
        self.here = here
        self.device = device
        self.share = share_of(here, config.train.batch, config.train.micro_batch)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.precision == "tf32"
        net.train()
        self._parallel: nn.Module = DistributedDataParallel(net) if here.world > 1 else net
        self._optimiser = torch.optim.SGD(
            net.parameters(),
            lr=config.train.learning_rate,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
        )

    def momentum(self) -> dict[str, torch.Tensor]:
        """Momentum buffers by the parameter's name; empty before the first step."""
        state = self._optimiser.state
        return {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.net.named_parameters()
            if "momentum_buffer" in state[parameter]
        }

    def set_momentum(self, buffers: dict[str, torch.Tensor]) -> None:
        """Takes up where :meth:`momentum` left off."""
        for name, parameter in self.net.named_parameters():
            if name in buffers:
                # a copy in the parameter's own memory format, as the optimiser would have made it
                buffer = torch.empty_like(parameter).copy_(buffers[name])
                self._optimiser.state[parameter]["momentum_buffer"] = buffer

    def views(self, plan: TrainingPlan, first_step: int) -> Iterator[Views]:
        """This rank's micro-batches from `first_step` (iterations already done) to the end."""
        for step in range(first_step, self.config.train.iterations):
            for rows in self.share.rows:
                yield plan.views(step * self.share.batch + rows.start, rows.stop - rows.start)

    def run(
        self,
        loader: Loader,
        split: Split,
        plan: TrainingPlan,
        first_step: int,
        rate: Callable[[int], float],
        log_every: int,
    ) -> Iterator[tuple[int, Interval | None]]:
        """Trains from `first_step` on; yields after each step the iterations done, and every `log_every` of them what
        happened since. `rate(step)` is the learning rate of the iteration after `step`.
        """
        batches = loader.batches(split, self.views(plan, first_step))
        loss_sum = torch.zeros((), device=self.device)
        since, seconds, waited = 0, 0.0, 0.0
        for step in range(first_step, self.config.train.iterations):
            started = time.perf_counter()
            for group in self._optimiser.param_groups:
                group["lr"] = rate(step)
            for number, rows in enumerate(self.share.rows):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                loss_sum += self._accumulate(batch, step, rows, last=number == len(self.share.rows) - 1)
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
            since += 1
            report = None
            if (step + 1) % log_every == 0 or step + 1 == self.config.train.iterations:
                total = float(sum_over_ranks(loss_sum))  # waits for the device, so the clock is read after it
                seconds += time.perf_counter() - started
                pictures = since * self.share.batch
                report = Interval(step + 1, total / pictures, rate(step), pictures / seconds, waited / seconds)
                loss_sum.zero_()
                since, seconds, waited = 0, 0.0, 0.0
            else:
                seconds += time.perf_counter() - started
            yield step + 1, report  # what the caller does meanwhile (validation, checkpoints) is not training time

    def _accumulate(self, batch: Batch, step: int, rows: slice, *, last: bool) -> torch.Tensor:
        """Adds the gradient of one micro-batch; returns the sum of its losses."""
        masks = self._dropout_masks(step, rows)
        parallel = self._parallel
        # gradients are exchanged once a step, with the last micro-batch
        waiting = nullcontext() if last or not isinstance(parallel, DistributedDataParallel) else parallel.no_sync()
        with waiting:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
                scores = parallel(batch.images, masks)
            loss = F.cross_entropy(scores.float(), batch.labels, reduction="sum")
            # ranks are averaged by DDP, so this makes the mean over the global batch
            (loss / self.share.size).backward()
        return loss.detach()

    def _dropout_masks(self, step: int, rows: slice) -> DropoutMasks | None:
        rate = self.config.model.dropout
        if not rate:
            return None
        masks = dropout_masks(self.config.run.seed, step, self.share.batch, rows, self.net.fc_widths, rate)
        fc6, fc7 = (torch.from_numpy(mask).to(self.device, non_blocking=True) for mask in masks)
        return fc6, fc7
