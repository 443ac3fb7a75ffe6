"""Results of `vggrepro doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """Result of a check: name, status, finding, remedy."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
