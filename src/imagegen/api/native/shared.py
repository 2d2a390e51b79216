"""What the bodies of several resources share."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict

_WRITTEN_OUT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


def _written_out(value: object) -> object:
    # pydantic would also take a number, for seconds or milliseconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and _WRITTEN_OUT.match(value)):
        return value
    raise ValueError("must be a time with its zone, such as 2026-11-23T08:00:00Z")


#: A time in a request (RFC 3339).
Time = Annotated[AwareDatetime, BeforeValidator(_written_out)]


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
