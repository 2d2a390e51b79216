"""Each way to load and draw, on a card; tests/contract has the same tests on the CPU."""

from collections.abc import Iterator

import pytest

from tests.contract.families import LIBRARY_WARNINGS, Shelf, shelf_of
from tests.ways import REAL_CARD, WAYS, skip_unless_possible, walk

# With a real card the real compiler runs, and warns of its own code.
pytestmark = [pytest.mark.filterwarnings(warning) for warning in (("ignore",) if REAL_CARD else LIBRARY_WARNINGS)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), ("flux-dev",)) as shelf:
        yield shelf


@pytest.mark.parametrize("name", WAYS)
def test_each_way_draws_the_same_again_and_leaves_nothing(shelf: Shelf, name: str) -> None:
    skip_unless_possible(WAYS[name], "cuda")
    walk(WAYS[name], "cuda", shelf)
