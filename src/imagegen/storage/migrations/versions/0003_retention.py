"""The model of a task, the bytes of its files and the time of service: for lists by model, and for retention."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("model", sa.String(64), nullable=False, server_default=""))
    op.execute("UPDATE tasks SET model = json_extract(record, '$.model')")
    # Earlier tasks count as tasks without files that ended when the count of the time of service began.
    op.add_column("tasks", sa.Column("stored_bytes", sa.Integer, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("ended_s", sa.Float))
    op.execute("UPDATE tasks SET ended_s = 0 WHERE completed_at IS NOT NULL")
    op.create_index("ix_tasks_model", "tasks", ["model"])
    op.create_index("ix_tasks_ended_s", "tasks", ["ended_s", "stored_bytes"])
    op.drop_index("ix_tasks_completed_at", "tasks")
    op.create_table(
        "service",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.execute("INSERT INTO service (id, seconds) VALUES (1, 0)")
