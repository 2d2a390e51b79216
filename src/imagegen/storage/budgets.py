"""Budgets: what each owner's tasks have used in a day, and what is reserved for tasks that have not ended."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from imagegen.core.keys import KeyLimits, LimitState
from imagegen.core.task import GenerationTask
from imagegen.storage.database import Database
from imagegen.storage.tables import reserved, spent, tasks

DAY_S = 86_400

#: Days after which the sums of a day are deleted.
_KEPT_DAYS = 31

_WAITING = select(func.count()).select_from(tasks).where(tasks.c.owner == bindparam("of"), tasks.c.status == "pending")
_SPENT = select(spent.c.images, spent.c.device_s).where(
    spent.c.owner == bindparam("of"), spent.c.day == bindparam("today")
)
_ADD = (
    update(spent)
    .where(spent.c.owner == bindparam("of"), spent.c.day == bindparam("today"))
    .values(images=spent.c.images + bindparam("more"), device_s=spent.c.device_s + bindparam("more_s"))
)
_OLD = delete(spent).where(spent.c.owner == bindparam("of"), spent.c.day < bindparam("first"))
_RESERVE = insert(reserved)
_RELEASE = delete(reserved).where(reserved.c.task_id == bindparam("of")).returning(reserved)


class Used(NamedTuple):
    """What an owner has used today (UTC), with what is reserved; and the number of tasks that wait."""

    queued: int = 0
    images: int = 0
    device_s: float = 0


class Reservation(NamedTuple):
    """What a task will use, and the limits of its owner's key."""

    limits: KeyLimits
    #: Expected seconds of the device. 0: unknown; such a task is accepted as long as any seconds remain.
    device_s: float = 0


def _now() -> datetime:
    return datetime.now(UTC)


class Budgets:
    """Reserves in the transaction that stores a task, and settles in the one that stores its end.

    So requests that arrive together cannot spend a budget twice, and a crash loses no reservation.
    """

    def __init__(self, database: Database, now: Callable[[], datetime] = _now) -> None:
        self._database = database
        #: The wall clock, because budgets are for days of the calendar.
        self.now = now

    async def used(self, owner: str) -> Used:
        """What the owner has used so far."""
        today = self.now().date().isoformat()
        return await self._database.look_up(lambda connection: _used(owner, today, connection))

    # -- in the database's thread -------------------------------------------------------------------------------------

    def reserve(self, task: GenerationTask, wanted: Reservation, connection: Connection) -> LimitState | None:
        """Reserve what a new task will use. If a limit does not allow it, returns that limit and reserves nothing."""
        now = self.now()
        used = _used(task.owner, now.date().isoformat(), connection)
        images, limits = task.request.batch_size, wanted.limits
        for limit in limit_states(limits, used, now):
            need = {"images": images, "device-seconds": wanted.device_s, "queued": 1}[limit.name]
            if limit.remaining <= 0 or need > limit.remaining:
                return limit
        if limits.images_per_day is not None or limits.device_seconds_per_day is not None:
            self._add(task.owner, now, images, wanted.device_s, connection)
            row = {"owner": task.owner, "day": now.date().isoformat(), "images": images, "device_s": wanted.device_s}
            connection.execute(_RESERVE, row | {"task_id": task.id})
        return None

    def settle(self, task: GenerationTask, connection: Connection) -> None:
        """Replace the reservation of an ended task, if it has one, by what it has used.

        The reserved seconds stay if it began and its own were not measured: it was cancelled in a shared call.
        """
        row = connection.execute(_RELEASE, {"of": task.id}).one_or_none()
        if row is None:
            return
        unmeasured_s = row.device_s if task.attempt else 0
        used_s = unmeasured_s if task.device_s is None else task.device_s
        more = {"more": len(task.images) - row.images, "more_s": used_s - row.device_s}
        connection.execute(_ADD, {"of": row.owner, "today": row.day} | more)

    def _add(self, owner: str, now: datetime, images: int, device_s: float, connection: Connection) -> None:
        day = now.date().isoformat()
        if not connection.execute(_ADD, {"of": owner, "today": day, "more": images, "more_s": device_s}).rowcount:
            connection.execute(_OLD, {"of": owner, "first": (now.date() - timedelta(days=_KEPT_DAYS)).isoformat()})
            connection.execute(insert(spent).values(owner=owner, day=day, images=images, device_s=device_s))


def limit_states(limits: KeyLimits, used: Used, now: datetime) -> list[LimitState]:
    """Each limit of a key except its rate, and how much of it remains."""
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    reset_s = max(1, round((midnight - now).total_seconds()))
    states = []
    if limits.queued is not None:
        states.append(LimitState("queued", limits.queued, limits.queued - used.queued))
    if (images := limits.images_per_day) is not None:
        states.append(LimitState("images", images, images - used.images, DAY_S, reset_s))
    if (device_s := limits.device_seconds_per_day) is not None:
        states.append(LimitState("device-seconds", device_s, device_s - used.device_s, DAY_S, reset_s))
    return states


def _used(owner: str, today: str, connection: Connection) -> Used:
    queued = connection.scalar(_WAITING, {"of": owner}) or 0
    row = connection.execute(_SPENT, {"of": owner, "today": today}).one_or_none()
    return Used(queued, *row) if row else Used(queued)
