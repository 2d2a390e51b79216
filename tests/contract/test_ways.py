"""Each way to load and draw, on the CPU; tests/gpu has the same tests on a card."""

from collections.abc import Iterator

import pytest

from tests.contract.families import LIBRARY_WARNINGS, Shelf, shelf_of
from tests.ways import WAYS, skip_unless_possible, walk

pytestmark = [
    pytest.mark.usefixtures("quick_compiler"),
    *(pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), ("flux-dev",)) as shelf:
        yield shelf


@pytest.mark.parametrize("name", WAYS)
def test_each_way_draws_the_same_again_and_leaves_nothing(shelf: Shelf, name: str) -> None:
    skip_unless_possible(WAYS[name], "cpu")
    walk(WAYS[name], "cpu", shelf)
