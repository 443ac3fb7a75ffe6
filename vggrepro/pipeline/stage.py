"""Training and evaluation of a stage."""

from collections.abc import Iterable

from vggrepro.config.recipes import load_resolved
from vggrepro.config.settings import Config
from vggrepro.evaluation.measure import NetResults
from vggrepro.evaluation.stage import evaluate
from vggrepro.pipeline.boxes import evaluate_boxes
from vggrepro.pipeline.done import tests_of
from vggrepro.pipeline.figures import draw_figures
from vggrepro.pipeline.net import Net
from vggrepro.pipeline.session import Session
from vggrepro.pipeline.tracking import mirrored
from vggrepro.pipeline.transfer import transfer_stage
from vggrepro.progress import echo, warn
from vggrepro.ranks.collectives import from_first_rank
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.ledger import ledger, read_ledger, write_ledger
from vggrepro.storage.status import is_finished, require_finished
from vggrepro.training.loop import Training
from vggrepro.training.stage import begin
from vggrepro.training.throughput import training_flop


def train_stage(
    config: Config, parent: Config | None, session: Session, *, force: bool = False, later: Iterable[Config] = ()
) -> None:
    """Trains a stage unless it is finished; with `force` even if activations vanish or explode at initialisation.

    The time left includes the training of `later` stages, at the same FLOP/s. Raises UserError, also if the parent is
    not finished, and Interrupted.
    """
    run = RunDirectory(config.directory)
    if from_first_rank(is_finished(config)):
        if session.topology.is_first:
            echo(f"{config.name}: already trained ({config.directory})")
        return
    if parent:
        is_finished(parent)  # raises if its directory belongs to another configuration
        require_finished(parent)
    index, boxes = session.stage_data(config)
    if session.topology.is_first:
        departures = begin(config, parent, index, boxes, session.topology.world)
        echo(f"{config.name}: departs from the paper in {len(departures)} settings, see {run.path / 'ledger.json'}")
        if boxes and (without := int((~boxes.split("train").has).sum())):
            warn(f"{config.name}: {without:,} training images without a box are skipped")
    with mirrored(config, run, session.topology):
        session.watch.stop_if_requested()
        training = Training.begin(config, parent, index, boxes, session.loader(config), session.watch)
        training.later_flop = sum(training_flop(stage) for stage in later if not is_finished(stage))
        training.train(force=force)
        with session.watch.waiting():
            from_first_rank(None)  # rank 0 has written final.pt, which every rank now reads


def evaluate_stage(config: Config, parent: Config | None, session: Session) -> None:
    """Stores posteriors or boxes, and transfer results, of a finished stage, and logs its errors. Raises UserError."""
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
    """Updates the test settings in the run directory's configuration and ledger, which reports use."""
    run = RunDirectory(config.directory)
    stored = load_resolved(run.path / "config.yaml")
    tested = stored.model_copy(update={"evaluation": config.evaluation, "localisation": config.localisation})
    if tested != stored:
        departures = [line for line in read_ledger(run) or [] if not line.setting.startswith("evaluation.")]
        departures += [line for line in ledger(config, parent) if line.setting.startswith("evaluation.")]
        run.write_text("config.yaml", tested.to_yaml())
        write_ledger(run, departures)


def _evaluate_classes(config: Config, session: Session) -> None:
    net, (index, _) = Net.of_stage(config), session.stage_data(config)
    results = net.results(index.fingerprint)
    if not from_first_rank(results.lacking(tests_of(config))):
        return
    with mirrored(config, net.run, session.topology):
        evaluate(results, lambda: net.opened(session), index, session.watch, tests_of(config))
        if session.topology.is_first:
            if record := net.new_record(errors_by_name(config, results, tests_of(config))):
                net.run.append(record)
            draw_figures(config, net.run, index, session)


def errors_by_name(
    config: Config, results: NetResults, tests: Iterable[tuple[str, tuple[int, ...]]]
) -> dict[str, float]:
    """Returns the errors in per cent of tests, given as (method, Q), by their names in `metrics.jsonl`, and n.

    Examples: `dense_single_Q_top1_error` at the run's Q of Table 3, `both_multi_Q_top1_error` at its Q of Tables 4 and
    5, `centre_Q_256_384_top1_error` at other Q.
    """
    names = {config.multi_Q: "multi_Q", config.single_Q: "single_Q"}
    errors: dict[str, float] = {}
    for method, Q in tests:
        measured = results.measured(method, Q)
        assert measured is not None, (method, Q)
        name = f"{method}_{names.get(Q) or 'Q_' + '_'.join(map(str, Q))}"
        errors |= {f"{name}_top1_error": measured.top1.percent, f"{name}_top5_error": measured.top5.percent}
        errors["n"] = measured.top1.n
    return errors
