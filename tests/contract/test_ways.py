"""Each way to load and draw, on the CPU and on a pretended card. On a real card: tests/gpu."""

from collections.abc import Iterator

import pytest

from tests.contract.families import LIBRARY_WARNINGS, Shelf, shelf_of
from tests.pretend_cuda import pretended
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
def test_a_way_to_draw_works_on_the_cpu(shelf: Shelf, name: str) -> None:
    skip_unless_possible(WAYS[name], "cpu")
    walk(WAYS[name], "cpu", shelf)


@pytest.mark.parametrize("name", WAYS)
def test_a_way_to_draw_works_on_a_card(shelf: Shelf, name: str) -> None:
    skip_unless_possible(WAYS[name], "cuda")
    with pretended():
        walk(WAYS[name], "cuda", shelf)
