"""The part of a file that a `Range` header asks for (RFC 9110, section 14). Pure."""

import re
from typing import NamedTuple

#: A number of twenty digits is larger than any file.
_SPEC = re.compile(r"[ \t]*(\d{0,20})-(\d{0,20})[ \t]*", re.ASCII)


class Range(NamedTuple):
    """The bytes from `start` to `stop`, without the last."""

    start: int
    stop: int

    @property
    def empty(self) -> bool:
        """Whether the file has none of these bytes."""
        return self.start >= self.stop


def parse_range(header: str, size: int) -> Range | None:
    """The part of a file of `size` bytes; empty if the file has none of it. None: send the whole file.

    The whole file is the answer to several ranges, to a malformed header and to other units.
    """
    unit, _, spec = header.partition("=")
    match = _SPEC.fullmatch(spec)
    if unit.strip().lower() != "bytes" or match is None:
        return None
    first, last = match.groups()
    if first and last:
        return Range(int(first), min(int(last) + 1, size)) if int(first) <= int(last) else None
    if first:
        return Range(int(first), size)
    return Range(max(size - int(last), 0), size) if last else None
