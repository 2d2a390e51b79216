"""Which parts of a file a Range header asks for: pure, and quick whatever the header says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.api.ranges import MAX_RANGES, Range, parse_ranges

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-99", [(0, 100)]),
        ("bytes=990-", [(990, 1000)]),
        ("bytes=-10", [(990, 1000)]),
        ("bytes=-5000", [(0, 1000)]),
        ("bytes=990-5000", [(990, 1000)]),
        ("Bytes = 0-1", [(0, 2)]),
        ("bytes=0-1, 5-6", [(0, 2), (5, 7)]),
        ("bytes=5-6,\t0-1", [(5, 7), (0, 2)]),
        # As far as they are there.
        ("bytes=0-1,2000-3000", [(0, 2)]),
    ],
)
def test_the_parts_come_as_they_were_asked_for(header: str, ranges: list[tuple[int, int]]) -> None:
    assert parse_ranges(header, SIZE) == ranges


@pytest.mark.parametrize(
    "header", ["bytes=1000-", "bytes=1000-2000", "bytes=-0", "bytes=5000-,6000-", "bytes=-0,1000-"]
)
def test_what_no_byte_satisfies_is_nothing(header: str) -> None:
    assert parse_ranges(header, SIZE) == []


@pytest.mark.parametrize(
    "header",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=1-2-3", "bytes=,", "bytes=0-1,", "0-1"),
        *(
            "bytes=5-1",
            "bytes=0x1-0x2",
            "bytes=1_0-2_0",
            "bytes=+1-2",
            "bytes=\u0661-\u0662",
            "bytes=0-" + "9" * 21,
            "pages=0-1",
        ),
    ],
)
def test_what_is_malformed_or_of_another_unit_is_as_good_as_no_header(header: str) -> None:
    assert parse_ranges(header, SIZE) is None


def test_more_parts_than_anybody_needs_are_the_whole_file() -> None:
    asked = [f"{n}-{n}" for n in range(MAX_RANGES + 1)]
    assert len(parse_ranges("bytes=" + ",".join(asked[:-1]), SIZE) or []) == MAX_RANGES
    assert parse_ranges("bytes=" + ",".join(asked), SIZE) is None
    assert parse_ranges("bytes=" + ",".join("0-" for _ in range(5000)), SIZE) is None


def test_parts_that_are_together_more_than_the_file_are_the_whole_file() -> None:
    assert parse_ranges("bytes=0-,0-", SIZE) is None
    assert parse_ranges("bytes=0-599,400-", SIZE) is None


SPECS = st.from_regex(r"\d{0,4}-\d{0,4}", fullmatch=True) | st.text(max_size=5)


@given(st.lists(SPECS, max_size=12).map(lambda specs: "bytes=" + ",".join(specs)), st.integers(1, 2000))
def test_whatever_is_asked_for_no_answer_is_larger_than_the_file(header: str, size: int) -> None:
    ranges = parse_ranges(header, size) or []
    assert all(0 <= part.start < part.stop <= size for part in ranges)
    assert len(ranges) <= MAX_RANGES
    assert sum(part.stop - part.start for part in ranges) <= size
    assert all(isinstance(part, Range) for part in ranges)
