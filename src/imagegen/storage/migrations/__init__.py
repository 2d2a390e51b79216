"""Alembic migrations of the journal. `upgrade` brings a database of any age up to date."""

from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, inspect

from imagegen.core.errors import StorageFailed

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger(__name__)

_NEWER = "It was written by a newer imagegen, and was not changed."


def upgrade(connection: Connection) -> None:
    """Run the missing migrations in the connection's transaction. Raises StorageFailed for a newer database."""
    # Imported here, in the journal's thread, because the import takes a third of a second.
    from alembic import command
    from alembic.util import CommandError

    config, before = _config(), _version(connection)
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageFailed(_NEWER) from error
    if before not in (None, now := _version(connection)):
        log.info("journal_upgraded", before=before, now=now)


def refuse_newer(version: str) -> None:
    """Raises StorageFailed unless a database of this version can be used or migrated."""
    from alembic.script import ScriptDirectory

    if version not in {it.revision for it in ScriptDirectory.from_config(_config()).walk_revisions()}:
        raise StorageFailed(_NEWER)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _version(connection: Connection) -> str | None:
    """The version of a database; None: it is new."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
