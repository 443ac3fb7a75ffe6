"""Checks of which results of a stage are stored, without torch."""

import hashlib

from vggrepro.config.settings import Config
from vggrepro.evaluation.box_store import DENSE, FoundKey
from vggrepro.evaluation.boxes import guesses_key
from vggrepro.evaluation.measure import NetResults
from vggrepro.storage.directory import RunDirectory
from vggrepro.storage.status import is_finished, known_weights

TRANSFERS = "transfers.json"
"""File that lists the transfer results of a stage, because their keys need the fingerprints of the images."""


def is_evaluated(config: Config, parent: Config | None) -> bool:
    """Whether a stage is finished and the results for its tables are stored. Raises as is_finished."""
    return is_finished(config) and is_stored(config, parent) and is_transferred(config)


def tests_of(config: Config) -> list[tuple[str, tuple[int, ...]]]:
    """Lists the tests of a stage as (method, Q): those of Tables 3 and 4, and a centre crop."""
    return [("dense", config.single_Q), ("dense", config.multi_Q), ("centre", config.single_Q)]


def is_stored(config: Config, parent: Config | None) -> bool:
    """Whether the posteriors or boxes for a finished stage's tables are stored."""
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
    """Whether the results of a stage on all its transfer data sets are stored."""
    if not config.transfer.sets:
        return True
    run = RunDirectory(config.directory)
    weights, done = known_weights(run), run.read_json(TRANSFERS)
    if not (weights and done and done["asked"] == transfers_hash(config, weights)):
        return False
    files = done.get("files")
    return bool(files) and all((run.transfers / name).exists() for name in files)


def transfers_hash(config: Config, weights: str) -> str:
    """Hashes the tests of a net on its transfer data sets and their settings."""
    tests = (weights, config.transfer.model_dump_json(), config.evaluation.flip, config.evaluation.precision)
    return hashlib.sha256(repr(tests).encode()).hexdigest()
