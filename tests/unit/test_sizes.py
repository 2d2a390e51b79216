"""Picture sizes: the table that the brief documents, scaled by a model's base, rendered so that it can be delivered."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.core.sizes import SIDE_MULTIPLE, SIZES, AspectRatio, Size, render_size, size_of

RATIOS: tuple[AspectRatio, ...] = get_args(AspectRatio)
BASES = st.integers(64, 2048)
SIDES = st.integers(1, 8192)


@pytest.mark.parametrize(
    ("ratio", "width", "height"),
    [
        ("1:1", 768, 768),
        ("16:9", 1365, 768),
        ("9:16", 768, 1365),
        ("4:3", 1024, 768),
        ("3:4", 768, 1024),
        ("21:9", 1792, 768),
        ("9:21", 768, 1792),
    ],
)
def test_at_the_base_of_the_brief_the_sizes_are_those_of_the_brief(ratio: AspectRatio, width: int, height: int) -> None:
    assert size_of(ratio, 768) == (width, height)


def test_every_ratio_that_a_request_may_name_has_a_size() -> None:
    assert set(RATIOS) == set(SIZES)


@given(st.sampled_from(RATIOS), BASES)
def test_the_short_side_is_the_base_and_the_long_one_is_off_by_half_a_pixel_at_most(
    ratio: AspectRatio, base: int
) -> None:
    size = size_of(ratio, base)
    assert min(size) == base
    assert abs(max(size) - max(SIZES[ratio]) * base / 768) <= 0.5


@given(st.sampled_from(RATIOS), BASES)
def test_a_ratio_turned_round_is_the_size_turned_round(ratio: AspectRatio, base: int) -> None:
    wide, high = ratio.split(":")
    turned: AspectRatio = next(other for other in RATIOS if other == f"{high}:{wide}")
    assert size_of(turned, base) == tuple(reversed(size_of(ratio, base)))


def test_half_a_pixel_is_rounded_up() -> None:
    # 1365 * 384 / 768 = 682.5, where round() would choose the even 682.
    assert size_of("16:9", 384) == (683, 384)


@given(SIDES, SIDES)
def test_what_is_rendered_holds_what_is_delivered_and_is_no_larger_than_needed(width: int, height: int) -> None:
    asked, rendered = Size(width, height), render_size(Size(width, height))
    for side, rendered_side in zip(asked, rendered, strict=True):
        assert rendered_side % SIDE_MULTIPLE == 0
        assert 0 <= rendered_side - side < SIDE_MULTIPLE


def test_a_size_knows_its_pixels() -> None:
    assert Size(1365, 768).pixels == 1_048_320
