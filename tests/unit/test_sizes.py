"""Picture sizes: the table of the original API, scaled by a model's base, and the size to render."""

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.core.sizes import MAX_SIDE, SIDE_MULTIPLE, SIZES, AspectRatio, Size, render_size, size_like, size_of

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
def test_at_base_768_the_sizes_are_those_of_the_original_api(ratio: AspectRatio, width: int, height: int) -> None:
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
def test_the_rendered_size_contains_the_delivered_one_and_is_the_smallest(width: int, height: int) -> None:
    asked, rendered = Size(width, height), render_size(Size(width, height))
    for side, rendered_side in zip(asked, rendered, strict=True):
        assert rendered_side % SIDE_MULTIPLE == 0
        assert 0 <= rendered_side - side < SIDE_MULTIPLE


def test_a_size_knows_its_pixels() -> None:
    assert Size(1365, 768).pixels == 1_048_320


@pytest.mark.parametrize(
    ("shape", "multiple", "expected"),
    [
        ((3024, 4032), 16, (880, 1184)),
        ((4032, 3024), 32, (1184, 896)),
        ((1080, 1920), 16, (768, 1360)),
        ((1000, 1000), 16, (1024, 1024)),
        ((1, 1), 16, (1024, 1024)),
        ((10_000, 1), 16, (8192, 16)),
        ((1, 100), 16, (96, 8192)),
    ],
)
def test_the_size_of_a_shape_has_the_area_of_the_base(shape: Any, multiple: int, expected: Any) -> None:
    assert size_like(Size(*shape), 1024, multiple) == expected


@given(SIDES, SIDES, BASES, st.sampled_from([16, 32]), st.integers(4096, 10_000_000))
def test_a_size_like_a_picture_keeps_all_limits(width: int, height: int, base: int, multiple: int, most: int) -> None:
    size = size_like(Size(width, height), base, multiple, most_pixels=most)
    assert size.pixels <= most
    assert all(side % multiple == 0 and multiple <= side <= MAX_SIDE for side in size)
    if most > 2 * base**2 and 0.2 < width / height < 5 and base > 20 * multiple:
        assert size.width / size.height == pytest.approx(width / height, rel=0.1)
        assert size.pixels == pytest.approx(base**2, rel=0.1)


AREAS = {
    "1:1": (1024, 1024),
    "16:9": (1360, 768),
    "9:16": (768, 1360),
    "4:3": (1184, 880),
    "3:4": (880, 1184),
    "21:9": (1568, 672),
    "9:21": (672, 1568),
}


def test_with_sizing_by_area_every_ratio_has_the_pixels_of_the_square() -> None:
    assert {ratio: size_of(ratio, 1024, "area") for ratio in RATIOS} == AREAS
    assert size_of("16:9", 1328, "area") == (1776, 992)
    assert size_of("4:3", 1024, "area", 32) == (1184, 896)
