"""Idempotency keys, and an index of prompts to search in."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("made_s", sa.Float, nullable=False),
    )
    op.create_index("ix_keys_made_s", "keys", ["made_s"])
    # Trigrams find any part of a word, in any script.
    op.execute("CREATE VIRTUAL TABLE prompts USING fts5(prompt, tokenize='trigram')")
    op.execute(
        "INSERT INTO prompts (rowid, prompt) SELECT sequence, json_extract(record, '$.request.prompt') FROM tasks"
    )
