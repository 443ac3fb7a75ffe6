"""Whether what a stage's tables need is stored: read from its run directory, without torch."""

import hashlib

from vggrepro.config.settings import Config
from vggrepro.evaluation.box_store import DENSE, FoundKey
from vggrepro.evaluation.boxes import guesses_key
from vggrepro.evaluation.measure import NetResults
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished, known_weights

TRANSFERS = "transfers.json"
"""On which data sets a stage was tested, and the files of the answers: their keys need the images' fingerprints."""


def is_evaluated(config: Config, parent: Config | None) -> bool:
    """Whether a stage is finished and all that its tables need is stored. Raises as is_finished."""
    return is_finished(config) and is_stored(config, parent) and is_transferred(config)


def tests_of(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """The tests of a finished stage by (method, Q): what Tables 3 and 4 need, and a centre crop beside them."""
    return [("dense", config.single_Q), ("dense", config.multi_Q), ("centre", config.single_Q)]


def is_stored(config: Config, parent: Config | None) -> bool:
    """Whether the posteriors, or the boxes, that a finished stage's tables need are stored."""
    run = RunDirectory(config.directory)
    weights, dataset = known_weights(run), run.read_json("dataset.json")
    if not (weights and dataset):
        return False
    boxes = dataset.get("boxes", {}).get("fingerprint", "")
    results = NetResults(run, weights, dataset["fingerprint"], config.evaluation, boxes)
    if config.localisation is None:
        return not results.lacking(tests_of(config))
    assert parent is not None
    scorer = known_weights(RunDirectory(parent.directory))
    if scorer is None:
        return False
    guesses, below = guesses_key([(scorer, DENSE, parent.multi_Q)]), config.localisation.merge_below
    keys = [FoundKey(results.places(Q, guesses), below) for Q in (config.single_Q, config.multi_Q)]
    return all(key.exists(run) for key in [*keys, results.centre_boxes(config.single_Q[0])])


def is_transferred(config: Config) -> bool:
    """Whether a stage was tested on all data sets that it names now, and the answers are still there."""
    if not config.transfer.sets:
        return True
    run = RunDirectory(config.directory)
    weights, done = known_weights(run), run.read_json(TRANSFERS)
    if not (weights and done and done["asked"] == transfers_hash(config, weights)):
        return False
    files = done.get("files")
    return bool(files) and all((run.transfers / name).exists() for name in files)


def transfers_hash(config: Config, weights: str) -> str:
    """Equal for tests of the same net on the same data sets in the same way."""
    tests = (weights, config.transfer.model_dump_json(), config.evaluation.flip, config.evaluation.precision)
    return hashlib.sha256(repr(tests).encode()).hexdigest()
