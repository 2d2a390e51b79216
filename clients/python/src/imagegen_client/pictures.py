"""The pictures that a request takes."""

import base64
from pathlib import Path

#: A picture: the path of a file, or the bytes of one.
Picture = str | Path | bytes


def base64_of(picture: Picture) -> str:
    """The file in base64, as request bodies have it. Raises OSError."""
    return base64.b64encode(picture if isinstance(picture, bytes) else Path(picture).read_bytes()).decode()
