"""One instance for each data directory."""

import os
import stat
from pathlib import Path

import pytest

from imagegen.core.errors import DataDirInUse, DataDirUnusable
from imagegen.storage import lock
from imagegen.storage.lock import exclusive, holder


def test_a_second_instance_reports_the_process_that_holds_the_directory(tmp_path: Path) -> None:
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


def test_a_directory_that_is_made_is_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    with exclusive(tmp_path / "new"), exclusive(tmp_path / "shared"):
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755  # the operator's choice


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


def test_the_holder_of_a_directory_is_known_without_a_lock(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with exclusive(tmp_path):
        assert holder(tmp_path) == str(os.getpid())
        assert holder(tmp_path / "another") is None
    assert holder(tmp_path) is None  # the file is still there


@pytest.mark.parametrize(
    ("line", "who"),
    [
        ("1: FLOCK  ADVISORY  WRITE 4242 {device}:{inode} 0 EOF", "4242"),
        ("1: FLOCK  ADVISORY  WRITE 17 00:2a:{inode} 0 EOF", "17"),  # another device, the process that the lock names
        ("1: FLOCK  ADVISORY  WRITE 4242 00:2a:{inode} 0 EOF", None),  # another file of the same number
        ("1: POSIX  ADVISORY  WRITE 4242 {device}:{inode} 0 EOF", None),
        ("1: -> FLOCK  ADVISORY  WRITE 4242 {device}:{inode} 0 EOF", None),
    ],
)
def test_the_kernels_list_of_locks_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, who: str | None
) -> None:
    file = tmp_path / "lock"
    file.write_text("17")
    device = f"{os.major(file.stat().st_dev):02x}:{os.minor(file.stat().st_dev):02x}"
    (tmp_path / "locks").write_text(line.format(device=device, inode=file.stat().st_ino) + "\n")
    monkeypatch.setattr(lock, "LOCKS", tmp_path / "locks")
    assert holder(tmp_path) == who


def test_a_system_without_a_list_of_locks_names_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCKS", tmp_path / "none")
    with exclusive(tmp_path):
        assert holder(tmp_path) is None
