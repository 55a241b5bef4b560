"""What all parts of a recipe have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["Name", "Positive", "Strict"]


class Strict(BaseModel):
    """Frozen; an unknown key is an error; the sentences under the fields are the schema's descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _name(value: str) -> str:
    if not value or not all(char.isalnum() or char in "-_." for char in value) or value.startswith("."):
        raise ValueError(f"{value!r} names a folder: use letters, digits, '-', '_' and '.'")
    return value


Name = Annotated[str, AfterValidator(_name)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
