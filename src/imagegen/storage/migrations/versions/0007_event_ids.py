"""The highest event id that may have been used, so that ids grow over restarts even if the clock is set back."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("service", sa.Column("event_ids", sa.BigInteger, nullable=False, server_default="0"))
