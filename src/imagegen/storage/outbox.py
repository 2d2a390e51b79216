"""Outbox: webhook deliveries. A delivery is created in the transaction that stores the event that it reports."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam, delete, exists, func, insert, select, text, update

from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import Delivery, DeliveryState, WebhookEvent, host_of
from imagegen.storage.database import Database
from imagegen.storage.tables import deliveries, tasks

#: Renders the body of a webhook for a task.
Render = Callable[[GenerationTask, WebhookEvent, datetime], str]

log = structlog.get_logger(__name__)

#: The most pending deliveries, which bounds the disk space and the sender's memory. A host may have as many as there
#: are free places; a further delivery is created dead. So one host that is down takes at most half of the places, two
#: take a third each, and there is always room for others.
MAX_PENDING = 20_000

#: The number of rows that are read at a time.
CHUNK = 500

# These statements are built once, because building one takes several times as long as running it.
_FIELDS = [deliveries.c[name] for name in Delivery.model_fields]
#: All columns except the largest one.
_BRIEF = [field for field in _FIELDS if field is not deliveries.c.payload]
_ID = deliveries.c.id == bindparam("of")
_INSERT = insert(deliveries)
_GET = select(*_FIELDS).where(_ID)
_PENDING = deliveries.c.state == DeliveryState.PENDING.value
_GONE = text("gone = 1")
_IS_GONE = select(deliveries.c.sequence).where(deliveries.c.url == bindparam("at"), _GONE).limit(1)
_STATE = select(deliveries.c.state).where(_ID)
_NEXT = select(*_BRIEF).where(_PENDING, deliveries.c.sequence > bindparam("after")).order_by(deliveries.c.sequence)
_CHANGE = update(deliveries).where(_ID)
_CHANGE_PENDING = _CHANGE.where(_PENDING)
_AT_URL = update(deliveries).where(deliveries.c.url == bindparam("at"))
_OPEN = _AT_URL.where(_GONE).values(gone=0)
_CLOSE = _AT_URL.where(_PENDING).values(state=DeliveryState.DEAD.value, error="gone").returning(*_BRIEF)
_COUNT = select(deliveries.c.url, func.count()).where(_PENDING).group_by(deliveries.c.url)
# Ended deliveries are kept as long as the record of their task.
_DELETE_ENDED = delete(deliveries).where(
    deliveries.c.task_id == bindparam("task"), ~_PENDING, ~exists().where(tasks.c.id == bindparam("task"))
)


#: What an attempt to deliver ends with. `retried`: there will be another one.
Outcome = Literal["delivered", "retried", "dead"]


class DeliveryFilter(NamedTuple):
    """Which deliveries are listed; None: any."""

    task_id: str | None = None
    state: DeliveryState | None = None
    owner: str | None = None


class _Pending:
    """Counts the pending deliveries of each host."""

    def __init__(self, rows: Iterable[Any]) -> None:
        """`rows`: URLs with their numbers of deliveries."""
        self._hosts: Counter[str] = Counter()
        self._total = 0
        for url, number in rows:
            self.add(host_of(url), number)

    def is_full(self, host: str) -> bool:
        """Whether the host may have no further delivery; see MAX_PENDING."""
        return self._hosts[host] >= MAX_PENDING - self._total

    def add(self, host: str, number: int = 1) -> None:
        """Add a number of deliveries, which may be negative."""
        self._total += number
        self._hosts[host] += number
        if not self._hosts[host]:
            del self._hosts[host]


class Outbox:
    """Stores and finds deliveries. Durable writes raise StorageFull or StorageFailed when the disk refuses.

    The journal creates deliveries in the transactions of its tasks: it calls `new_deliveries` before the transaction,
    `add` in it, and `committed` or `rolled_back` after it.
    """

    def __init__(self, database: Database, render: Render | None = None) -> None:
        self._database = database
        #: Renders the body of a webhook; without it no deliveries are created.
        self.render = render
        self._on_new: Callable[[], None] = lambda: None
        #: Called with the outcome of attempts, and how many have it. A delivery may also die without an attempt.
        self.on_outcome: Callable[[Outcome, int], object] = lambda outcome, number: None
        #: Kept on the event loop, because counting the rows takes longer than the rest of a transaction.
        self._pending: _Pending | None = None

    # -- creating -----------------------------------------------------------------------------------------------------

    async def new_deliveries(self, changed: Sequence[GenerationTask], *, started: bool = False) -> list[Delivery]:
        """The deliveries for the ends of these tasks, or for their starts. Those for a host that is full are dead."""
        events = [(task, WebhookEvent.STARTED if started else WebhookEvent(task.status)) for task in changed]
        wanted = [(task, event) for task, event in events if task.webhook and event in task.webhook.events]
        if self.render is None or not wanted:
            return []
        pending = await self._counted()
        return [self._new(task, event, self.render, pending) for task, event in wanted]

    def _new(self, task: GenerationTask, event: WebhookEvent, render: Render, pending: _Pending) -> Delivery:
        assert task.webhook is not None
        now = datetime.now(UTC)
        new = Delivery(
            id=f"msg_{secrets.token_hex(16)}",
            task_id=task.id,
            event=event,
            url=task.webhook.url,
            owner=task.owner,
            payload=render(task, event, now),
            created_at=now,
        )
        if pending.is_full(new.host):
            return new.evolve(state=DeliveryState.DEAD, error="outbox_full")
        pending.add(new.host)
        return new

    def add(self, new: Sequence[Delivery], connection: Connection) -> list[Delivery]:
        """Write new deliveries and return them. Those for a URL that is gone are dead.

        In the database's thread, in the transaction that stores their tasks.
        """
        added = [_unless_gone(delivery, connection) for delivery in new]
        if added:
            connection.execute(_INSERT, [_columns(delivery) for delivery in added])
        return added

    def committed(self, added: Sequence[Delivery]) -> None:
        """Update the counts after the commit of `add`, and log the deliveries that are dead."""
        self._uncount(delivery for delivery in added if delivery.error == "gone")
        self._tell_dead([delivery for delivery in added if delivery.state is DeliveryState.DEAD])

    def rolled_back(self, new: Sequence[Delivery]) -> None:
        """Update the counts after the transaction of `add` has failed."""
        self._uncount(delivery for delivery in new if delivery.state is DeliveryState.PENDING)

    async def _counted(self) -> _Pending:
        if self._pending is None:
            rows = await self._database.run(lambda connection: connection.execute(_COUNT).all(), durable=False)
            self._pending = self._pending or _Pending(rows)  # another caller may have counted meanwhile
        return self._pending

    def _uncount(self, ended: Iterable[Delivery]) -> None:
        for delivery in ended:
            assert self._pending is not None
            self._pending.add(delivery.host, -1)

    def _tell_dead(self, dead: Sequence[Delivery]) -> None:
        for delivery in dead:
            ids = {"delivery_id": delivery.id, "task_id": delivery.task_id, "host": delivery.host}
            log.warning("delivery_dead", error=delivery.error, attempts=delivery.attempts, **ids)
        if dead:
            self.on_outcome("dead", len(dead))

    def on_new(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there may be new deliveries."""
        self._on_new = callback

    def notify(self) -> None:
        """Report that there may be new deliveries."""
        self._on_new()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, delivery_id: str) -> Delivery | None:
        row = await self._database.look_up(
            lambda connection: connection.execute(_GET, {"of": delivery_id}).one_or_none()
        )
        return _delivery(row) if row else None

    async def pending(self, after: int) -> list[Delivery]:
        """At most CHUNK pending deliveries after this sequence number, oldest first, without their payloads."""
        limited = _NEXT.limit(CHUNK)
        # Read in the thread of writes, so that a delivery whose end is being written is not sent again.
        rows = await self._database.run(
            lambda connection: connection.execute(limited, {"after": after}).all(), durable=False
        )
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
        if wanted.owner is not None:
            query = query.where(deliveries.c.owner == wanted.owner)
        rows = await self._database.search(lambda connection: connection.execute(query).all())
        return [_delivery(row) for row in rows[:limit]], len(rows) > limit

    # -- changing -----------------------------------------------------------------------------------------------------

    async def delivered(self, delivery: Delivery) -> None:
        """Record that a delivery was delivered. Its URL does not count as gone any more."""

        def work(connection: Connection) -> bool:
            waited = connection.scalar(_STATE, {"of": delivery.id}) == DeliveryState.PENDING
            connection.execute(_CHANGE, {"of": delivery.id, **_outcome(delivery)})
            connection.execute(_OPEN, {"at": delivery.url})
            connection.execute(_DELETE_ENDED, {"task": delivery.task_id})
            return waited

        await self._counted()
        if await self._database.run(work, durable=False):
            self._uncount([delivery])
        self.on_outcome("delivered", 1)

    async def failed(self, delivery: Delivery, *, gone: bool = False) -> list[str]:
        """Record a failed attempt. `delivery` has the new state: pending, for a retry, or dead.

        `gone`: the receiver wants no more. All pending deliveries for this URL become dead; returns the ids of these.
        """
        outcome = _outcome(delivery) | ({"gone": 1} if gone else {})

        def work(connection: Connection) -> tuple[bool, list[Delivery]]:
            waited = connection.scalar(_STATE, {"of": delivery.id}) == DeliveryState.PENDING
            connection.execute(_CHANGE_PENDING, {"of": delivery.id, **outcome})
            dead = [_delivery(row) for row in connection.execute(_CLOSE, {"at": delivery.url})] if gone else []
            for task_id in {delivery.task_id, *(other.task_id for other in dead)}:
                connection.execute(_DELETE_ENDED, {"task": task_id})
            return waited, dead

        await self._counted()
        waited, others_dead = await self._database.run(work, durable=False)
        dead = [*([delivery] if waited and delivery.state is DeliveryState.DEAD else []), *others_dead]
        self._uncount(dead)
        self._tell_dead(dead)
        if delivery.state is DeliveryState.PENDING:
            self.on_outcome("retried", 1)
        return [other.id for other in others_dead]

    async def redeliver(self, delivery_id: str) -> Delivery | None:
        """Make a delivery pending again, without attempts. None: there is no such delivery."""
        pending_again = {"state": DeliveryState.PENDING.value, "attempts": 0, "error": None}

        def work(connection: Connection) -> tuple[bool, Any]:
            waited = connection.scalar(_STATE, {"of": delivery_id}) == DeliveryState.PENDING
            connection.execute(_CHANGE, {"of": delivery_id, **pending_again})
            return waited, connection.execute(_GET, {"of": delivery_id}).one_or_none()

        pending = await self._counted()
        waited, row = await self._database.run(work)
        if row is None:
            return None
        delivery = _delivery(row)
        if not waited:
            pending.add(delivery.host)
        return delivery

    def forget(self, task_ids: Sequence[str], connection: Connection) -> None:
        """Delete the ended deliveries of deleted tasks. In the database's thread."""
        connection.execute(delete(deliveries).where(deliveries.c.task_id.in_(task_ids), ~_PENDING))


def _unless_gone(delivery: Delivery, connection: Connection) -> Delivery:
    """The delivery, which is dead if its URL is gone."""
    if connection.scalar(_IS_GONE, {"at": delivery.url}) is None:
        return delivery
    return delivery.evolve(state=DeliveryState.DEAD, error=delivery.error or "gone")


def _columns(delivery: Delivery) -> dict[str, Any]:
    return delivery.model_dump(mode="json", exclude={"sequence"})


def _outcome(delivery: Delivery) -> dict[str, Any]:
    return delivery.model_dump(mode="json", include={"state", "attempts", "error", "attempted_at"})


def _delivery(row: Any) -> Delivery:
    return Delivery(**row._mapping)
