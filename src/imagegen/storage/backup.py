"""Backups of a data directory: the journal as it was at one moment, and every picture that it names.

A backup is a folder with the same layout as a data directory, and a manifest, which is written last: a folder without
one is not a backup. The service may run meanwhile. Its files of pictures never change, so they are linked where the
file system is the same.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from datetime import UTC, datetime
from errno import EMLINK, ENOTSUP, EPERM, EXDEV
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from imagegen.core.errors import BackupFailed, BackupInvalid
from imagegen.core.value import Value
from imagegen.storage.files import make_private, open_regular, sync_folder, write_whole
from imagegen.storage.images import NAME
from imagegen.storage.lock import LOCK, RESTORING, exclusive

#: The names in a backup, as in a data directory.
JOURNAL, IMAGES, SPOOL, VERSIONS = "imagegen.sqlite3", "images", "spool", "config"
#: The copy of models.yaml, and the manifest.
MODELS_YAML, MANIFEST = "models.yaml", "backup.json"

#: How often the journal is copied again because pictures were deleted while the backup was made.
TRIES = 5

#: Errors of a file that cannot be linked, but perhaps copied.
_NO_LINK = (EXDEV, EPERM, EMLINK, ENOTSUP)

_PIECE = 2**20


class Manifest(Value):
    """What is in a backup."""

    #: The version of imagegen that made it.
    imagegen: str
    made_at: datetime
    #: Bytes and SHA-256 of the journal.
    journal_bytes: int
    journal_sha256: str
    tasks: int
    #: Pictures of these tasks that are in the backup, and the bytes of their files.
    pictures: int
    picture_bytes: int
    #: Pictures of these tasks that were not in the data directory.
    missing: int = 0
    #: The bucket that has the pictures, which are then not in the backup; empty: there is none.
    store: str = ""
    #: Whether models.yaml is in the backup.
    models_yaml: bool = False


class Source(NamedTuple):
    """What is backed up."""

    data_dir: Path
    #: models.yaml; None: the one of the package, which is left out.
    config: Path | None
    #: The bucket of finished pictures; empty: they are in the data directory.
    store: str = ""


class Picture(NamedTuple):
    """A picture that the journal names."""

    #: Its folder, `images` or `spool`, and its name there.
    folder: str
    name: str
    #: 0 and empty: not in records of older versions.
    bytes: int = 0
    sha256: str = ""


# -- making one --------------------------------------------------------------------------------------------------------


def back_up(source: Source, target: Path, version: str, *, link: bool = True) -> Manifest:
    """Make a backup in the new folder `target`, and check it. `version`: of imagegen. `link`: False copies pictures.

    It is made in the folder `target.part` and renamed when it is whole. Raises BackupFailed, and DataDirInUse if
    another backup is being made there.
    """
    if not (source.data_dir / JOURNAL).is_file():
        raise BackupFailed(f"There is no journal in {source.data_dir}.")
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise BackupFailed(f"{target} exists and is not an empty folder; name a new one.")
    part = target.absolute().with_name(f"{target.absolute().name}.part")
    try:
        _refuse_others(part)
        with exclusive(part), ExitStack() as unless_whole:
            unless_whole.callback(shutil.rmtree, part, ignore_errors=True)
            _empty(part)
            manifest = _make(source, part, version, link=link)
            (part / LOCK).unlink()
            write_whole(part / MANIFEST, manifest.model_dump_json(indent=1).encode())
            part.replace(target)
            unless_whole.pop_all()
            sync_folder(target.absolute().parent)
    except OSError as error:
        raise BackupFailed(f"The backup was not made: {error.strerror}: {error.filename or target}.") from error
    except sqlite3.Error as error:
        raise BackupFailed(f"The journal cannot be copied: {error}.") from error
    return manifest


def _refuse_others(part: Path) -> None:
    """Raises BackupFailed unless all of `part` may be removed: an interrupted backup has left it, or it is not there.

    In a folder like /tmp somebody else may have made it, or a link to what must stay.
    """
    if not os.path.lexists(part):
        return
    found = part.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        names = {it.name for it in part.iterdir()}
        if not names or names & {LOCK, JOURNAL}:
            return
    raise BackupFailed(f"{part} is not what an interrupted backup has left; name another folder, or remove it.")


def _empty(part: Path) -> None:
    """Remove what an interrupted backup has left, but the lock."""
    _refuse_others(part)
    for leftover in part.iterdir():
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        elif leftover.name != LOCK:
            leftover.unlink()


def _make(source: Source, part: Path, version: str, *, link: bool) -> Manifest:
    pictures, missing = _copy_tasks(source, part, link=link)
    _copy_configuration(source, part)
    _check(part, pictures)
    for folder, _, _ in os.walk(part):
        sync_folder(Path(folder))
    return Manifest(
        imagegen=version,
        made_at=datetime.now(UTC),
        journal_bytes=(part / JOURNAL).stat().st_size,
        journal_sha256=_sha256(part / JOURNAL),
        tasks=_count(part / JOURNAL),
        pictures=len(pictures),
        picture_bytes=sum((part / it.folder / it.name).stat().st_size for it in pictures),
        missing=missing,
        store=source.store,
        models_yaml=(part / MODELS_YAML).is_file(),
    )


def _copy_tasks(source: Source, part: Path, *, link: bool) -> tuple[list[Picture], int]:
    """Copy the journal and the pictures that it names. Returns those, and how many were missing."""
    folders = [SPOOL] if source.store else [IMAGES, SPOOL]
    # Before the journal is copied, because retention may delete the oldest meanwhile.
    for folder, name in _files_in(source.data_dir, folders):
        _place(source.data_dir / folder / name, part / folder / name, link=link)
    named, here = set[Picture](), set[Picture]()
    for _ in range(TRIES):
        _copy_journal(source.data_dir / JOURNAL, part / JOURNAL)
        named = {it for it in pictures_in(part / JOURNAL) if it.folder in folders}
        here = {it for it in named if _has(source.data_dir, part, it, link=link)}
        if named == here:
            break
    wanted = {(it.folder, it.name) for it in here}
    for folder, name in list(_files_in(part, folders)):
        if (folder, name) not in wanted:  # of a task that has not ended, or was deleted meanwhile
            (part / folder / name).unlink()
    return sorted(here), len(named) - len(here)


def _copy_journal(journal: Path, copy: Path) -> None:
    """Copy the journal as it is at one moment. In one step: in several, each write of the service would restart it."""
    for leftover in copy.parent.glob(f"{copy.name}*"):
        leftover.unlink()
    with closing(sqlite3.connect(journal, timeout=30)) as here, closing(sqlite3.connect(copy)) as there:
        here.execute("PRAGMA query_only = ON")
        here.backup(there)
        there.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    with copy.open("rb+") as file:
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())


def pictures_in(journal: Path) -> Iterator[Picture]:
    """The pictures that a journal names. Those in the spool are of tasks that wait for a bucket.

    Raises BackupInvalid for a name that no picture has, because it could lead out of the folder.
    """
    with _opened(journal) as connection:
        for (record,) in connection.execute("SELECT record FROM tasks"):
            try:
                known: dict[str, Any] = json.loads(record)
                named = [
                    Picture(folder, str(it["path"]), it.get("bytes") or 0, it.get("sha256") or "")
                    for folder, field in ((IMAGES, "images"), (SPOOL, "storing"))
                    for it in known.get(field) or ()
                ]
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise BackupInvalid("The journal is damaged (a task cannot be read).") from None
            if not all(NAME.fullmatch(it.name) for it in named):
                raise BackupInvalid("The journal is damaged (a task has a file that is no picture).")
            yield from named


def _opened(journal: Path) -> closing[sqlite3.Connection]:
    """A journal in a backup, to be read: this file alone, without a log that may be beside it."""
    return closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro&immutable=1", uri=True))


def _count(journal: Path) -> int:
    with _opened(journal) as connection:
        return int(connection.execute("SELECT count(*) FROM tasks").fetchone()[0])


def _has(data_dir: Path, part: Path, picture: Picture, *, link: bool) -> bool:
    """Whether a picture is in the backup; one that is not there yet is placed there."""
    copy = part / picture.folder / picture.name
    return copy.is_file() or _place(data_dir / picture.folder / picture.name, copy, link=link)


def _place(file: Path, copy: Path, *, link: bool) -> bool:
    """Link a file, or copy it. False: there is no such file, perhaps because it has just been deleted."""
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        if link:
            with suppress(FileExistsError):
                os.link(file, copy, follow_symlinks=False)
            return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    with suppress(FileNotFoundError):
        _copy(file, copy)
        return True
    return False


def _copy(file: Path, copy: Path) -> str:
    """Copy a file, with its times, and return the SHA-256 of its bytes. Only its user may read or write the copy."""
    digest = hashlib.sha256()
    with open_regular(file) as source:
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(copy, "xb", opener=_private) as target:
            while piece := source.read(_PIECE):
                digest.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
    # Not its mode and attributes: a backup from elsewhere could have files that run with the rights of their owner.
    times = file.stat()
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    return digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _files_in(home: Path, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pictures in these folders: folder and name, as `images` and `day/file`."""
    for folder in folders:
        for path in (home / folder).glob("*/*"):
            if path.suffix != ".part":
                yield folder, str(path.relative_to(home / folder))


def _copy_configuration(source: Source, part: Path) -> None:
    for version in (source.data_dir / VERSIONS).glob("*/*.yaml"):
        with suppress(FileNotFoundError):  # the oldest version has just been deleted
            _copy(version, part / version.relative_to(source.data_dir))
    if source.config is not None:
        with suppress(FileNotFoundError):
            _copy(source.config, part / MODELS_YAML)


# -- checking and restoring one ----------------------------------------------------------------------------------------


def manifest_of(backup: Path) -> Manifest:
    """The manifest of a backup. Raises BackupInvalid."""
    try:
        with open_regular(backup / MANIFEST) as file:
            return Manifest.model_validate_json(file.read(_PIECE))
    except (OSError, ValidationError):
        raise BackupInvalid(f"{backup} is not a whole backup: {MANIFEST} is missing, or is not one.") from None


def _refuse_links(backup: Path) -> None:
    """Raises BackupInvalid unless a backup has nothing but folders and regular files.

    By a link, a file of this machine would become a picture that callers can fetch. A pipe would never end.
    """
    for folder, folders, names in os.walk(backup):
        for path in (Path(folder, name) for name in (*folders, *names)):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BackupInvalid(f"{path} is a link, or another thing that no backup has.")


def _check(backup: Path, pictures: Sequence[Picture]) -> None:
    """Raises BackupInvalid unless the journal is sound and these pictures are there with their sizes."""
    with _opened(backup / JOURNAL) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise BackupInvalid(f"The journal is damaged ({' '.join(found.split())}).")
    for it in pictures:
        _check_size(it, backup / it.folder / it.name)


def _check_size(picture: Picture, file: Path) -> None:
    try:
        size = file.lstat().st_size
    except OSError:
        raise BackupInvalid(f"The picture {picture.name} is missing.") from None
    if picture.bytes and picture.bytes != size:
        raise BackupInvalid(f"The picture {picture.name} has {size} bytes instead of {picture.bytes}.")


def restore(backup: Path, data_dir: Path, config: Path | None) -> tuple[Manifest, bool]:
    """Put a backup into an empty data directory; returns its manifest, and whether models.yaml was written.

    `config`: where models.yaml is written if there is none; None: nowhere. Every file is copied and compared with the
    backup's journal. What an interrupted restore leaves does not start, and may be restored again.

    Raises BackupInvalid, BackupFailed, DataDirInUse or DataDirUnusable.
    """
    try:
        _refuse_links(backup)
        manifest, journal = manifest_of(backup), backup / JOURNAL
        if journal.stat().st_size != manifest.journal_bytes or _sha256(journal) != manifest.journal_sha256:
            raise BackupInvalid(f"{journal} is not the file that was backed up.")
        named = [it for it in pictures_in(journal) if it.folder == SPOOL or not manifest.store]
        pictures = [it for it in named if (backup / it.folder / it.name).is_file()]
        if len(named) - len(pictures) > manifest.missing:
            raise BackupInvalid(f"{len(named) - len(pictures)} pictures are missing in {backup}.")
        _check(backup, pictures)
    except (OSError, sqlite3.Error) as error:
        raise BackupInvalid(f"{backup} cannot be read: {error}.") from error
    _refuse_unless_empty(data_dir)
    with exclusive(data_dir, restoring=True):
        try:
            _clear(data_dir)
            write_whole(data_dir / RESTORING, f"{backup.absolute()}\n".encode())
            _fill(backup, data_dir, pictures)
            written = _write_models_yaml(backup, config)
            (data_dir / RESTORING).unlink()
            sync_folder(data_dir)
        except OSError as error:
            raise BackupFailed(f"The backup was not restored: {error.strerror}: {error.filename}.") from error
    return manifest, written


def _refuse_unless_empty(data_dir: Path) -> None:
    """Raises BackupFailed if a data directory has anything but a lock and what an interrupted restore has left."""
    try:
        names = {it.name for it in data_dir.iterdir()} if data_dir.exists() else set()
    except OSError as error:
        raise BackupFailed(f"Cannot use the data directory {data_dir}: {error.strerror}.") from error
    if not names - {LOCK} or RESTORING in names:
        return
    with exclusive(data_dir) if LOCK in names else nullcontext():  # raises DataDirInUse, which says more
        raise BackupFailed(f"{data_dir} is not empty; name an empty folder in IMAGEGEN_DATA_DIR or --data-dir.")


def _clear(data_dir: Path) -> None:
    """Remove what an interrupted restore has left."""
    for name in (IMAGES, SPOOL, VERSIONS):
        shutil.rmtree(data_dir / name, ignore_errors=True)
    for file in data_dir.glob(f"{JOURNAL}*"):
        file.unlink()


def _fill(backup: Path, data_dir: Path, pictures: Sequence[Picture]) -> None:
    for it in pictures:
        copy = data_dir / it.folder / it.name
        if copy.exists():  # no two tasks have a picture of one name, but a journal may be edited
            continue
        digest = _copy(backup / it.folder / it.name, copy)
        if it.sha256 and digest != it.sha256:
            raise BackupInvalid(f"The picture {it.name} is damaged: its SHA-256 is not the one in the journal.")
    for version in (backup / VERSIONS).glob("*/*.yaml"):
        _copy(version, data_dir / version.relative_to(backup))
    for folder, _, _ in os.walk(data_dir):
        sync_folder(Path(folder))
    _copy(backup / JOURNAL, data_dir / JOURNAL)  # last: without it there is no task


def _write_models_yaml(backup: Path, config: Path | None) -> bool:
    """Write the copy of models.yaml to its place, unless there is a file."""
    kept = backup / MODELS_YAML
    if config is None or config.exists() or not kept.is_file():
        return False
    make_private(config.parent)
    write_whole(config, kept.read_bytes())
    return True


def _sha256(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
