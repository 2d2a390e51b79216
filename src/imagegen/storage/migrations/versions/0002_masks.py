"""Masks beside the input images."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("inputs", sa.Column("mask", sa.LargeBinary))
