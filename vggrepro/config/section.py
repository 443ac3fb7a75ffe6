"""The base of every section of settings, and the numbers that they are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_TOO_MANY = 2**31
Positive = Annotated[int, Field(gt=0, lt=_TOO_MANY)]
Count = Annotated[int, Field(ge=0, lt=_TOO_MANY)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
