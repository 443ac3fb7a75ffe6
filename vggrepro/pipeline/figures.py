"""Figures of a finished run, which are stored in its directory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vggrepro.config.settings import Config
from vggrepro.data.images.index import Index
from vggrepro.data.sampler import TrainingSampler
from vggrepro.data.views import rescaled_size, uncropped
from vggrepro.evaluation.boxes import Found
from vggrepro.evaluation.localise import Annotated
from vggrepro.pipeline.session import Session
from vggrepro.reporting.documents import figures
from vggrepro.reporting.stored.predictions import PredictionCache
from vggrepro.reporting.stored.runs import StoredRun
from vggrepro.storage.directory import RunDirectory
from vggrepro.training.stage import load_final

_SHOWN = 24  # images


def draw_box_figures(config: Config, run: RunDirectory, found: Found, test: Annotated, session: Session) -> None:
    """Draws the learning curves, and predicted beside true boxes, of a finished run that predicts boxes."""
    drawn = {"learning_curves": figures.learning_curves({config.name: run})}
    shown = np.linspace(0, len(test.split) - 1, min(_SHOWN, len(test.split))).astype(np.int64)
    loader, images, boxes = replace(session.loader(config), processes=0), [], []
    for row in shown:  # in separate batches, because their shapes differ
        size = test.split.size[[row]]
        view = uncropped(np.array([row]), size, rescaled_size(size, config.single_Q[0]))
        batch = next(iter(loader.batches(test.split, [view])))
        images.append(batch.images[0].permute(1, 2, 0).float().cpu().numpy() + np.array(config.data.mean, np.float32))
        true, predicted = test.boxes.of(int(row)), found.boxes[row, -1:].astype(np.float64)
        boxes.append(tuple(view.boxes_in_window(edges[None])[0] for edges in (true, predicted)))
    drawn["boxes"] = figures.boxes_sheet(images, boxes)
    for name, png in drawn.items():
        run.write_bytes(f"figures/{name}.png", png)


def draw_figures(config: Config, run: RunDirectory, index: Index, session: Session) -> None:
    """Draws learning curves, training crops, confusions and filters of a finished run that predicts classes."""
    drawn = {"learning_curves": figures.learning_curves({config.name: run})}
    split = index.split("train")
    sampler = TrainingSampler(split.size, config.data, config.model.crop, config.run.seed)
    crops = next(iter(replace(session.loader(config), processes=0).batches(split, [sampler.views(0, _SHOWN)])))
    images = crops.images.permute(0, 2, 3, 1).float().cpu().numpy()
    titles = [index.classes[label] for label in crops.labels.tolist()]
    drawn["training_crops"] = figures.crops_sheet(images, config.data.mean, titles)
    predictions = PredictionCache().of([(StoredRun(run.path, config), config.multi_Q)], "dense")
    assert predictions is not None
    protocol = f"dense, Q = {', '.join(map(str, config.multi_Q))}; n = {predictions.top1.n:,}"
    drawn["confusion"] = figures.confusion(predictions, index.classes, protocol)
    drawn["conv1_1"] = figures.filters(load_final(config).weights["features.0.weight"].float().numpy())
    for name, png in drawn.items():
        run.write_bytes(f"figures/{name}.png", png)
