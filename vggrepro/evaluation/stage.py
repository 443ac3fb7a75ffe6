"""The evaluation of one net: posteriors for each method and Q, kept in its run directory."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from vggrepro.config.settings import Config
from vggrepro.data.index import Index, Split
from vggrepro.data.loader import Loader
from vggrepro.evaluation.measure import methods_of, missing_Q, protocol
from vggrepro.evaluation.methods import METHODS, Settings, whole_views
from vggrepro.evaluation.parts import Parts
from vggrepro.evaluation.posteriors import finish
from vggrepro.models.precision import autocast, set_arithmetic
from vggrepro.models.vgg import VGG
from vggrepro.progress import Update, progress
from vggrepro.ranks.collectives import from_every_rank, from_first_rank
from vggrepro.ranks.watch import Watch
from vggrepro.storage.directory import RunDirectory


def evaluate(
    config: Config,
    weights: str,
    make_net: Callable[[], VGG],
    index: Index,
    loader: Loader,
    run: RunDirectory,
    watch: Watch,
    wanted: Mapping[str, Iterable[int]],
) -> None:
    """Makes and stores the posteriors that are missing, by each method at its Q, px; every rank calls it.

    `weights` is the net's hash. An evaluation that was interrupted goes on where it was. All methods of one Q see the
    same decoded images, and batches do not depend on the number of ranks, so neither do the posteriors. Raises
    UserError, and Interrupted.
    """
    topology = watch.topology
    single: dict[str, set[int]] = {}
    for method, sides in wanted.items():
        for part in methods_of(method):
            single.setdefault(part, set()).update(sides)
    missing: dict[int, list[str]] = {}
    for method, sides in sorted(single.items()):
        for Q in missing_Q(config, weights, index.fingerprint, run, sides, method):
            missing.setdefault(Q, []).append(method)
    missing = from_first_rank(missing)
    if not missing:
        return
    set_arithmetic(loader.device, config.evaluation.precision)
    net, split = make_net().eval(), index.split("val")
    for Q, pending in sorted(missing.items()):
        parts = {
            method: Parts(protocol(config, weights, index.fingerprint, Q, method).file(run.posteriors))
            for method in pending
        }
        share = -(-len(split) // topology.world)
        with progress(f"{config.name}: {', '.join(pending)} at Q={Q}", share, shown=topology.is_first) as update:
            score(net, loader, split, Q, parts, config, watch, update)
        from_every_rank(None)  # until every rank has written
        if topology.is_first:
            for method in pending:
                made = protocol(config, weights, index.fingerprint, Q, method)
                finish(parts[method], made, split.label, run.posteriors)


@torch.inference_mode()
def score(
    net: VGG,
    loader: Loader,
    split: Split,
    Q: int,
    parts: dict[str, Parts],
    config: Config,
    watch: Watch,
    update: Update,
) -> None:
    """Adds this rank's share of the images that are not done to the parts of each method."""
    topology = watch.topology
    settings = Settings(flip=config.evaluation.flip, batch=config.evaluation.batch)
    done = from_first_rank(
        {method: part.done(len(split)) for method, part in parts.items()} if topology.is_first else None
    )
    batches = whole_views(split, Q, settings.batch // settings.views, net.architecture.crop)
    left = [views for views in batches if not all(rows[views.image].all() for rows in done.values())]
    tested = 0
    try:
        for batch in watch.attend(loader.batches(split, left[topology.rank :: topology.world]), f"evaluation at Q={Q}"):
            rows = batch.views.image
            for method, part in parts.items():
                if not done[method][rows].all():
                    with autocast(loader.device, config.evaluation.precision):
                        posteriors = METHODS[method](net, batch.images, settings)
                    part.add(rows, posteriors.cpu().numpy())
            tested += len(rows)
            update(tested, "")
    finally:  # an interrupt loses nothing that was computed
        for part in parts.values():
            part.flush()


def as_the_net_expects(loader: Loader, preprocessing: dict[str, object]) -> Loader:
    """The loader with the mean and the standard deviation that a net's weights were made for."""
    assert preprocessing["channels"] == "RGB", preprocessing
    assert preprocessing["range"] == [0, 255], preprocessing
    return replace(loader, mean=tuple(preprocessing["mean"]), std=tuple(preprocessing["std"]))  # type: ignore[arg-type]
