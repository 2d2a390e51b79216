"""Outbox: what receivers of webhooks are to be told, written in one transaction with what there is to tell."""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, exists, func, insert, select, text, update

from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import Delivery, DeliveryState, WebhookEvent
from imagegen.storage.database import Database
from imagegen.storage.schema import deliveries, tasks

#: The body that tells of a task.
Render = Callable[[GenerationTask, WebhookEvent, datetime], str]

#: Deliveries that may be on their way at once; one more is dead at birth. It bounds the disk and the sender's memory.
MAX_PENDING = 10_000

#: So many rows are read at a time.
CHUNK = 500

_FIELDS = [deliveries.c[name] for name in Delivery.model_fields]
#: Without the largest.
_BRIEF = [field for field in _FIELDS if field is not deliveries.c.payload]
_ID = deliveries.c.id == bindparam("of")
_INSERT = insert(deliveries)
_GET = select(*_FIELDS).where(_ID)
_PENDING = deliveries.c.state == DeliveryState.PENDING.value
_GONE = text("gone = 1")
_IS_GONE = select(deliveries.c.sequence).where(deliveries.c.url == bindparam("at"), _GONE).limit(1)
_COUNT = select(func.count()).select_from(select(deliveries.c.sequence).where(_PENDING).limit(MAX_PENDING).subquery())
#: What has ended stays as long as its task does.
_SWEEP = delete(deliveries).where(
    deliveries.c.task_id == bindparam("task"), ~_PENDING, ~exists().where(tasks.c.id == bindparam("task"))
)


class DeliveryFilter(NamedTuple):
    """Which deliveries are asked for; None is any."""

    task_id: str | None = None
    state: DeliveryState | None = None


class Outbox:
    """Stores and finds deliveries. What waits for the disk raises StorageFull or StorageFailed when that refuses."""

    def __init__(self, database: Database, render: Render | None = None) -> None:
        """Without `render` nobody is told anything."""
        self._database = database
        self._render = render
        self._tell: Callable[[], None] = _nobody

    # -- beside the records of tasks ----------------------------------------------------------------------------------

    def births(self, told: Sequence[GenerationTask], *, started: bool = False) -> list[Delivery]:
        """What these states of tasks give birth to."""
        events = ((task, WebhookEvent.STARTED if started else WebhookEvent(task.status)) for task in told)
        return [born for task, event in events if (born := self._born(task, event)) is not None]

    def _born(self, task: GenerationTask, event: WebhookEvent) -> Delivery | None:
        if self._render is None or task.webhook is None or event not in task.webhook.events:
            return None
        now = datetime.now(UTC)
        return Delivery(
            id=f"msg_{secrets.token_hex(16)}",
            task_id=task.id,
            event=event,
            url=task.webhook.url,
            payload=self._render(task, event, now),
            created_at=now,
        )

    def add(self, born: Sequence[Delivery], connection: Connection) -> None:
        """Write what was born. In the database's thread, in the transaction of the tasks' states."""
        for delivery in born:
            connection.execute(_INSERT, _columns(_dead_at_birth(delivery, connection)))

    def on_birth(self, tell: Callable[[], None]) -> None:
        """Whom to tell, once, that something new may be there."""
        self._tell = tell

    def tell(self) -> None:
        self._tell()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, delivery_id: str) -> Delivery | None:
        row = await self._database.run(lambda connection: connection.execute(_GET, {"of": delivery_id}).one_or_none())
        return _delivery(row) if row else None

    async def pending(self, after: int) -> list[Delivery]:
        """The next ones of those that are on their way, oldest first, without their payloads."""
        query = select(*_BRIEF).where(_PENDING, deliveries.c.sequence > after).order_by(deliveries.c.sequence)
        rows = await self._database.run(lambda connection: connection.execute(query.limit(CHUNK)).all())
        return [_delivery(row) for row in rows]

    async def page(self, wanted: DeliveryFilter, limit: int, before: int | None = None) -> tuple[list[Delivery], bool]:
        """The newest, or the newest before the one with this sequence, without their payloads; and are there more?"""
        query = select(*_BRIEF).order_by(deliveries.c.sequence.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(deliveries.c.sequence < before)
        if wanted.task_id is not None:
            query = query.where(deliveries.c.task_id == wanted.task_id)
        if wanted.state is not None:
            query = query.where(deliveries.c.state == wanted.state.value)
        rows = await self._database.run(lambda connection: connection.execute(query).all())
        return [_delivery(row) for row in rows[:limit]], len(rows) > limit

    # -- changing -----------------------------------------------------------------------------------------------------

    async def delivered(self, delivery: Delivery) -> None:
        """It has arrived; so its URL is not gone."""
        opened = update(deliveries).where(deliveries.c.url == delivery.url, _GONE).values(gone=0)

        def work(connection: Connection) -> None:
            connection.execute(update(deliveries).where(deliveries.c.id == delivery.id).values(**_outcome(delivery)))
            connection.execute(opened)
            connection.execute(_SWEEP, {"task": delivery.task_id})

        await self._database.run(work, durable=False)

    async def failed(self, delivery: Delivery, *, gone: bool = False) -> list[str]:
        """An attempt failed: it waits for the next one, or is dead. With `gone` its whole URL is.

        The ids of the others that this has ended.
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
        """Send it again, as if for the first time; None if there is no such delivery."""
        anew = update(deliveries).where(deliveries.c.id == delivery_id)

        def work(connection: Connection) -> Any:
            connection.execute(anew.values(state=DeliveryState.PENDING.value, attempts=0, error=None))
            return connection.execute(_GET, {"of": delivery_id}).one_or_none()

        row = await self._database.run(work)
        return _delivery(row) if row else None

    def forget(self, task_ids: Sequence[str], connection: Connection) -> None:
        """With their tasks, those that are not on their way. In the database's thread."""
        connection.execute(delete(deliveries).where(deliveries.c.task_id.in_(task_ids), ~_PENDING))


def _nobody() -> None:
    pass


def _dead_at_birth(delivery: Delivery, connection: Connection) -> Delivery:
    """The delivery, dead if nobody wants it or too many are on their way."""
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
