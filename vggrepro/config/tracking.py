"""Settings of MLflow, which mirrors what a run directory holds."""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import Field, model_validator

from vggrepro.config.section import Section

MOST_BYTES = 100_000_000
"""Of a net that is logged as a model by default."""

# of a method of all abstract classes, which no section uses
warnings.filterwarnings("ignore", 'Field name "register" in "Tracking" shadows', UserWarning)


class Tracking(Section):
    """Where metrics are mirrored; metrics.jsonl in the run directory is always written."""

    mlflow: bool = True
    """Without it there are no system metrics, logged or registered models either."""
    uri: str | None = None
    """MLflow's tracking URI; default: MLFLOW_TRACKING_URI, else SQLite in the runs folder."""
    system_metrics: bool = True
    """Sample GPU, memory, processor, disk and network on each machine while training and testing."""
    model: Literal["auto", "always", "never"] = "auto"
    """Log the final net as an MLflow model; auto: nets of up to 100 MB, and those that are registered. D has 553 MB: a
    store on the same file system gets a link, any other one a copy for each stage."""
    register: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$")
    """Registers the net as a version of the model NAME-NET (vggrepro-D for NAME vggrepro); the version with the lowest
    top-1 error has the alias `champion`."""

    @model_validator(mode="after")
    def _registered_nets_are_logged(self) -> Tracking:
        if self.register and self.model == "never":
            raise ValueError(f"register={self.register} needs a logged model, and model=never; leave one of them out")
        return self
