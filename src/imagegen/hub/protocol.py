"""The protocol between the service and the download process: one command, then a JSON line for each answer."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from imagegen.catalog.catalog import HubFiles
from imagegen.core.errors import FailureCode
from imagegen.core.value import Value

#: Bytes of disk that a download leaves free: 1 GiB.
RESERVE_BYTES = 2**30


class Fetch(Value):
    """Download these files into the hub's cache. Answers: any number of Progress, then Fetched or Refused."""

    files: tuple[HubFiles, ...]
    reserve_bytes: int = RESERVE_BYTES


class Progress(Value):
    """The bytes on disk, and the bytes that are needed."""

    kind: Literal["progress"] = "progress"
    bytes_done: int
    bytes_total: int


class Fetched(Value):
    """All files are on disk, and their checksums are right."""

    kind: Literal["fetched"] = "fetched"


class Refused(Value):
    """The download failed. The bytes that arrived are kept, and the next attempt resumes it."""

    kind: Literal["refused"] = "refused"
    code: FailureCode
    #: For the caller: no path, no secret.
    message: str
    #: Seconds until a retry makes sense, if the hub said so.
    retry_after: int | None = None


Answer = Annotated[Progress | Fetched | Refused, Field(discriminator="kind")]

_ANSWERS: TypeAdapter[Answer] = TypeAdapter(Answer)


def read_answer(line: bytes) -> Answer:
    """Parse one line. Raises ValueError if it is not an answer."""
    return _ANSWERS.validate_json(line)
