"""The part of a file that a Range header asks for; every header is parsed quickly."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagegen.api.native.images.ranges import parse_range

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=990-", (990, 1000)),
        ("bytes=-10", (990, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=990-5000", (990, 1000)),
        ("Bytes = 0-1", (0, 2)),
    ],
)
def test_a_range_is_cut_to_the_file(header: str, part: tuple[int, int]) -> None:
    assert parse_range(header, SIZE) == part


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-2000", "bytes=-0"])
def test_a_range_beyond_the_file_is_empty(header: str) -> None:
    part = parse_range(header, SIZE)
    assert part is not None
    assert part.empty


@pytest.mark.parametrize(
    "header",
    [
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=1-2-3", "bytes=,", "bytes=0-1,", "0-1"),
        *("bytes=5-1", "bytes=0x1-0x2", "bytes=1_0-2_0", "bytes=+1-2", "pages=0-1", "bytes=0-1, 5-6"),
        *("bytes=\u0661-\u0662", "bytes=0-" + "9" * 21, "bytes=" + ",".join("0-" for _ in range(5000))),
    ],
)
def test_several_ranges_and_malformed_headers_get_the_whole_file(header: str) -> None:
    assert parse_range(header, SIZE) is None


@example("5-9999", 10)
@example("-9999", 10)
@given(st.from_regex("[0-9]{0,4}-[0-9]{0,4}", fullmatch=True) | st.text(max_size=9), st.integers(1, 2000))
def test_no_answer_is_larger_than_the_file(spec: str, size: int) -> None:
    part = parse_range(f"bytes={spec}", size)
    assert part is None or part.empty or 0 <= part.start < part.stop <= size
