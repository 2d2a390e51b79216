"""The owner of each task, and idempotency keys that are unique for each owner. Earlier rows have no owner."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("owner", sa.String(64), nullable=False, server_default=""))
    op.create_index("ix_tasks_owner", "tasks", ["owner"])
    # SQLite cannot change a primary key, so the few rows, of one day, are copied to a new table.
    op.rename_table("keys", "older_keys")
    op.drop_index("ix_keys_made_s", "older_keys")
    op.create_table(
        "keys",
        sa.Column("owner", sa.String(64), primary_key=True, server_default=""),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("made_s", sa.Float, nullable=False),
    )
    op.create_index("ix_keys_made_s", "keys", ["made_s"])
    op.execute(
        "INSERT INTO keys (owner, key, digest, task_id, made_s) SELECT '', key, digest, task_id, made_s FROM older_keys"
    )
    op.drop_table("older_keys")
