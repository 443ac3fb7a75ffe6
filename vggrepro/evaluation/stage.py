"""The evaluation of one net: posteriors for each Q, kept in its run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vggrepro.config import Config
from vggrepro.data.index import Index
from vggrepro.data.loader import Loader
from vggrepro.distributed import Topology
from vggrepro.evaluation.measure import missing_Q, protocol
from vggrepro.evaluation.methods import dense_posteriors
from vggrepro.evaluation.posteriors import Posteriors
from vggrepro.models.vgg import VGG
from vggrepro.progress import progress
from vggrepro.tracking import RunDirectory


def evaluate(
    config: Config,
    weights: str,
    make_net: Callable[[], VGG],
    index: Index,
    loader: Loader,
    here: Topology,
    run: RunDirectory,
    wanted: Iterable[int],
) -> None:
    """Makes and stores the posteriors that are missing; every rank calls it. `weights` is the net's hash."""
    missing = missing_Q(config, weights, index.fingerprint, run, wanted)
    if not missing:
        return
    net, split = make_net(), index.split("val")
    for Q in missing:
        share = -(-len(split) // here.world)
        with progress(f"{config.name}: dense at Q={Q}", share, shown=here.is_first) as update:
            values = dense_posteriors(
                net,
                loader,
                split,
                Q,
                batch=config.evaluation.batch,
                flip=config.evaluation.flip,
                here=here,
                update=update,
            )
        if values is not None:
            Posteriors(protocol(config, weights, index.fingerprint, Q), values, split.label).save(run.posteriors)
