"""The base of every section of settings, and the numbers that they are made of."""

from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

_TOO_MANY = 2**31


def _with_exponent(given: Any) -> Any:
    """100000 for the text 1e5: YAML 1.1 takes it for a number only where it has a point and a sign, 1.0e+5."""
    if isinstance(given, str) and "e" in given.lower():
        with suppress(ValueError):
            return float(given)  # of which a whole number may be made
    return given


Integer = Annotated[int, BeforeValidator(_with_exponent)]
Positive = Annotated[Integer, Field(gt=0, lt=_TOO_MANY)]
Count = Annotated[Integer, Field(ge=0, lt=_TOO_MANY)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1, and YAML 1.1 reads `yes`, `on` and `no` as true and false."""
        assert info.field_name is not None
        several = given if isinstance(given, list | tuple) else [given]
        if cls.model_fields[info.field_name].annotation is not bool and any(isinstance(one, bool) for one in several):
            raise ValueError(
                "true and false (to YAML also yes, on, no, off) are no values here; give a number, or quote a text"
            )
        return given
