"""Pure: which parts of a file a `Range` header asks for (RFC 9110, section 14)."""

import re
from typing import NamedTuple

#: Nobody needs more parts of a picture; who asks for more gets all of it.
MAX_RANGES = 8

#: Twenty digits are more than any file has bytes.
_SPEC = re.compile(r"[ \t]*(\d{0,20})-(\d{0,20})[ \t]*", re.ASCII)


class Range(NamedTuple):
    """Bytes `start` to `stop`, without the last."""

    start: int
    stop: int


def parse_ranges(header: str, size: int) -> list[Range] | None:
    """The parts in the order of asking; none if no byte of them is there. None: send the whole file.

    That is the answer to what is malformed, of another unit, too many, or together more than the file.
    """
    unit, _, listed = header.partition("=")
    if unit.strip().lower() != "bytes" or listed.count(",") >= MAX_RANGES:
        return None
    found = [_SPEC.fullmatch(spec) for spec in listed.split(",")]
    asked = [_range(match[1], match[2], size) for match in found if match is not None]
    if len(asked) < len(found) or None in asked:
        return None
    there = [part for part in asked if part is not None and part.start < part.stop]
    return there if sum(part.stop - part.start for part in there) <= size else None


def _range(first: str, last: str, size: int) -> Range | None:
    """None: malformed. Empty, with its end not above its start: not satisfiable."""
    if first and last:
        return Range(int(first), min(int(last) + 1, size)) if int(first) <= int(last) else None
    if first:
        return Range(int(first), size)
    return Range(max(size - int(last), 0), size) if last else None
