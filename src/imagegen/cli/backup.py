"""`imagegen backup` and `imagegen restore`."""

from pathlib import Path
from typing import Annotated

import typer

import imagegen
from imagegen.builtin import default_config
from imagegen.cli.common import (
    EX_CANTCREAT,
    EX_DATAERR,
    EX_TEMPFAIL,
    ConfigOption,
    DataDirOption,
    fail,
    settings_with,
)
from imagegen.core.errors import BackupFailed, BackupInvalid, DataDirInUse, DataDirUnusable
from imagegen.settings import Settings
from imagegen.storage import backup as backups
from imagegen.storage.backup import MODELS_YAML, Manifest, Source


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder, for this backup alone.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy all pictures; do not link them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is in it as JSON.")] = False,
) -> None:
    """Back up the tasks, keys, pictures and models.yaml. The service may run meanwhile.

    The backup has prompts and secrets. It is made in FOLDER.part, and renamed when it is whole and was checked.
    """
    settings = settings_with(config=config, data_dir=data_dir)
    source = Source(settings.data_dir, _config_of(settings), settings.store)
    try:
        made = backups.back_up(source, folder, imagegen.__version__, link=not copy)
    except DataDirInUse:
        fail(f"Another backup is being made in {folder}.", EX_TEMPFAIL)
    except (BackupFailed, DataDirUnusable) as error:
        fail(error.detail, EX_CANTCREAT)
    except BackupInvalid as error:
        fail(f"The backup was not made: {error.detail}", EX_DATAERR)
    if made.missing:
        typer.echo(f"{made.missing} pictures that the journal names are not in {settings.data_dir}.", err=True)
    typer.echo(made.model_dump_json() if as_json else f"{folder}: {_summary(made)}")


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup that `imagegen backup` has made.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Put a backup into the data directory, which must be empty. The service must not run.

    Every picture is compared with its SHA-256 in the journal. models.yaml is written to where IMAGEGEN_CONFIG or
    --config says, unless there is a file.
    """
    settings = settings_with(config=config, data_dir=data_dir)
    try:
        made, written = backups.restore(folder, settings.data_dir, _config_of(settings))
    except DataDirInUse as error:
        fail(error.detail, EX_TEMPFAIL)
    except (BackupFailed, DataDirUnusable) as error:
        fail(error.detail, EX_CANTCREAT)
    except BackupInvalid as error:
        fail(error.detail, EX_DATAERR)
    typer.echo(f"{settings.data_dir}: {_summary(made)}")
    if made.models_yaml:
        kept = f"models.yaml stays in the backup: {folder / MODELS_YAML}"
        typer.echo(f"{settings.config} is the one of the backup." if written else kept)


def _config_of(settings: Settings) -> Path | None:
    """models.yaml; None: it is the one of the package."""
    return None if settings.config == default_config() else settings.config


def _summary(made: Manifest) -> str:
    pictures = f"{made.pictures} pictures ({made.picture_bytes / 2**20:.1f} MiB)"
    where = f"pictures in {made.store}" if made.store else pictures
    journal = f"journal {made.journal_bytes / 2**20:.1f} MiB"
    return f"{made.tasks} tasks, {where}, {journal}, made {made.made_at:%Y-%m-%d %H:%M} UTC"
