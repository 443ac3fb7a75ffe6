"""The training loop: steps, reports, validations and checkpoints, until the iterations are done or a stop is asked."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vggrepro.config.settings import Config
from vggrepro.data.index import Index, Split
from vggrepro.data.loader import Loader
from vggrepro.data.sampler import TrainingSampler
from vggrepro.errors import Interrupted, UserError
from vggrepro.evaluation.methods import centre_error
from vggrepro.progress import echo, progress
from vggrepro.ranks.collectives import sum_over_ranks
from vggrepro.ranks.topology import Topology
from vggrepro.ranks.watch import Watch
from vggrepro.storage import checkpoint, lease
from vggrepro.storage.directory import RunDirectory
from vggrepro.training import health
from vggrepro.training.schedule import after_validation, learning_rate
from vggrepro.training.stage import State, start
from vggrepro.training.step import Trainer
from vggrepro.training.throughput import Meter, describe, flop_per_image, peak_flops

_NAMED_IMAGES = 4


def train(
    config: Config,
    parent: Config | None,
    index: Index,
    loader: Loader,
    topology: Topology,
    run: RunDirectory,
    watch: Watch,
    *,
    force: bool = False,
) -> None:
    """Trains a stage to its end, from its newest checkpoint where there is one; every rank calls it.

    Leaves `final.pt` in the run directory. `force` trains a net whose activations vanish or explode.

    Raises UserError for a net that does not learn or that diverges, and Interrupted on every rank after one was asked
    to stop and a checkpoint is written from which the same command goes on.
    """
    watch.leave_together()
    if topology.is_first:
        checkpoint.clean(run.checkpoints)
    settings, last = config.train, config.train.iterations
    training, validation = index.split("train"), index.split("val")
    sampler = TrainingSampler(training.size, config.data, config.model.crop, config.run.seed)
    net, kept, state = start(config, parent, index, run.checkpoints, topology)
    net.to(loader.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(net, config, topology, loader.device)
    trainer.set_momentum(kept.training["momentum"] if kept.training else {})
    trainer.restart_loss(state.loss_sum if topology.is_first else 0.0)
    meter = Meter()
    flop, peak = flop_per_image(net.architecture), peak_flops(loader.device, settings.precision)
    writer = checkpoint.Writer()

    def epochs(step: int) -> float:
        return step * settings.batch / sampler.images

    def ends_a_period(step: int) -> bool:
        period = settings.validate_every
        return step > 0 and (step == last or int(epochs(step) / period) > int(epochs(step - 1) / period))

    def validation_is_due(state: State) -> bool:
        return ends_a_period(state.step) and state.validated < state.step

    def log(record: dict[str, Any]) -> None:
        if topology.is_first:
            run.append({"step": state.step, "epoch": epochs(state.step)} | record)

    def check_finite() -> None:
        """Raises UserError when a gradient has not been finite; nothing of it is in the weights."""
        bad = trainer.bad_step()
        if bad is not None:
            raise UserError(_non_finite(bad, sampler, training, config, run, topology))

    def save(*, best: bool = False) -> None:
        """Copies the state, and writes it while training goes on; every rank calls it."""
        nonlocal state
        with watch.waiting():  # for the device, which waits for the others'
            check_finite()
            state = replace(state, loss_sum=trainer.loss_sum())
        if topology.is_first:
            lease.require(run.path)
            writer.wait()
            weights, momentum = trainer.snapshot()
            training_state = {"momentum": momentum, "state": asdict(state)}
            file = checkpoint.step_file(run.checkpoints, state.step)
            content = replace(kept, step=state.step, weights=weights, training=training_state)
            writer.submit(content, file, lambda: _after_saving(file, run.checkpoints, settings.keep, best=best))

    if topology.is_first:
        run.rewind(state.step, validated=state.step > 0 and not validation_is_due(state))
        if trainer.comm:
            echo(f"{config.name}: {topology.world} ranks exchange gradients by {trainer.comm}")
        if (trainer.comm, topology.world) != _last_exchange(run):
            log({"kind": "event", "event": "gradient exchange", "comm": trainer.comm, "ranks": topology.world})
    if state.step == 0:
        alone = replace(loader, processes=0)  # for one batch no others are started
        with closing(alone.batches(training, trainer.views(sampler, 0))) as batches:
            scales = health.activation_scales(net, next(batches).images)
        log({"kind": "event", "event": "activation scales"} | scales)
        if parent is None and not force:
            health.check_start(net, scales)
    with (
        progress(f"{config.name}: training", last, shown=topology.is_first) as update,
        closing(trainer.batches(loader, training, sampler, state.step)) as batches,
        writer,
        _collected_at_reports(),
    ):
        micro_batches = watch.apart(batches)
        try:
            while True:
                if validation_is_due(state):
                    with watch.waiting():
                        trainer.require_one_net()
                    Q = config.single_Q[0]
                    errors = centre_error(
                        net,
                        loader,
                        validation,
                        Q,
                        batch=config.evaluation.batch,
                        topology=topology,
                        precision=settings.precision,
                        watch=watch,
                    )
                    top1 = errors[1].percent
                    best = state.best_error is None or top1 < state.best_error
                    schedule = after_validation(state.schedule, top1, settings.schedule)
                    dropped = schedule.drops > state.schedule.drops
                    state = replace(state, schedule=schedule, validated=state.step)
                    state = replace(state, best_error=top1 if best else state.best_error)
                    record = {"top1_error": top1, "top5_error": errors[5].percent, "n": errors[1].n}
                    log({"kind": "validation", "Q": Q} | record)
                    if dropped:
                        log({"kind": "event", "event": "learning rate drop", "drop": schedule.drops})
                    if topology.is_first:
                        echo(_validation_line(config, epochs(state.step), top1, schedule.drops if dropped else None))
                    save(best=best)
                if state.step == last:
                    break

                rate = learning_rate(settings.learning_rate, settings.schedule, state.schedule, state.step)
                watch.beat(f"step {state.step + 1}")
                meter.start()
                with watch.waiting():  # on the CPU in the all-reduces, on CUDA in launching more than a queue holds
                    trainer.step(state.step, micro_batches, rate)
                state = replace(state, step=state.step + 1, unreported=state.unreported + 1)
                reports = state.step % settings.log_every == 0 or state.step == last
                if reports:
                    with watch.waiting():  # a device waits for the others' in no call before this one
                        loss = trainer.loss_sum() / (state.unreported * settings.batch)
                        bad = int(sum_over_ranks(torch.tensor(len(loader.bad.reasons))))
                meter.stop(settings.batch)
                if reports:
                    check_finite()
                    speed = meter.read(trainer.waited_s, flop, peak, topology.world)
                    left = (last - state.step) * settings.batch / speed["images_per_s"]
                    record = {"loss": loss, "learning_rate": rate, "seconds_left": left, "bad_images": bad}
                    log({"kind": "train"} | record | speed)
                    update(state.step, f"loss {loss:.4f}  rate {rate:g}  {describe(speed)}")
                    health.check_learning(loss, config.model.classes, state.step, settings.stall_after)
                    trainer.restart_loss()
                    state = replace(state, unreported=0)
                    gc.collect()
                if watch.vote():
                    watch.leave_together()
                if state.step % settings.checkpoint_every == 0 and not ends_a_period(state.step):
                    save()
        except Interrupted as stop:
            save()
            if topology.is_first and not writer.wait():
                raise Interrupted(f"{stop}; step {state.step} could not be saved, an earlier one was") from None
            raise Interrupted(f"{stop}; saved at step {state.step}") from None
        finally:
            watch.rest()
    if topology.is_first:
        lease.require(run.path)
        weights, _ = trainer.snapshot()
        final = replace(kept, step=last, weights=weights, training={})
        try:
            checkpoint.save(final, checkpoint.final_file(run.checkpoints))
        except OSError as error:
            raise UserError(f"{error}; free some space and run the same command again") from None


@contextmanager
def _collected_at_reports() -> Iterator[None]:
    """No garbage collection in the middle of a step, where it would hold up one rank and with it all; see the loop."""
    gc.collect()
    gc.freeze()  # what is there already need not be looked at each time
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _last_exchange(run: RunDirectory) -> tuple[str | None, int]:
    """How gradients were exchanged, among how many ranks, by what the run has noted last; nothing means one rank."""
    noted = [record for record in run.records("event") if record["event"] == "gradient exchange"]
    return (noted[-1]["comm"], noted[-1]["ranks"]) if noted else (None, 1)


def _validation_line(config: Config, epoch: float, top1: float, drop: int | None) -> str:
    line = f"{config.name}: epoch {epoch:.1f}  centre-crop top-1 error {top1:.1f} %"
    if drop is not None:
        schedule = config.train.schedule
        line += f"; no better for {schedule.patience} validations: learning rate drop {drop} of {schedule.max_drops}"
    return line


def _non_finite(
    step: int, sampler: TrainingSampler, training: Split, config: Config, run: RunDirectory, topology: Topology
) -> str:
    """What to say of a step whose gradient was not finite; its images are listed in the run directory."""
    batch = config.train.batch
    shown = sampler.views(step * batch, batch).image
    images = [training.name_of(int(image)) for image in shown]
    if topology.is_first:
        run.write_json("non_finite.json", {"step": step + 1, "images": images})
    return (
        f"loss or gradient of step {step + 1} is not finite and was not applied; its {batch} images are listed in "
        f"{run.path / 'non_finite.json'} ({', '.join(images[:_NAMED_IMAGES])}, ...); the checkpoints before it are "
        f"intact: lower train.learning_rate, or set train.precision=fp32, in a run of another name"
    )


def _after_saving(file: Path, folder: Path, keep: int, *, best: bool) -> None:
    if best:
        _link(file, checkpoint.best_file(folder))
    checkpoint.prune(folder, keep)


def _link(file: Path, name: Path) -> None:
    """Gives a file a second name, in place of what had it."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    os.link(file, temporary)
    temporary.replace(name)
