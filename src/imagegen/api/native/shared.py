"""What the bodies of several resources share."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class RequestBody(BaseModel):
    """A request body. Unknown keys are refused, and numbers must not be strings or booleans."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)


def binary(*media_types: str) -> dict[str, Any]:
    """The `content` of an answer that is a file.

    `application/octet-stream` stands for them all: openapi-python-client reads no other type as bytes.
    """
    return {it: {"schema": {"type": "string", "format": "binary"}} for it in (*media_types, "application/octet-stream")}


def gib(size: int) -> float:
    """Bytes as GiB, rounded to a thousandth."""
    return round(size / 2**30, 3)
