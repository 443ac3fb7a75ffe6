"""One stage: trained, tested, its errors logged, its figures drawn."""

from collections.abc import Iterable
from typing import Any

from vggrepro.config.recipes import load_resolved
from vggrepro.config.settings import Config
from vggrepro.evaluation.measure import measure, missing_Q
from vggrepro.pipeline.boxes import evaluate_boxes, has_boxes
from vggrepro.pipeline.figures import draw_figures
from vggrepro.pipeline.session import Session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.pipeline.transfer import is_transferred, transfer_stage
from vggrepro.progress import echo
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import ledger, read_ledger, write_ledger
from vggrepro.storage.status import is_finished, known_weights, require_finished


def train_stage(config: Config, parent: Config | None, session: Session, *, force: bool = False) -> None:
    """Trains one stage unless it is finished; `force` also where its activations vanish or explode at the start.

    Raises UserError, also when the parent is not finished, and Interrupted.
    """
    from vggrepro.training import stage
    from vggrepro.training.loop import Training

    run = RunDirectory(config.directory)
    if from_first_rank(is_finished(config)):
        if session.topology.is_first:
            echo(f"{config.name}: already trained ({config.directory})")
        return
    if parent:
        is_finished(parent)  # raises where its directory belongs to another configuration
        require_finished(parent)
    index, boxes = session.index(config), session.boxes(config)
    stage.check_data(config, index, boxes)
    if session.topology.is_first:
        departures = stage.begin(config, parent, index, boxes, session.topology.world)
        echo(f"{config.name}: departs from the paper in {len(departures)} settings, see {run.path / 'ledger.json'}")
        if boxes and (without := int((~boxes.split("train").has).sum())):
            echo(f"{config.name}: {without:,} training images without a box are left out")
    with mirrored(config, run, session.topology):
        session.watch.leave_together()
        Training.begin(config, parent, index, boxes, session.loader(config), session.watch).train(force=force)
        with session.watch.waiting():
            from_first_rank(None)  # rank 0 has written final.pt, which every rank now reads


def evaluate_stage(config: Config, parent: Config | None, session: Session) -> None:
    """Stores what the tables need of a finished stage, and logs the figures. Raises UserError.

    Posteriors or boxes at every Q; and where its configuration names other data sets, what its features say of these.
    """
    require_finished(config)
    if session.topology.is_first:
        _note_testing(config, parent)
    if config.localisation:
        assert parent is not None
        evaluate_boxes(config, parent, session)
    else:
        _evaluate_classes(config, session)
        transfer_stage(config, session)


def _note_testing(config: Config, parent: Config | None) -> None:
    """Keeps how a stage is tested now in its run directory: reports go by that, and its ledger tells of it."""
    run = RunDirectory(config.directory)
    kept = load_resolved(run.path / "config.yaml")
    tested = kept.model_copy(update={"evaluation": config.evaluation, "localisation": config.localisation})
    if tested != kept:
        others = [one for one in read_ledger(run) or [] if not one.setting.startswith("evaluation.")]
        own = [one for one in ledger(config, parent) if one.setting.startswith("evaluation.")]
        run.write_text("config.yaml", tested.to_yaml())
        write_ledger(run, [*others, *own])


def _evaluate_classes(config: Config, session: Session) -> None:
    from vggrepro.evaluation.stage import evaluate
    from vggrepro.training.stage import check_data, load_final, net_of, weights_of

    run = RunDirectory(config.directory)
    weights = weights_of(config)
    index = session.index(config)
    check_data(config, index)
    if not from_first_rank(_lacks_posteriors(config, weights, index.fingerprint, run)):
        return
    with mirrored(config, run, session.topology):
        evaluate(
            config,
            weights,
            lambda: net_of(load_final(config), session.device),
            index,
            session.loader(config),
            run,
            session.watch,
            _tests(config),
        )
        if session.topology.is_first:
            asked = [("dense", config.single_Q), ("dense", config.multi_Q), ("centre", config.single_Q)]
            if record := error_record(config, weights, index.fingerprint, run, asked):
                run.append(record)
            draw_figures(config, run, index, session)


def _tests(config: Config) -> dict[str, set[int]]:
    """The Q at which each method tests a finished stage: what Tables 3 and 4 need, and a centre crop beside them."""
    return {"dense": {*config.single_Q, *config.multi_Q}, "centre": {*config.single_Q}}


def _lacks_posteriors(config: Config, weights: str, data: str, run: RunDirectory) -> bool:
    """Whether posteriors that the tests of a stage make are not stored."""
    return any(missing_Q(config, weights, data, run, Q, method) for method, Q in _tests(config).items())


def error_record(
    config: Config, weights: str, data: str, run: RunDirectory, asked: Iterable[tuple[str, tuple[int, ...]]]
) -> dict[str, Any] | None:
    """The errors by (method, Q) as a record of `metrics.jsonl`; None where it has them all.

    Named by the protocol: `dense_single_Q_top1_error` at the run's own Q of Table 3, `both_multi_Q_top1_error` at those
    of Tables 4 and 5, `centre_Q_256_384_top1_error` at others.
    """
    names = {config.multi_Q: "multi_Q", config.single_Q: "single_Q"}
    record: dict[str, Any] = {"kind": "evaluation", "step": config.train.iterations}
    for method, Q in asked:
        found = measure(config, weights, data, run, Q, method)
        assert found is not None, (method, Q)
        name = f"{method}_{names.get(Q) or 'Q_' + '_'.join(map(str, Q))}"
        record |= {f"{name}_top1_error": found.top1.percent, f"{name}_top5_error": found.top5.percent}
        record["n"] = found.top1.n
    return None if run.says("evaluation", record) else record


def is_evaluated(config: Config, parent: Config | None) -> bool:
    """Whether a stage is finished and what its tables need is stored. Raises as is_finished."""
    run = RunDirectory(config.directory)
    weights, data = known_weights(run), run.read_json("dataset.json")
    if not (is_finished(config) and weights and data):
        return False
    if config.localisation:
        assert parent is not None
        return has_boxes(config, parent, weights, data)
    return is_transferred(config) and not _lacks_posteriors(config, weights, data["fingerprint"], run)
