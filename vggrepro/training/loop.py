"""Training loop: steps, reports, validations and checkpoints until the last iteration or a request to stop."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from vggrepro.config.settings import Config
from vggrepro.data.boxes.box_set import BoxSet
from vggrepro.data.images.index import Index
from vggrepro.data.loading.loader import Batch, Loader
from vggrepro.errors import Interrupted, UserError
from vggrepro.progress import Update, duration, echo, progress
from vggrepro.ranks.collectives import sum_over_ranks
from vggrepro.ranks.watch import Watch
from vggrepro.storage import checkpoint, lease
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import final_file
from vggrepro.training import health
from vggrepro.training.schedule import after_validation, learning_rate
from vggrepro.training.stage import State, start
from vggrepro.training.step import Trainer
from vggrepro.training.task import Task
from vggrepro.training.throughput import Meter, describe, flop_per_image, peak_flops

_NAMED_IMAGES = 4


@dataclass
class Training:
    """Training of a stage on a rank, with its progress, log and checkpoints."""

    config: Config
    task: Task
    trainer: Trainer
    origin: checkpoint.Checkpoint
    """Parts that all checkpoints of the run share; weights and state are not among them."""
    state: State
    loader: Loader
    watch: Watch
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    later_flop: float = 0.0
    """Operations to train the later stages of the same command."""
    saving: Future[bool] | None = None
    """Checkpoint that the first rank is writing."""
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self.run, self.topology = RunDirectory(self.config.directory), self.watch.topology

    @classmethod
    def begin(
        cls, config: Config, parent: Config | None, index: Index, boxes: BoxSet | None, loader: Loader, watch: Watch
    ) -> Training:
        """Prepares a stage, from its newest checkpoint if there is one; every rank must call it. Raises UserError."""
        topology = watch.topology
        if topology.is_first:
            checkpoint.clean(RunDirectory(config.directory).checkpoints)
        task = Task(config, index, boxes)
        net, origin, state = start(config, parent, index, topology)
        net.to(loader.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = Trainer(net, config, topology, loader.device, task.boxes)
        trainer.set_momentum(origin.training.get("momentum", {}))
        trainer.restart_loss(state.loss_sum if topology.is_first else 0.0)
        return cls(config, task, trainer, origin, state, loader, watch)

    def train(self, *, force: bool = False) -> None:
        """Trains to the end of the stage, and writes `final.pt`; every rank must call it.

        Args:
            force: train even if the activations vanish or explode at random initialisation.

        Raises:
            UserError: the net does not learn or diverges, or the disk is full.
            Interrupted: on every rank after a request to stop, once a checkpoint is written.
        """
        self._note_start()
        if self.state.step == 0:
            self._check_start(may_fail=self.origin.provenance["parent"] is None and not force)
        batches = self.trainer.batches(self.loader, self.task.images, self.task.sampler, self.state.step)
        with closing(batches), self.writer, _collected_at_reports():
            try:
                self._iterate(self.watch.apart(batches))  # nothing is saved after a UserError
            except Interrupted as request:
                self._save()
                saved, step = self.saving is None or self.saving.result(), self.state.step
                outcome = f"saved at step {step}" if saved else f"step {step} could not be saved, an earlier one was"
                raise Interrupted(f"{request}; {outcome}") from None
            finally:
                self.watch.rest()
        if self.topology.is_first:
            self._finish()

    def _note_start(self) -> None:
        """Rewinds the metrics to the checkpoint, and logs a change of the gradient exchange."""
        if not self.topology.is_first:
            return
        self.run.rewind(self.state.step, validated=self.state.step > 0 and not self._validation_is_due())
        comm, ranks = self.trainer.comm, self.topology.world
        if comm:
            echo(f"{self.config.name}: {ranks} ranks exchange gradients by {comm}")
        logged = [record for record in self.run.records("event") if record["event"] == "gradient exchange"]
        if (comm, ranks) != ((logged[-1]["comm"], logged[-1]["ranks"]) if logged else (None, 1)):
            self._log("event", {"event": "gradient exchange", "comm": comm, "ranks": ranks})

    def _check_start(self, *, may_fail: bool) -> None:
        """Logs the scales of activations at the start. Raises UserError if `may_fail` and the net cannot learn."""
        loader = replace(self.loader, processes=0)  # a single batch is not worth starting processes
        with closing(loader.batches(self.task.images, self.trainer.views(self.task.sampler, 0))) as batches:
            scales = health.activation_scales(self.trainer.net, next(batches).images)
        self._log("event", {"event": "activation scales"} | scales)
        if may_fail:
            health.check_start(self.trainer.net, scales)

    def _iterate(self, micro_batches: Iterator[Batch]) -> None:
        """Trains to the last iteration and its validation. Raises Interrupted on every rank after a request to stop."""
        last = self.config.train.iterations
        title, shown = f"{self.config.name}: training", self.topology.is_first
        with progress(title, last, start=self.state.step, shown=shown) as update:
            while True:
                if self._validation_is_due():
                    self._validate()
                if self.state.step == last:
                    return
                self._step(micro_batches, update)
                if self.watch.vote():
                    self.watch.stop_if_requested()
                if self.state.step % self.config.train.checkpoint_every == 0 and not self._ends_a_period():
                    self._save()

    def _finish(self) -> None:
        """Writes the final net. Raises UserError if the disk is full."""
        lease.require(self.run.path)
        weights, _ = self.trainer.snapshot()
        final = replace(self.origin, step=self.state.step, weights=weights, training={})
        try:
            checkpoint.save(final, final_file(self.run.path))
        except OSError as error:
            raise UserError(f"{error}; free some space and run the same command again") from None

    def _step(self, micro_batches: Iterator[Batch], update: Update) -> None:
        train, state = self.config.train, self.state
        rate = learning_rate(train, state.schedule, state.step)
        self.watch.beat(f"step {state.step + 1}")
        self.meter.start()
        with self.watch.waiting():  # waits in all-reduces on the CPU, and for space in the launch queue on CUDA
            self.trainer.step(state.step, micro_batches, rate)
        self.state = replace(state, step=state.step + 1, unreported=state.unreported + 1)
        if self.state.step % train.log_every == 0 or self.state.step == train.iterations:
            self._report(rate, update)
        else:
            self.meter.stop(train.batch)
            update(self.state.step, None)

    def _report(self, rate: float, update: Update) -> None:
        """Reports loss and speed since the last report. Raises UserError if the net diverges or does not learn."""
        train, state = self.config.train, self.state
        with self.watch.waiting():  # here the host first waits for the other ranks' devices
            loss = self.trainer.loss_sum() / (state.unreported * train.batch)
            bad = int(sum_over_ranks(torch.tensor(len(self.loader.bad.reasons))))
        self.meter.stop(train.batch)
        self._require_finite()
        flop = flop_per_image(self.trainer.net.architecture, frozen=self.config.keeps_features)
        peak = peak_flops(self.loader.device, train.precision)
        speed = self.meter.read(self.trainer.waited_s, flop, peak, self.topology.world)
        left = (train.iterations - state.step) * train.batch / speed["images_per_s"]
        record = {"loss": loss, "learning_rate": rate, "seconds_left": left, "bad_images": bad}
        self._log("train", record | speed)
        later = self.later_flop / (speed["images_per_s"] * flop)
        times = [f"{duration(left)} left"] + ([f"{duration(left + later)} with later stages"] if later else [])
        update(state.step, f"loss {loss:.4f}  rate {rate:g}  {describe(speed)}", times=times)
        if self.task.boxes is None:  # nets for boxes start from a trained net, and the loss of guessing is unknown
            health.check_learning(loss, self.config.model.classes, state.step, train.stall_after)
        self.trainer.restart_loss()
        self.state = replace(state, unreported=0)
        gc.collect()

    def _validate(self) -> None:
        """Measures the centre crop's error, updates the schedule and saves a checkpoint."""
        config, before = self.config, self.state
        with self.watch.waiting():
            self.trainer.require_equal_nets()
        result = self.task.validate(self.trainer.net, self.loader, self.watch)
        best = before.best_error is None or result.error < before.best_error
        schedule = after_validation(before.schedule, result.error, config.train.schedule)
        best_error = result.error if best else before.best_error
        self.state = replace(before, schedule=schedule, validated=before.step, best_error=best_error)
        self._log("validation", {"Q": config.single_Q[0]} | result.record)
        line = f"{config.name}: epoch {self._epochs(before.step):.1f}  {result.text}"
        if schedule.drops > before.schedule.drops:
            self._log("event", {"event": "learning rate drop", "drop": schedule.drops})
            line += f"; no improvement in {config.train.schedule.patience} validations: learning rate drop "
            line += f"{schedule.drops} of {config.train.schedule.max_drops}"
        if self.topology.is_first:
            echo(line)
        self._save(best=best)

    def _save(self, *, best: bool = False) -> None:
        """Copies the state and writes it in the background; every rank must call it."""
        with self.watch.waiting():  # the host waits for its device, which waits for the other ranks' devices
            self._require_finite()
            self.state = replace(self.state, loss_sum=self.trainer.loss_sum())
        if not self.topology.is_first:
            return
        lease.require(self.run.path)
        if self.saving:
            self.saving.result()  # the snapshot reuses its memory
        weights, momentum = self.trainer.snapshot()
        training = {"momentum": momentum, "state": asdict(self.state)}
        content = replace(self.origin, step=self.state.step, weights=weights, training=training)
        keep = self.config.train.keep
        self.saving = self.writer.submit(checkpoint.store, content, self.run.checkpoints, keep, best=best)

    def _require_finite(self) -> None:
        """Raises UserError and lists the step's images if a gradient was not finite; it was not applied."""
        bad = self.trainer.bad_step()
        if bad is None:
            return
        batch = self.config.train.batch
        shown = self.task.sampler.views(bad * batch, batch).image
        images = [self.task.images.name_of(int(image)) for image in shown]
        if self.topology.is_first:
            self.run.write_json("non_finite.json", {"step": bad + 1, "images": images})
        raise UserError(
            f"loss or gradient of step {bad + 1} is not finite and was not applied; its {batch} images are listed in "
            f"{self.run.path / 'non_finite.json'} ({', '.join(images[:_NAMED_IMAGES])}, ...); earlier checkpoints "
            f"are intact: lower train.learning_rate, or set train.precision=fp32, in a run with another name"
        )

    def _epochs(self, step: int) -> float:
        return step * self.config.train.batch / self.task.sampler.images

    def _ends_a_period(self) -> bool:
        """Whether a validation follows the last step."""
        step, period = self.state.step, self.config.train.validate_every
        crosses = int(self._epochs(step) / period) > int(self._epochs(step - 1) / period)
        return step > 0 and (step == self.config.train.iterations or crosses)

    def _validation_is_due(self) -> bool:
        return self._ends_a_period() and self.state.validated < self.state.step

    def _log(self, kind: str, record: dict[str, Any]) -> None:
        if self.topology.is_first:
            epoch = self._epochs(self.state.step)
            self.run.append({"step": self.state.step, "epoch": epoch, "kind": kind} | record)


@contextmanager
def _collected_at_reports() -> Iterator[None]:
    """Disables garbage collection in steps, where it would delay one rank and so all ranks; `_report` collects."""
    gc.collect()
    gc.freeze()  # existing objects are not examined again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
