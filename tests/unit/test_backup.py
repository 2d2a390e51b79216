"""Backups of a data directory: whole or none, and restored into an empty one only."""

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imagegen.core.errors import BackupFailed, BackupInvalid, DataDirInUse, DataDirUnusable
from imagegen.core.task import GenerationTask, TaskStatus
from imagegen.storage import backup as backups
from imagegen.storage.backup import JOURNAL, MANIFEST, MODELS_YAML, Source, back_up, restore
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import TaskFilter, TaskJournal
from imagegen.storage.lock import RESTORING, exclusive
from tests.unit.conftest import grey, insert_one, save, task_of

YAML = "models: {a: {name: A, type: fake}}  # mine\n"


async def filled(data_dir: Path, tasks: int = 3) -> list[GenerationTask]:
    """A data directory with ended tasks, each with two pictures, one waiting task, and a version of models.yaml."""
    journal, images = TaskJournal(data_dir / JOURNAL), ImageStore(data_dir / "images")
    made = [await add(journal, images, number) for number in range(tasks)]
    await insert_one(journal, task_of(tasks))
    await journal.close()
    images.close()
    version = data_dir / "config" / "abc" / "000001.start.yaml"
    version.parent.mkdir(parents=True)
    version.write_text(YAML)
    return made


async def add(journal: TaskJournal, images: ImageStore, number: int) -> GenerationTask:
    task = await insert_one(journal, task_of(number))
    stored = await save(images, task.id, [grey(number, width=8 + number), grey(number + 1)])
    done = task.evolve(status=TaskStatus.COMPLETED, images=stored, completed_at=datetime.now(UTC))
    await journal.update(done)
    return done


def source(tmp_path: Path, **more: Any) -> Source:
    (tmp_path / "models.yaml").write_text(YAML)
    return Source(**({"data_dir": tmp_path / "data", "config": tmp_path / "models.yaml"} | more))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(it.relative_to(folder)): it.read_bytes()
        for it in sorted(folder.rglob("*"))
        if it.is_file() and it.name not in ("lock", MANIFEST)
    }


async def tasks_in(data_dir: Path) -> list[GenerationTask]:
    journal = TaskJournal(data_dir / JOURNAL)
    try:
        return (await journal.page(TaskFilter(), 1000)).tasks
    finally:
        await journal.close()


async def test_a_backup_restored_elsewhere_has_the_same_tasks_and_the_same_bytes(tmp_path: Path) -> None:
    done = await filled(tmp_path / "data")
    made = back_up(source(tmp_path), tmp_path / "backup", "9.9")
    assert (made.imagegen, made.tasks, made.pictures, made.missing, made.models_yaml) == ("9.9", 4, 6, 0, True)
    picture = done[0].images[0].path
    assert (tmp_path / "backup" / "images" / picture).stat().st_ino == (
        tmp_path / "data/images" / picture
    ).stat().st_ino
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "backup.part").exists()
    restored, written = restore(tmp_path / "backup", tmp_path / "new", tmp_path / "etc" / "models.yaml")
    assert (restored, written) == (made, True)
    assert (tmp_path / "etc" / "models.yaml").read_text() == YAML
    kept = files(tmp_path / "backup")
    assert files(tmp_path / "new") == {name: data for name, data in kept.items() if name != MODELS_YAML}
    assert {name: data for name, data in kept.items() if name.startswith("images/")} == {
        name: data for name, data in files(tmp_path / "data").items() if name.startswith("images/")
    }
    assert await tasks_in(tmp_path / "new") == await tasks_in(tmp_path / "data")
    assert (tmp_path / "new" / "images" / picture).stat().st_nlink == 1


async def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (done, *_) = await filled(tmp_path / "data")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    back_up(source(tmp_path), tmp_path / "backup", "1")
    monkeypatch.undo()
    back_up(source(tmp_path), tmp_path / "copied", "1", link=False)
    for folder in ("backup", "copied"):
        copy, it = tmp_path / folder / "images" / done.images[0].path, tmp_path / "data/images" / done.images[0].path
        assert copy.read_bytes() == it.read_bytes()
        assert copy.stat().st_nlink == 1


async def test_pictures_that_are_made_or_deleted_meanwhile_leave_the_backup_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task ends after the pictures were linked; another one is deleted after the journal was copied."""
    done = await filled(tmp_path / "data")
    changes: list[str] = []
    copy_journal: Callable[..., None] = backups._copy_journal

    def copy(journal: Path, to: Path) -> None:
        copy_journal(journal, to)
        changes.append("copied")
        if len(changes) == 1:
            # As retention would delete it, which the first copy of the journal does not have.
            with closing(sqlite3.connect(journal)) as connection:
                connection.execute("DELETE FROM tasks WHERE id = ?", [done[1].id])
                connection.commit()
            for image in done[1].images:
                (tmp_path / "data/images" / image.path).unlink()
                (to.parent / "images" / image.path).unlink()

    monkeypatch.setattr(backups, "_copy_journal", copy)
    late = tmp_path / "data" / "images" / "20260101" / f"{done[0].id}-7.png"
    late.parent.mkdir()
    late.write_bytes(b"of a task that has not ended")
    made = back_up(source(tmp_path), tmp_path / "backup", "1")
    assert (changes, made.tasks, made.pictures, made.missing) == (["copied"] * 2, 3, 4, 0)
    assert not (tmp_path / "backup/images/20260101" / late.name).exists()


async def test_a_picture_that_was_lost_before_is_counted_and_no_reason_to_fail(tmp_path: Path) -> None:
    done = await filled(tmp_path / "data")
    (tmp_path / "data/images" / done[0].images[1].path).unlink()
    made = back_up(source(tmp_path), tmp_path / "backup", "1")
    assert (made.pictures, made.missing) == (5, 1)
    restore(tmp_path / "backup", tmp_path / "new", None)


async def test_with_a_bucket_only_the_spool_is_in_the_backup(tmp_path: Path) -> None:
    done = await filled(tmp_path / "data")
    journal, spool = TaskJournal(tmp_path / "data" / JOURNAL), ImageStore(tmp_path / "data" / "spool")
    task = await insert_one(journal, task_of(9))
    stored = await save(spool, task.id, [grey()])
    await journal.update(task.evolve(status=TaskStatus.PROCESSING, storing=stored))
    await journal.close()
    spool.close()
    made = back_up(source(tmp_path, store="s3://pictures"), tmp_path / "backup", "1")
    assert (made.pictures, made.missing, made.store) == (1, 0, "s3://pictures")
    restore(tmp_path / "backup", tmp_path / "new", None)
    assert (tmp_path / "new" / "spool" / stored[0].path).is_file()
    assert not (tmp_path / "new" / "images" / done[0].images[0].path).exists()


@pytest.mark.parametrize("damage", ["picture", "shorter", "no picture", "journal", "manifest", "cut"])
async def test_a_damaged_backup_is_refused_and_nothing_starts_from_it(tmp_path: Path, damage: str) -> None:
    done = await filled(tmp_path / "data")
    back_up(source(tmp_path), tmp_path / "backup", "1", link=False)
    picture, journal = tmp_path / "backup/images" / done[0].images[0].path, tmp_path / "backup" / JOURNAL
    data = picture.read_bytes()
    match damage:
        case "picture":
            picture.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "shorter":
            picture.write_bytes(data[:-1])
        case "no picture":
            picture.unlink()
        case "journal":
            journal.write_bytes(journal.read_bytes()[:-100] + bytes(100))
        case "manifest":
            (tmp_path / "backup" / MANIFEST).unlink()
        case "cut":
            (tmp_path / "backup" / MANIFEST).write_text("{")
    with pytest.raises(BackupInvalid):
        restore(tmp_path / "backup", tmp_path / "new", None)
    assert not (tmp_path / "new" / JOURNAL).exists()


@pytest.mark.parametrize("there", ["file", "full", "link"])
async def test_a_backup_goes_into_a_new_folder_only(tmp_path: Path, there: str) -> None:
    await filled(tmp_path / "data")
    target = tmp_path / "backup"
    if there == "link":
        target.symlink_to(tmp_path / "data")
    elif there == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").touch()
    with pytest.raises(BackupFailed, match="is not an empty folder"):
        back_up(source(tmp_path), target, "1")
    assert there == "link" or (target.read_text() == "mine" if there == "file" else (target / "mine").exists())


@pytest.mark.parametrize("there", ["link", "full"])
async def test_a_backup_removes_nothing_that_no_backup_has_left(tmp_path: Path, there: str) -> None:
    """In a folder like /tmp somebody else may have made FOLDER.part."""
    await filled(tmp_path / "data")
    part, mine = tmp_path / "backup.part", tmp_path / "home" if there == "link" else tmp_path / "backup.part"
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    if there == "link":
        part.symlink_to(mine)
    with pytest.raises(BackupFailed, match="is not what an interrupted backup has left"):
        back_up(source(tmp_path), tmp_path / "backup", "1")
    assert {it.name for it in mine.iterdir()} == {"letter.txt"}
    assert not (tmp_path / "backup").exists()


async def test_a_data_directory_without_a_journal_has_no_backup(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BackupFailed, match="There is no journal in"):
        back_up(source(tmp_path), tmp_path / "backup", "1")
    assert not (tmp_path / "data" / JOURNAL).exists()


async def test_a_backup_that_fails_or_is_killed_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path / "data")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(backups, "_copy_configuration", fail)
        with pytest.raises(BackupFailed, match="No space left on device"):
            back_up(source(tmp_path), tmp_path / "backup", "1")
    assert not (tmp_path / "backup").exists()
    assert not (tmp_path / "backup.part").exists()
    code = """
import os, signal, sys
from pathlib import Path
from imagegen.storage import backup
backup._check = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
backup.back_up(backup.Source(Path(sys.argv[1]), None), Path(sys.argv[2]), "1")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "backup")]
    killed = await asyncio.to_thread(subprocess.run, command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "backup").exists()
    with pytest.raises(BackupInvalid):
        restore(tmp_path / "backup.part", tmp_path / "new", None)
    assert back_up(source(tmp_path), tmp_path / "backup", "1").tasks == 4
    assert not (tmp_path / "backup.part").exists()


async def test_two_backups_into_one_folder_are_refused(tmp_path: Path) -> None:
    await filled(tmp_path / "data")
    with exclusive(tmp_path / "backup.part"), pytest.raises(DataDirInUse):
        back_up(source(tmp_path), tmp_path / "backup", "1")


async def test_a_restore_needs_an_empty_data_directory_that_no_service_uses(tmp_path: Path) -> None:
    await filled(tmp_path / "data")
    back_up(source(tmp_path), tmp_path / "backup", "1")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    for folder in ("home", "data"):
        before = files(tmp_path / folder)
        with pytest.raises(BackupFailed, match="is not empty"):
            restore(tmp_path / "backup", tmp_path / folder, None)
        assert files(tmp_path / folder) == before
    assert {it.name for it in (tmp_path / "home").iterdir()} == {"letter.txt"}
    with exclusive(tmp_path / "data"), pytest.raises(DataDirInUse):
        restore(tmp_path / "backup", tmp_path / "data", None)
    with exclusive(tmp_path / "new"), pytest.raises(DataDirInUse):
        restore(tmp_path / "backup", tmp_path / "new", None)


async def test_an_interrupted_restore_does_not_start_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path / "data")
    back_up(source(tmp_path), tmp_path / "backup", "1")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backups, "_write_models_yaml", interrupt)
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "backup", tmp_path / "new", None)
    assert (tmp_path / "new" / RESTORING).exists()
    with pytest.raises(DataDirUnusable, match="run `imagegen restore` again"), exclusive(tmp_path / "new"):
        pass
    restore(tmp_path / "backup", tmp_path / "new", None)
    assert await tasks_in(tmp_path / "new") == await tasks_in(tmp_path / "data")
    with exclusive(tmp_path / "new"):
        pass


async def test_models_yaml_is_not_written_over(tmp_path: Path) -> None:
    await filled(tmp_path / "data")
    back_up(source(tmp_path), tmp_path / "backup", "1")
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    _, written = restore(tmp_path / "backup", tmp_path / "new", mine)
    assert (written, mine.read_text()) == (False, "mine")


def edit(backup: Path, **fields: object) -> None:
    """Change the record of the first task, and the manifest so that it fits: a backup from somebody else."""
    with closing(sqlite3.connect(backup / JOURNAL)) as connection:
        sequence, record = connection.execute("SELECT sequence, record FROM tasks ORDER BY sequence").fetchone()
        record = json.dumps(json.loads(record) | fields)
        connection.execute("UPDATE tasks SET record = ? WHERE sequence = ?", [record, sequence])
        connection.commit()
    data, manifest = (backup / JOURNAL).read_bytes(), json.loads((backup / MANIFEST).read_text())
    manifest |= {"journal_bytes": len(data), "journal_sha256": hashlib.sha256(data).hexdigest()}
    (backup / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("path", ["../../planted.png", "20260101/../../../planted.png", "", "a.png"])
async def test_no_name_in_a_journal_leads_out_of_the_data_directory(tmp_path: Path, path: str) -> None:
    await filled(tmp_path / "data")
    backup = tmp_path / "deep" / "backup"
    backup.parent.mkdir()
    back_up(source(tmp_path), backup, "1")
    (tmp_path / "deep" / "planted.png").write_bytes(b"#!")
    edit(backup, images=[{"path": path}])
    with pytest.raises(BackupInvalid, match="a file that is no picture"):
        restore(backup, tmp_path / "new", None)
    assert not (tmp_path / "planted.png").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("record", [{"images": 3}, {"images": ["x"]}, {"storing": [{}]}])
async def test_a_journal_of_the_wrong_form_is_refused_in_one_sentence(
    tmp_path: Path, record: dict[str, object]
) -> None:
    await filled(tmp_path / "data")
    back_up(source(tmp_path), tmp_path / "backup", "1")
    edit(tmp_path / "backup", **record)
    with pytest.raises(BackupInvalid, match="a task cannot be read"):
        restore(tmp_path / "backup", tmp_path / "new", None)


@pytest.mark.parametrize("kind", ["picture", "day", "journal", MODELS_YAML, "version", "pipe"])
async def test_a_link_in_a_backup_brings_no_other_file_into_the_data_directory(tmp_path: Path, kind: str) -> None:
    """Callers could fetch it as a picture, or read it in the configuration."""
    done = await filled(tmp_path / "data")
    backup, secret = tmp_path / "backup", tmp_path / "secret"
    back_up(source(tmp_path), backup, "1", link=False)
    picture = backup / "images" / done[0].images[0].path
    linked = {"picture": picture, "day": picture.parent, "journal": backup / JOURNAL, MODELS_YAML: backup / MODELS_YAML}
    linked |= {"version": backup / "config/abc/000002.start.yaml", "pipe": backup / MANIFEST}
    it = linked[kind]
    if it.exists():
        it.rename(secret)
    else:
        secret.write_text("secret")
    if kind == "pipe":
        os.mkfifo(it)
    else:
        it.symlink_to(secret)
    with pytest.raises(BackupInvalid, match="is a link, or another thing that no backup has"):
        restore(backup, tmp_path / "new", tmp_path / "etc" / MODELS_YAML)
    assert not (tmp_path / "new").exists()


async def test_what_is_copied_has_no_rights_of_the_file_that_it_was(tmp_path: Path) -> None:
    """A backup from elsewhere could have a program that runs with the rights of whoever restores it."""
    done = await filled(tmp_path / "data")
    back_up(source(tmp_path), tmp_path / "backup", "1", link=False)
    for it in (tmp_path / "backup").rglob("*"):
        assert it.is_dir() or it.name == MANIFEST or it.stat().st_mode & 0o077 == 0, it
    picture = tmp_path / "backup" / "images" / done[0].images[0].path
    picture.chmod(0o6777)
    os.utime(picture, (1e9, 1e9))
    (tmp_path / "backup" / JOURNAL).chmod(0o666)
    restore(tmp_path / "backup", tmp_path / "new", None)
    for it in (tmp_path / "new").rglob("*"):
        assert it.is_dir() or it.name == "lock" or it.stat().st_mode & 0o7077 == 0, it
    assert (tmp_path / "new" / "images" / done[0].images[0].path).stat().st_mtime == 1e9


async def test_a_log_beside_the_journal_of_a_backup_is_not_read(tmp_path: Path) -> None:
    """What was checked would not be what is restored, which is the journal alone."""
    await filled(tmp_path / "data")
    backup = tmp_path / "backup"
    back_up(source(tmp_path), backup, "1")
    with closing(sqlite3.connect(backup / JOURNAL)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    edit(backup, images=[{"path": "../../planted.png"}])
    held = sqlite3.connect(backup / JOURNAL)
    with closing(held):
        held.execute("UPDATE tasks SET record = json_remove(record, '$.images')")
        held.commit()
        assert (backup / f"{JOURNAL}-wal").stat().st_size
        with pytest.raises(BackupInvalid, match="a file that is no picture"):
            restore(backup, tmp_path / "new", None)
