"""One instance for each data directory."""

import os
from pathlib import Path

import pytest

from imagegen.core.errors import DataDirInUse, DataDirUnusable
from imagegen.storage.lock import exclusive


def test_a_second_instance_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(DataDirInUse, match=rf"process {os.getpid()}\b"), exclusive(tmp_path):
        pass


def test_the_directory_is_free_again_afterwards(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_the_directory_is_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path):
        raise ZeroDivisionError
    with exclusive(tmp_path):
        pass


def test_a_refused_instance_does_not_take_the_holders_name_away(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        for _ in range(2):
            with pytest.raises(DataDirInUse, match=rf"process {os.getpid()}\b"), exclusive(tmp_path):
                pass


def test_the_directory_is_made(tmp_path: Path) -> None:
    with exclusive(tmp_path / "new" / "deep"):
        assert (tmp_path / "new" / "deep").is_dir()


def test_two_directories_are_two_instances(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a"), exclusive(tmp_path / "b"):
        pass


def test_a_file_in_its_place_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    clear = pytest.raises(DataDirUnusable, match=r"Cannot use the data directory .*data: File exists\.")
    with clear, exclusive(tmp_path / "data"):
        pass


def test_a_full_disk_does_not_keep_the_service_from_starting(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("/dev/full")
    with exclusive(tmp_path):
        pass
