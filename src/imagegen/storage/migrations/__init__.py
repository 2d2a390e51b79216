"""Alembic migrations of the journal. `upgrade` brings a database of any age up to date."""

from pathlib import Path

from sqlalchemy import Connection

from imagegen.core.errors import StorageFailed


def upgrade(connection: Connection) -> None:
    """Run the missing migrations in the connection's transaction. Raises StorageFailed for a newer database."""
    # Imported here, in the journal's thread, because the import takes a third of a second.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageFailed("It was written by a newer imagegen, and was not changed.") from error
