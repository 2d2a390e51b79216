"""Webhooks as values: which events a receiver wants, and each delivery."""

import base64
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from imagegen.core.value import Value


def _signs(secret: SecretStr) -> SecretStr:
    """Check the form that Standard Webhooks prescribes: `whsec_` and 24 to 64 bytes in base64."""
    text = secret.get_secret_value()
    try:
        size = len(base64.b64decode(text.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not text.startswith("whsec_") or not 24 <= size <= 64:
        raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
    return secret


#: What signs webhooks: `whsec_...`.
WebhookSecret = Annotated[SecretStr, AfterValidator(_signs)]


class WebhookEvent(StrEnum):
    """The events of a task that a webhook can deliver."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: The events that are delivered by default.
ENDS = (WebhookEvent.COMPLETED, WebhookEvent.FAILED, WebhookEvent.CANCELLED)


class Webhook(Value):
    """The receiver of a task's webhooks, and the events that it wants."""

    #: It may contain a secret, so no response and no log line shows it.
    url: str = Field(repr=False)
    events: tuple[WebhookEvent, ...] = ENDS
    #: The API that the task was submitted by, which decides the form of the bodies.
    api: Literal["native", "replicate"] = "native"
    #: The address under which the caller reached the service, for bodies with whole URLs.
    base_url: str = ""

    @property
    def host(self) -> str:
        return host_of(self.url)


class DeliveryState(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Delivery(Value):
    """One event of a task for one receiver. Every attempt carries the same id."""

    id: str
    #: Order of creation, also over restarts. The outbox assigns it.
    sequence: int = 0
    task_id: str
    event: WebhookEvent
    url: str = Field(repr=False)
    #: The owner of its task.
    owner: str = ""
    #: Empty if the delivery was read without its payload.
    payload: str = Field("", repr=False)
    state: DeliveryState = DeliveryState.PENDING
    #: Attempts since it was created or last replayed.
    attempts: int = 0
    #: Why the latest attempt failed: a stable code.
    error: str | None = None
    created_at: datetime
    attempted_at: datetime | None = None

    @property
    def host(self) -> str:
        return host_of(self.url)


def host_of(url: str) -> str:
    """The part of a URL that may be shown."""
    return (urlsplit(url).hostname or "").rstrip(".")
