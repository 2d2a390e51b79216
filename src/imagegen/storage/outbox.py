"""Outbox: webhook deliveries, created in the transaction of the state that they report."""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, exists, func, insert, select, text, update

from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import Delivery, DeliveryState, WebhookEvent
from imagegen.storage.database import Database
from imagegen.storage.tables import deliveries, tasks

#: Renders the body of a webhook for a task.
Render = Callable[[GenerationTask, WebhookEvent, datetime], str]

#: Pending deliveries; one more is created dead. This bounds the disk and the sender's memory.
MAX_PENDING = 10_000

#: Rows that are read at a time.
CHUNK = 500

_FIELDS = [deliveries.c[name] for name in Delivery.model_fields]
#: All columns except the largest one.
_BRIEF = [field for field in _FIELDS if field is not deliveries.c.payload]
_ID = deliveries.c.id == bindparam("of")
_INSERT = insert(deliveries)
_GET = select(*_FIELDS).where(_ID)
_PENDING = deliveries.c.state == DeliveryState.PENDING.value
_GONE = text("gone = 1")
_IS_GONE = select(deliveries.c.sequence).where(deliveries.c.url == bindparam("at"), _GONE).limit(1)
_COUNT = select(func.count()).select_from(select(deliveries.c.sequence).where(_PENDING).limit(MAX_PENDING).subquery())
#: Ended deliveries are kept as long as their task.
_SWEEP = delete(deliveries).where(
    deliveries.c.task_id == bindparam("task"), ~_PENDING, ~exists().where(tasks.c.id == bindparam("task"))
)


class DeliveryFilter(NamedTuple):
    """Which deliveries are listed; None is any."""

    task_id: str | None = None
    state: DeliveryState | None = None


class Outbox:
    """Stores and finds deliveries. Durable writes raise StorageFull or StorageFailed when the disk refuses."""

    def __init__(self, database: Database, render: Render | None = None) -> None:
        self._database = database
        #: Renders the body of a webhook; without it no deliveries are created.
        self.render = render
        self._tell: Callable[[], None] = _nobody

    # -- creating -----------------------------------------------------------------------------------------------------

    def births(self, told: Sequence[GenerationTask], *, started: bool = False) -> list[Delivery]:
        """The new deliveries for these states of tasks."""
        events = ((task, WebhookEvent.STARTED if started else WebhookEvent(task.status)) for task in told)
        return [born for task, event in events if (born := self._born(task, event)) is not None]

    def _born(self, task: GenerationTask, event: WebhookEvent) -> Delivery | None:
        if self.render is None or task.webhook is None or event not in task.webhook.events:
            return None
        now = datetime.now(UTC)
        return Delivery(
            id=f"msg_{secrets.token_hex(16)}",
            task_id=task.id,
            event=event,
            url=task.webhook.url,
            payload=self.render(task, event, now),
            created_at=now,
        )

    def add(self, born: Sequence[Delivery], connection: Connection) -> None:
        """Write new deliveries. In the database's thread, in the transaction of the tasks' states."""
        for delivery in born:
            connection.execute(_INSERT, _columns(_dead_at_birth(delivery, connection)))

    def on_birth(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever there may be new deliveries."""
        self._tell = tell

    def tell(self) -> None:
        self._tell()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, delivery_id: str) -> Delivery | None:
        row = await self._database.look_up(
            lambda connection: connection.execute(_GET, {"of": delivery_id}).one_or_none()
        )
        return _delivery(row) if row else None

    async def pending(self, after: int) -> list[Delivery]:
        """The next pending deliveries, oldest first, without their payloads."""
        query = select(*_BRIEF).where(_PENDING, deliveries.c.sequence > after).order_by(deliveries.c.sequence)
        rows = await self._database.look_up(lambda connection: connection.execute(query.limit(CHUNK)).all())
        return [_delivery(row) for row in rows]

    async def page(self, wanted: DeliveryFilter, limit: int, before: int | None = None) -> tuple[list[Delivery], bool]:
        """A page of deliveries, newest first, without their payloads, and whether there are more."""
        query = select(*_BRIEF).order_by(deliveries.c.sequence.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(deliveries.c.sequence < before)
        if wanted.task_id is not None:
            query = query.where(deliveries.c.task_id == wanted.task_id)
        if wanted.state is not None:
            query = query.where(deliveries.c.state == wanted.state.value)
        rows = await self._database.search(lambda connection: connection.execute(query).all())
        return [_delivery(row) for row in rows[:limit]], len(rows) > limit

    # -- changing -----------------------------------------------------------------------------------------------------

    async def delivered(self, delivery: Delivery) -> None:
        """Mark a delivery as delivered; its URL is not gone then."""
        opened = update(deliveries).where(deliveries.c.url == delivery.url, _GONE).values(gone=0)

        def work(connection: Connection) -> None:
            connection.execute(update(deliveries).where(deliveries.c.id == delivery.id).values(**_outcome(delivery)))
            connection.execute(opened)
            connection.execute(_SWEEP, {"task": delivery.task_id})

        await self._database.run(work, durable=False)

    async def failed(self, delivery: Delivery, *, gone: bool = False) -> list[str]:
        """Record a failed attempt: the delivery waits for the next one, or is dead. `gone` ends all of its URL.

        Returns the ids of the other deliveries that this ended.
        """
        still = update(deliveries).where(deliveries.c.id == delivery.id, _PENDING)
        others = update(deliveries).where(deliveries.c.url == delivery.url, _PENDING)
        dying = others.values(state=DeliveryState.DEAD.value, error="gone")
        ended = dying.returning(deliveries.c.id, deliveries.c.task_id)

        def work(connection: Connection) -> list[str]:
            connection.execute(still.values(**_outcome(delivery), **({"gone": 1} if gone else {})))
            dead = connection.execute(ended).all() if gone else []
            for task_id in {delivery.task_id, *(row.task_id for row in dead)}:
                connection.execute(_SWEEP, {"task": task_id})
            return [row.id for row in dead]

        return await self._database.run(work, durable=False)

    async def revive(self, delivery_id: str) -> Delivery | None:
        """Make a delivery pending again, with no attempts; None if there is no such delivery."""
        anew = update(deliveries).where(deliveries.c.id == delivery_id)

        def work(connection: Connection) -> Any:
            connection.execute(anew.values(state=DeliveryState.PENDING.value, attempts=0, error=None))
            return connection.execute(_GET, {"of": delivery_id}).one_or_none()

        row = await self._database.run(work)
        return _delivery(row) if row else None

    def forget(self, task_ids: Sequence[str], connection: Connection) -> None:
        """Delete the ended deliveries of deleted tasks. In the database's thread."""
        connection.execute(delete(deliveries).where(deliveries.c.task_id.in_(task_ids), ~_PENDING))


def _nobody() -> None:
    pass


def _dead_at_birth(delivery: Delivery, connection: Connection) -> Delivery:
    """The delivery; dead if its URL is gone or too many are pending."""
    if connection.scalar(_IS_GONE, {"at": delivery.url}) is not None:
        return delivery.evolve(state=DeliveryState.DEAD, error="gone")
    if (connection.scalar(_COUNT) or 0) >= MAX_PENDING:
        return delivery.evolve(state=DeliveryState.DEAD, error="outbox_full")
    return delivery


def _columns(delivery: Delivery) -> dict[str, Any]:
    return delivery.model_dump(mode="json", exclude={"sequence"})


def _outcome(delivery: Delivery) -> dict[str, Any]:
    return delivery.model_dump(mode="json", include={"state", "attempts", "error", "attempted_at"})


def _delivery(row: Any) -> Delivery:
    return Delivery(**row._mapping)
