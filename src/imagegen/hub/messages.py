"""All that passes between the service and the process that downloads: one command, then a JSON line for each answer."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from imagegen.catalog.catalog import HubFiles
from imagegen.core.errors import FailureCode
from imagegen.core.value import Value

#: Bytes of disk that a download leaves to others: 1 GiB.
RESERVE_BYTES = 2**30


class Fetch(Value):
    """Bring these files into the hub's cache. Answers: any number of Progress, then Fetched or Refused."""

    files: tuple[HubFiles, ...]
    reserve_bytes: int = RESERVE_BYTES


class Progress(Value):
    """So much of all that is needed is on disk, whoever brought it there. Bytes."""

    kind: Literal["progress"] = "progress"
    bytes_done: int
    bytes_total: int


class Fetched(Value):
    """Everything is there and its checksums are right."""

    kind: Literal["fetched"] = "fetched"


class Refused(Value):
    """It could not be done. What arrived is kept, and the next attempt goes on from there."""

    kind: Literal["refused"] = "refused"
    code: FailureCode
    #: May reach a caller: no path, no secret.
    message: str
    #: Seconds after which asking again makes sense, where the hub said so.
    retry_after: int | None = None


Answer = Annotated[Progress | Fetched | Refused, Field(discriminator="kind")]

_ANSWERS: TypeAdapter[Answer] = TypeAdapter(Answer)


def read_answer(line: bytes) -> Answer:
    """Raises ValueError for what is no answer."""
    return _ANSWERS.validate_json(line)
