"""A net that was trained for a moment and tested at three Q, with several places at the larger ones."""

from pathlib import Path

import pytest
from tiny import tiny_graph

from vggrepro.pipeline.graph import reproduce
from vggrepro.show.exhibit import Exhibit, open_exhibit
from vggrepro.storage.directory import RunDirectory

Q = (37, 72, 110)


@pytest.fixture(scope="session")
def shown_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A, of stride 32."""
    changes = (f"evaluation.multi_Q={list(Q)}", "train.iterations=3")
    graph = tiny_graph("vgg_A.yaml", images, tmp_path_factory.mktemp("runs"), *changes)
    reproduce(graph)
    (config,) = graph.stages.values()
    return RunDirectory(config.directory)


@pytest.fixture(scope="session")
def exhibit(shown_run: RunDirectory) -> Exhibit:
    return open_exhibit(str(shown_run.path))
