"""The host memory of the machine, and the share that weights may take: read from files like those of Linux."""

import os
from pathlib import Path

import pytest

from imagegen.loaders import host_memory
from imagegen.loaders.host_memory import available_bytes, machine_bytes, room

MEMINFO = "MemTotal:       65536 kB\nMemFree:         1024 kB\nMemAvailable:   32768 kB\nBuffers:        10 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path


def group(folder: Path, limit: str, used: int = 0, inactive_file: int = 0) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\nfile 9\ninactive_anon 3\ninactive_file {inactive_file}\n")
    return folder


def test_without_a_limit_it_is_the_available_memory_of_the_kernel(proc: Path, tmp_path: Path) -> None:
    assert available_bytes(proc, tmp_path / "none") == 32768 * 1024
    assert available_bytes(proc, group(tmp_path, "max")) == 32768 * 1024


def test_a_control_group_leaves_what_it_does_not_use_and_its_page_cache(proc: Path, tmp_path: Path) -> None:
    assert available_bytes(proc, group(tmp_path, "10000000", used=9_000_000, inactive_file=500_000)) == 1_500_000
    assert available_bytes(proc, group(tmp_path, "10000000", used=10_500_000)) == 0
    assert available_bytes(proc, group(tmp_path, str(2**40), used=5)) == 32768 * 1024


def test_a_machine_that_does_not_tell_has_nothing_to_give(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path) == 0
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    assert available_bytes(tmp_path, tmp_path) == 0


def test_the_machine_is_as_large_as_its_control_group(tmp_path: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_bytes(tmp_path / "none") == machine_bytes(group(tmp_path, "max")) == whole
    assert machine_bytes(group(tmp_path, "4096")) == 4096


def test_weights_leave_a_tenth_of_the_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "machine_bytes", lambda: 100)
    for available, left in ((100, 90), (30, 20), (10, 0), (3, 0)):
        monkeypatch.setattr(host_memory, "available_bytes", lambda available=available: available)
        assert room() == left


def test_this_machine_has_available_memory() -> None:
    assert 0 < available_bytes() < machine_bytes()
