"""Settings of the mirror in MLflow."""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import Field, model_validator

from vggrepro.config.section import Section

MOST_BYTES = 100_000_000
"""Maximum size of a net that is logged as a model by default."""

# ABCMeta has a method of this name, which no section uses.
warnings.filterwarnings("ignore", 'Field name "register" in "Tracking" shadows', UserWarning)


class Tracking(Section):
    """Mirror of a run in MLflow. The run directory contains metrics.jsonl either way."""

    mlflow: bool = True
    """Mirror runs in MLflow; if false, system metrics and models are not logged either."""
    uri: str | None = None
    """Tracking URI of MLflow; default: MLFLOW_TRACKING_URI, else a SQLite file in the runs folder."""
    system_metrics: bool = True
    """Sample the usage of GPU, memory, CPU, disk and network on each node during training and testing."""
    model: Literal["auto", "always", "never"] = "auto"
    """Log the final net as an MLflow model; auto: nets of up to 100 MB, and registered nets. Net D has 553 MB. A store
    on the same file system gets a hard link, any other store a copy per stage."""
    register: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$")
    """Register the net as a version of the model NAME-NET, e.g. vggrepro-D for the value vggrepro. The version with the
    lowest top-1 error has the alias `champion`."""

    @model_validator(mode="after")
    def _registered_nets_are_logged(self) -> Tracking:
        if self.register and self.model == "never":
            raise ValueError(f"register={self.register} needs a logged model; remove it or model=never")
        return self
