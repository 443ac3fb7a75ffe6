"""Executable form of Simonyan & Zisserman, arXiv 1409.1556.

The public names are defined in `vggrepro.api` (docs/notebook.md) and imported on first use, so that `import vggrepro`
is fast.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "VGG",
    "Batch",
    "Index",
    "Pretrained",
    "Report",
    "Scored",
    "UserError",
    "class_scores",
    "fuse",
    "load",
    "open_images",
    "posteriors",
    "score_map",
    "stored_posteriors",
    "tables",
    "to_markdown",
    "training_batches",
    "uncropped_batches",
    "vgg",
]

if TYPE_CHECKING:
    from vggrepro.api import (
        VGG,
        Batch,
        Index,
        Pretrained,
        Report,
        Scored,
        UserError,
        class_scores,
        fuse,
        load,
        open_images,
        posteriors,
        score_map,
        stored_posteriors,
        tables,
        to_markdown,
        training_batches,
        uncropped_batches,
        vgg,
    )
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            from vggrepro import api

            return getattr(api, name)
        raise AttributeError(f"module 'vggrepro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
