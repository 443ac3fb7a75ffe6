"""Base class of the sections of settings, and their number types."""

from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

_TOO_MANY = 2**31


def _with_exponent(given: Any) -> Any:
    """Converts text such as 1e5, which YAML 1.1 reads as a number only with a point and a sign: 1.0e+5."""
    if isinstance(given, str) and "e" in given.lower():
        with suppress(ValueError):
            return float(given)  # pydantic converts it to an int if it is integral
    return given


Integer = Annotated[int, BeforeValidator(_with_exponent)]
Positive = Annotated[Integer, Field(gt=0, lt=_TOO_MANY)]
Count = Annotated[Integer, Field(ge=0, lt=_TOO_MANY)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base class of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, given: Any, info: ValidationInfo) -> Any:
        """Rejects booleans in other fields: Python counts true as 1, and YAML 1.1 reads `yes` and `no` as booleans."""
        assert info.field_name is not None
        items = given if isinstance(given, list | tuple) else [given]
        if cls.model_fields[info.field_name].annotation is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("true and false (in YAML also yes, on, no, off) are invalid; give a number, or quote text")
        return given
