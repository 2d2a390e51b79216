"""What the bodies of several resources share."""

from pydantic import BaseModel, ConfigDict


class RequestBody(BaseModel):
    """A request body. Unknown keys are refused, and numbers must not be strings or booleans."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


def gib(size: int) -> float:
    """Bytes as GiB, rounded to a thousandth."""
    return round(size / 2**30, 3)
