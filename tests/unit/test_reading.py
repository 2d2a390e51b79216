"""The kernel's counters of this process: which reads count, and which are a sign of life."""

import mmap
import os
from pathlib import Path

import pytest

from imagegen.gpu.reading import SIGN_BYTES, Reading

SIZE = 16 * SIGN_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "weights"
    written.write_bytes(os.urandom(SIZE))
    return written


def test_read_bytes_count_and_are_a_sign_of_life(file: Path) -> None:
    reading = Reading(os.getpid())
    assert not reading.grew()
    with file.open("rb", buffering=0) as stream:
        while stream.read(SIGN_BYTES):
            pass
    assert SIZE <= reading.bytes < SIZE + SIGN_BYTES
    assert reading.grew()
    assert not reading.grew()


def test_a_mapped_file_is_a_sign_of_life_wherever_it_comes_from(file: Path) -> None:
    reading = Reading(os.getpid())
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert not reading.grew()
        assert sum(mapped[place] for place in range(0, SIZE, mmap.PAGESIZE))
        assert reading.grew()


def test_neither_work_nor_a_few_bytes_are_a_sign_of_life(file: Path) -> None:
    reading = Reading(os.getpid())
    assert sum(range(10**6))
    with file.open("rb", buffering=0) as stream:
        stream.read(SIGN_BYTES // 2)
    assert not reading.grew()


def test_memory_that_comes_again_is_no_sign_of_life() -> None:
    reading = Reading(os.getpid())
    for fresh in (True, False, False):
        with mmap.mmap(-1, SIZE) as memory:
            memory.write(bytes(SIZE))
            assert reading.grew() is fresh


def test_an_ended_process_reads_nothing() -> None:
    process = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(process, 0)
    reading = Reading(process)
    assert (reading.bytes, reading.grew()) == (0, False)
