"""Files are read ahead while a context lasts, one model at a time, and only if there is memory for them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from imagegen.core.errors import WeightsMissing
from imagegen.models import reading_ahead
from imagegen.models.reading_ahead import ReadingAhead

PIECE = 10


class Disk:
    """Files whose pieces are read when the test allows it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: The bytes that were read of each file.
        self.read: dict[str, int] = {}
        self.available = 10_000
        self.gate = Event()
        self.gate.set()

    def files(self, *sizes: int, model: str = "m") -> Callable[[], Sequence[Path]]:
        paths = [self._folder / f"{model}{number}" for number in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            path.write_bytes(bytes(size))
        return lambda: paths

    @contextmanager
    def open(self, path: Path, *args: Any, **how: Any) -> Iterator[Any]:
        with open(path, *args, **how) as stream:
            yield SimpleNamespace(readinto=lambda buffer: self._read(path.name, stream.readinto(buffer)))

    def _read(self, name: str, count: int) -> int:
        assert self.gate.wait(10)
        self.read[name] = self.read.get(name, 0) + count
        return count


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(tmp_path)
    monkeypatch.setattr(reading_ahead, "PIECE", PIECE)
    monkeypatch.setattr(reading_ahead, "available_bytes", lambda: made.available)
    monkeypatch.setattr(reading_ahead, "open", made.open, raising=False)
    return made


async def ended(ahead: ReadingAhead) -> None:
    """Wait until its thread has ended."""
    assert ahead._thread is not None
    await ahead._thread


async def test_all_files_are_read_once(disk: Disk) -> None:
    ahead, files = ReadingAhead(), disk.files(25, 0, 10)
    for _ in range(3):
        with ahead.of("m", files):
            await ended(ahead)
    assert disk.read == {"m0": 25, "m1": 0, "m2": 10}


async def test_a_context_that_ends_stops_the_reading_and_the_next_one_continues_it(disk: Disk) -> None:
    ahead, files = ReadingAhead(), disk.files(1000)
    disk.gate.clear()
    with ahead.of("m", files):
        pass
    disk.gate.set()
    await ended(ahead)
    assert disk.read.get("m0", 0) <= PIECE
    with ahead.of("m", files):
        await ended(ahead)
    assert disk.read == {"m0": 1000}


async def test_while_a_piece_is_read_no_other_reading_begins(disk: Disk) -> None:
    ahead = ReadingAhead()
    disk.gate.clear()
    with ahead.of("m", disk.files(1000)):
        pass
    other = disk.files(50, model="other")
    with ahead.of("other", other):
        pass
    disk.gate.set()
    await ended(ahead)
    assert "other0" not in disk.read
    with ahead.of("other", other):
        await ended(ahead)
    assert disk.read["other0"] == 50


@pytest.mark.parametrize(("available", "read"), [(200, {"m0": 60, "m1": 40}), (199, {})])
async def test_files_that_take_more_than_half_of_the_available_memory_are_not_read(
    disk: Disk, available: int, read: dict[str, int]
) -> None:
    ahead, files = ReadingAhead(), disk.files(60, 40)
    disk.available = available
    with ahead.of("m", files):
        await ended(ahead)
    assert disk.read == read


async def test_after_its_load_a_model_is_read_again(disk: Disk) -> None:
    ahead, files = ReadingAhead(), disk.files(30)
    for forgotten, read in (("other", 30), ("m", 60)):
        with ahead.of("m", files):
            await ended(ahead)
        ahead.forget(forgotten)
        with ahead.of("m", files):
            await ended(ahead)
        assert disk.read == {"m0": read}


async def test_no_model_means_no_thread(disk: Disk) -> None:
    ahead = ReadingAhead()
    with ahead.of(None, disk.files(30)):
        await asyncio.sleep(0)
    assert ahead._thread is None


@pytest.mark.parametrize("error", [WeightsMissing("gone"), PermissionError("no")])
async def test_reading_ahead_ignores_unreadable_files(disk: Disk, error: Exception) -> None:
    def fail() -> Sequence[Path]:
        raise error

    ahead = ReadingAhead()
    with ahead.of("m", fail):
        await ended(ahead)
