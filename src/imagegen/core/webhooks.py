"""Webhooks as values: what a caller wants to be told, and each telling of it."""

from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit

from pydantic import Field

from imagegen.core.value import Value


class WebhookEvent(StrEnum):
    """What a task's receiver can be told."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: What a receiver is told unless its caller says otherwise.
ENDS = (WebhookEvent.COMPLETED, WebhookEvent.FAILED, WebhookEvent.CANCELLED)


class Webhook(Value):
    """Who wants to be told of a task, and what."""

    #: May hold a secret: it is shown to nobody but its receiver.
    url: str = Field(repr=False)
    events: tuple[WebhookEvent, ...] = ENDS

    @property
    def host(self) -> str:
        return host_of(self.url)


class DeliveryState(StrEnum):
    """How far a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Delivery(Value):
    """One event of a task, on its way to a receiver. The same id goes with each attempt."""

    id: str
    #: Order of birth, over restarts; the outbox gives it.
    sequence: int = 0
    task_id: str
    event: WebhookEvent
    url: str = Field(repr=False)
    #: Empty where it is not needed.
    payload: str = Field("", repr=False)
    state: DeliveryState = DeliveryState.PENDING
    #: Those that count; after a replay they are counted anew.
    attempts: int = 0
    #: Why the latest attempt failed: a stable word.
    error: str | None = None
    created_at: datetime
    attempted_at: datetime | None = None

    @property
    def host(self) -> str:
        return host_of(self.url)


def host_of(url: str) -> str:
    """The part of a URL that may be shown."""
    return (urlsplit(url).hostname or "").rstrip(".")
