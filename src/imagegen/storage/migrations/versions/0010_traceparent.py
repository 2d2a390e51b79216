"""Records have a `traceparent`, which older programs refuse: they must not open this journal. No table changes."""

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    pass
