"""The journal's tables after the newest migration."""

from sqlalchemy import (
    BigInteger,
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
    # Order of arrival. SQLite never reuses an AUTOINCREMENT value.
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("created_at", String(32), nullable=False),
    # NULL until the task ends. UTC in ISO 8601, so that text order is time order.
    Column("completed_at", String(32)),
    # The GenerationTask as JSON, without its sequence.
    Column("record", Text, nullable=False),
    Column("model", String(64), nullable=False, server_default=""),
    # Bytes of its pictures.
    Column("stored_bytes", Integer, nullable=False, server_default="0"),
    # NULL until the task ends. In seconds of service, which no change of the wall clock affects.
    Column("ended_s", Float),
    # The name of the API key that submitted it; empty: submitted without a key.
    Column("owner", String(64), nullable=False, server_default=""),
    # Bytes that its record, its prompt's index and its webhooks take here, estimated.
    Column("journal_bytes", Integer, nullable=False, server_default="0"),
    # Bytes of its input pictures here; 0 once they are deleted.
    Column("input_bytes", Integer, nullable=False, server_default="0"),
    Index("ix_tasks_owner", "owner"),
    Index("ix_tasks_queued", "owner", sqlite_where=text("status = 'pending'")),
    Index("ix_tasks_status", "status"),
    Index("ix_tasks_model", "model"),
    Index("ix_tasks_ended_s", "ended_s", "stored_bytes", "journal_bytes", "input_bytes"),
    sqlite_autoincrement=True,
)

#: Input pictures of tasks that have not ended, and of completed ones, which can be made again.
inputs = Table(
    "inputs",
    metadata,
    Column("task_id", String(36), ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("image", LargeBinary, nullable=False),
    Column("mask", LargeBinary),
)

#: One row: what is counted or kept over all runs of the service.
service = Table(
    "service",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("seconds", Float, nullable=False),
    # No run has published an event with a higher id.
    Column("event_ids", BigInteger, nullable=False, server_default="0"),
    # Grows with each change of an API key.
    Column("key_changes", Integer, nullable=False, server_default="0"),
    # Signs URLs of pictures; NULL until the first one is signed.
    Column("url_secret", LargeBinary),
)

#: The API keys. Revoked ones stay, so that no new key gets their names and with them their tasks.
api_keys = Table(
    "api_keys",
    metadata,
    Column("name", String(64), primary_key=True),
    # The beginning of the key's text, which may be shown.
    Column("prefix", String(16), nullable=False, unique=True),
    # SHA-256 of the key's text, hexadecimal.
    Column("sha256", String(64), nullable=False),
    # The Key as JSON, without the columns.
    Column("record", Text, nullable=False),
    Column("last_used_at", String(32)),
)

#: The Idempotency-Key of each request, so that a retry makes no second task. Keys are unique for each owner.
keys = Table(
    "keys",
    metadata,
    Column("owner", String(64), primary_key=True, server_default=""),
    Column("key", String(255), primary_key=True),
    # SHA-256 of the request: another request with the same key is refused.
    Column("digest", String(64), nullable=False),
    Column("task_id", String(36), nullable=False),
    # In seconds of service.
    Column("made_s", Float, nullable=False),
    Index("ix_keys_made_s", "made_s"),
)

#: What an owner's tasks of a day (UTC) have used, with what is reserved for tasks that have not ended.
spent = Table(
    "spent",
    metadata,
    Column("owner", String(64), primary_key=True),
    # 2026-11-28: the day on which the tasks were accepted.
    Column("day", String(10), primary_key=True),
    Column("images", Integer, nullable=False),
    # Seconds of the device.
    Column("device_s", Float, nullable=False),
)

#: What is reserved for each task that has not ended, if its key has a budget.
reserved = Table(
    "reserved",
    metadata,
    Column("task_id", String(36), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("day", String(10), nullable=False),
    Column("images", Integer, nullable=False),
    Column("device_s", Float, nullable=False),
)

#: An FTS5 index of trigrams, by the task's sequence. It is not in `metadata`, because SQLAlchemy has no virtual tables.
prompts = table("prompts", column("rowid", Integer), column("prompt", Text))

#: The outbox: webhook deliveries, pending and ended.
deliveries = Table(
    "deliveries",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    # No foreign key: a pending delivery outlives the record of its task.
    Column("task_id", String(36), nullable=False),
    Column("event", String(16), nullable=False),
    Column("url", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("error", String(32)),
    Column("created_at", String(32), nullable=False),
    Column("attempted_at", String(32)),
    # 1: the receiver answered 410, and nothing has been delivered to that URL since.
    Column("gone", Integer, nullable=False, server_default="0"),
    # The owner of the task.
    Column("owner", String(64), nullable=False, server_default=""),
    Index("ix_deliveries_task_id", "task_id"),
    Index("ix_deliveries_state", "state"),
    Index("ix_deliveries_gone", "url", sqlite_where=text("gone = 1")),
    sqlite_autoincrement=True,
)
