"""Outbox: webhook deliveries, created in the transaction of the state that they report."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, bindparam, delete, exists, func, insert, select, text, update

from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import Delivery, DeliveryState, WebhookEvent, host_of
from imagegen.storage.database import Database
from imagegen.storage.tables import deliveries, tasks

#: Renders the body of a webhook for a task.
Render = Callable[[GenerationTask, WebhookEvent, datetime], str]

log = structlog.get_logger(__name__)

#: Pending deliveries. This bounds the disk and the sender's memory. A host may have as many as are still free, and one
#: more is created dead: one host that is down has half at most, two a third each, and there is always room for others.
MAX_PENDING = 20_000

#: Rows that are read at a time.
CHUNK = 500

# Statements are built once: building one takes several times as long as running it.
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
#: Ended deliveries are kept as long as their task.
_SWEEP = delete(deliveries).where(
    deliveries.c.task_id == bindparam("task"), ~_PENDING, ~exists().where(tasks.c.id == bindparam("task"))
)


class DeliveryFilter(NamedTuple):
    """Which deliveries are listed; None is any."""

    task_id: str | None = None
    state: DeliveryState | None = None
    owner: str | None = None


class _Shares:
    """Counts the pending deliveries of each host."""

    def __init__(self, rows: Iterable[Any]) -> None:
        """`rows`: URLs with numbers of deliveries."""
        self._hosts: Counter[str] = Counter()
        self._total = 0
        for url, number in rows:
            self.add(host_of(url), number)

    def full(self, host: str) -> bool:
        return self._hosts[host] >= MAX_PENDING - self._total

    def add(self, host: str, number: int = 1) -> None:
        """Count more deliveries of the host; fewer with a negative number."""
        self._total += number
        self._hosts[host] += number
        if not self._hosts[host]:
            del self._hosts[host]


class Outbox:
    """Stores and finds deliveries. Durable writes raise StorageFull or StorageFailed when the disk refuses.

    The journal creates deliveries in the transactions of its tasks: `births`, then `add`, then `stored` or `undo`.
    """

    def __init__(self, database: Database, render: Render | None = None) -> None:
        self._database = database
        #: Renders the body of a webhook; without it no deliveries are created.
        self.render = render
        self._tell: Callable[[], None] = _nobody
        #: Kept on the event loop: counting the rows at each birth takes longer than the rest of the transaction.
        self._shares: _Shares | None = None
        #: Deliveries that have died in this run, by their errors.
        self.died: Counter[str] = Counter()

    # -- creating -----------------------------------------------------------------------------------------------------

    async def births(self, told: Sequence[GenerationTask], *, started: bool = False) -> list[Delivery]:
        """The new deliveries for these states of tasks. Those for a host that has its share are dead."""
        events = [(task, WebhookEvent.STARTED if started else WebhookEvent(task.status)) for task in told]
        wanted = [(task, event) for task, event in events if task.webhook and event in task.webhook.events]
        if self.render is None or not wanted:
            return []
        shares = await self._counted()
        return [self._born(task, event, self.render, shares) for task, event in wanted]

    def _born(self, task: GenerationTask, event: WebhookEvent, render: Render, shares: _Shares) -> Delivery:
        assert task.webhook is not None
        now = datetime.now(UTC)
        born = Delivery(
            id=f"msg_{secrets.token_hex(16)}",
            task_id=task.id,
            event=event,
            url=task.webhook.url,
            owner=task.owner,
            payload=render(task, event, now),
            created_at=now,
        )
        if shares.full(born.host):
            return born.evolve(state=DeliveryState.DEAD, error="outbox_full")
        shares.add(born.host)
        return born

    def add(self, born: Sequence[Delivery], connection: Connection) -> list[Delivery]:
        """Write new deliveries and return them; those for a URL that is gone are dead.

        In the database's thread, in the transaction of the tasks' states.
        """
        added = [_unless_gone(delivery, connection) for delivery in born]
        if added:
            connection.execute(_INSERT, [_columns(delivery) for delivery in added])
        return added

    def stored(self, added: Sequence[Delivery]) -> None:
        """The transaction of `add` is committed."""
        self._release(delivery for delivery in added if delivery.error == "gone")
        self._bury(delivery for delivery in added if delivery.state is DeliveryState.DEAD)

    def undo(self, born: Sequence[Delivery]) -> None:
        """The transaction of `add` was undone."""
        self._release(delivery for delivery in born if delivery.state is DeliveryState.PENDING)

    async def _counted(self) -> _Shares:
        if self._shares is None:
            rows = await self._database.run(lambda connection: connection.execute(_COUNT).all(), durable=False)
            self._shares = self._shares or _Shares(rows)  # another caller may have counted meanwhile
        return self._shares

    def _release(self, ended: Iterable[Delivery]) -> None:
        for delivery in ended:
            assert self._shares is not None
            self._shares.add(delivery.host, -1)

    def _bury(self, dead: Iterable[Delivery]) -> None:
        for delivery in dead:
            told = {"delivery_id": delivery.id, "task_id": delivery.task_id, "host": delivery.host}
            log.warning("delivery_dead", error=delivery.error, attempts=delivery.attempts, **told)
            self.died[delivery.error or ""] += 1

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
        limited = _NEXT.limit(CHUNK)
        # Behind the writes before it: a delivery whose end is being written must not be sent again.
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
        """Mark a delivery as delivered; its URL is not gone then."""

        def work(connection: Connection) -> bool:
            waited = connection.scalar(_STATE, {"of": delivery.id}) == DeliveryState.PENDING
            connection.execute(_CHANGE, {"of": delivery.id, **_outcome(delivery)})
            connection.execute(_OPEN, {"at": delivery.url})
            connection.execute(_SWEEP, {"task": delivery.task_id})
            return waited

        await self._counted()
        if await self._database.run(work, durable=False):
            self._release([delivery])

    async def failed(self, delivery: Delivery, *, gone: bool = False) -> list[str]:
        """Record a failed attempt: the delivery waits for the next one, or is dead. `gone` ends all of its URL.

        Returns the ids of the other deliveries that this ended.
        """
        outcome = _outcome(delivery) | ({"gone": 1} if gone else {})

        def work(connection: Connection) -> tuple[bool, list[Delivery]]:
            waited = connection.scalar(_STATE, {"of": delivery.id}) == DeliveryState.PENDING
            connection.execute(_CHANGE_PENDING, {"of": delivery.id, **outcome})
            dead = [_delivery(row) for row in connection.execute(_CLOSE, {"at": delivery.url})] if gone else []
            for task_id in {delivery.task_id, *(other.task_id for other in dead)}:
                connection.execute(_SWEEP, {"task": task_id})
            return waited, dead

        await self._counted()
        waited, others_dead = await self._database.run(work, durable=False)
        dead = [*([delivery] if waited and delivery.state is DeliveryState.DEAD else []), *others_dead]
        self._release(dead)
        self._bury(dead)
        return [other.id for other in others_dead]

    async def revive(self, delivery_id: str) -> Delivery | None:
        """Make a delivery pending again, with no attempts; None if there is no such delivery."""
        anew = {"state": DeliveryState.PENDING.value, "attempts": 0, "error": None}

        def work(connection: Connection) -> tuple[bool, Any]:
            waited = connection.scalar(_STATE, {"of": delivery_id}) == DeliveryState.PENDING
            connection.execute(_CHANGE, {"of": delivery_id, **anew})
            return waited, connection.execute(_GET, {"of": delivery_id}).one_or_none()

        shares = await self._counted()
        waited, row = await self._database.run(work)
        if row is None:
            return None
        delivery = _delivery(row)
        if not waited:
            shares.add(delivery.host)
        return delivery

    def forget(self, task_ids: Sequence[str], connection: Connection) -> None:
        """Delete the ended deliveries of deleted tasks. In the database's thread."""
        connection.execute(delete(deliveries).where(deliveries.c.task_id.in_(task_ids), ~_PENDING))


def _nobody() -> None:
    pass


def _unless_gone(delivery: Delivery, connection: Connection) -> Delivery:
    """The delivery; dead if its URL is gone."""
    if connection.scalar(_IS_GONE, {"at": delivery.url}) is None:
        return delivery
    return delivery.evolve(state=DeliveryState.DEAD, error=delivery.error or "gone")


def _columns(delivery: Delivery) -> dict[str, Any]:
    return delivery.model_dump(mode="json", exclude={"sequence"})


def _outcome(delivery: Delivery) -> dict[str, Any]:
    return delivery.model_dump(mode="json", include={"state", "attempts", "error", "attempted_at"})


def _delivery(row: Any) -> Delivery:
    return Delivery(**row._mapping)
