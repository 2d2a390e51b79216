"""What a task takes in the journal, apart from its pictures: its record, and its input pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("journal_bytes", sa.Integer, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("input_bytes", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE tasks SET journal_bytes = 3 * length(record)")
    # `stored_bytes` was the sum of both.
    op.execute(
        "UPDATE tasks SET input_bytes = inputs.size, stored_bytes = max(0, stored_bytes - inputs.size) FROM "
        "(SELECT task_id, length(image) + coalesce(length(mask), 0) AS size FROM inputs) AS inputs "
        "WHERE tasks.id = inputs.task_id"
    )
    op.drop_index("ix_tasks_ended_s", "tasks")
    op.create_index("ix_tasks_ended_s", "tasks", ["ended_s", "stored_bytes", "journal_bytes", "input_bytes"])
