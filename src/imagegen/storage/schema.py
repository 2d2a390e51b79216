"""The journal's tables, as of the newest migration."""

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    column,
    table,
    text,
)

metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    # Arrival order; SQLite never hands an AUTOINCREMENT value out twice.
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
    # Empty until the end; UTC in ISO 8601, so that text order is time order.
    Column("completed_at", String(32)),
    # The GenerationTask without its sequence, as JSON.
    Column("record", Text, nullable=False),
    Column("model", String(64), nullable=False, server_default=""),
    # Of its files.
    Column("stored_bytes", Integer, nullable=False, server_default="0"),
    # Empty until the end; on the journal's own clock, which nobody sets.
    Column("ended_s", Float),
    # Whose it is: the name of an API key; empty: nobody's in particular.
    Column("owner", String(64), nullable=False, server_default=""),
    Index("ix_tasks_owner", "owner"),
    Index("ix_tasks_status", "status"),
    Index("ix_tasks_model", "model"),
    Index("ix_tasks_ended_s", "ended_s", "stored_bytes"),
    sqlite_autoincrement=True,
)

#: Input pictures of image-to-image tasks that have not ended.
inputs = Table(
    "inputs",
    metadata,
    Column("task_id", String(36), ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("image", LargeBinary, nullable=False),
    Column("mask", LargeBinary),
)

#: One row: how long the service has run, over all its runs, as far as was written down.
service = Table(
    "service",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("seconds", Float, nullable=False),
)

#: The Idempotency-Key of each request, so that a retry makes no second task. Each owner has names of its own.
keys = Table(
    "keys",
    metadata,
    Column("owner", String(64), primary_key=True, server_default=""),
    Column("key", String(255), primary_key=True),
    # Of the request, so that another one under the same key is noticed.
    Column("digest", String(64), nullable=False),
    Column("task_id", String(36), nullable=False),
    # On the journal's own clock.
    Column("made_s", Float, nullable=False),
    Index("ix_keys_made_s", "made_s"),
)

#: An FTS5 index of trigrams, by the task's sequence; not in `metadata`, which knows no virtual tables.
prompts = table("prompts", column("rowid", Integer), column("prompt", Text))

#: The outbox: what receivers of webhooks are to be told, or were.
deliveries = Table(
    "deliveries",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    # No foreign key: what is on its way outlives the record of its task.
    Column("task_id", String(36), nullable=False),
    Column("event", String(16), nullable=False),
    Column("url", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("error", String(32)),
    Column("created_at", String(32), nullable=False),
    Column("attempted_at", String(32)),
    # 1: its receiver has said 410 to it, and nothing has arrived at that URL since.
    Column("gone", Integer, nullable=False, server_default="0"),
    Index("ix_deliveries_task_id", "task_id"),
    Index("ix_deliveries_state", "state"),
    Index("ix_deliveries_gone", "url", sqlite_where=text("gone = 1")),
    sqlite_autoincrement=True,
)
