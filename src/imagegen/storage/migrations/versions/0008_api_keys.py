"""API keys, what each owner has used in a day, the owner of each delivery, and the secret that signs URLs."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("prefix", sa.String(16), nullable=False, unique=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("last_used_at", sa.String(32)),
    )
    op.create_table(
        "spent",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("device_s", sa.Float, nullable=False),
    )
    op.create_table(
        "reserved",
        sa.Column("task_id", sa.String(36), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("device_s", sa.Float, nullable=False),
    )
    op.create_index("ix_tasks_queued", "tasks", ["owner"], sqlite_where=sa.text("status = 'pending'"))
    op.add_column("deliveries", sa.Column("owner", sa.String(64), nullable=False, server_default=""))
    op.add_column("service", sa.Column("key_changes", sa.Integer, nullable=False, server_default="0"))
    op.add_column("service", sa.Column("url_secret", sa.LargeBinary))
