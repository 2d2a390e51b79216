"""A card for every test of this folder: the machine's own, or a pretended one.

With a card all tests here are marked `gpu` and run with `pytest -m gpu`. Without one those run on the pretended card
that are not marked themselves: their numbers mean nothing, but no line of them is one that nobody has run.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretend_cuda import GIB, Card, Cuda, environment_of_workers, pretended
from tests.ways import REAL_CARD

#: Small enough that a CPU can fill it.
CARD = Card(total=8 * GIB)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REAL_CARD and Path(__file__).parent in item.path.parents:
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda | None]:
    """The pretended card, also in worker processes; None: a real one."""
    if REAL_CARD:
        yield None
        return
    request.getfixturevalue("quick_compiler")
    for name, value in environment_of_workers(CARD).items():
        monkeypatch.setenv(name, value)
    with pretended(CARD) as cuda:
        yield cuda
