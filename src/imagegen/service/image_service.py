"""ImageService: submit, plan, wait, follow, cancel, replay and delete, for every API and for the command line."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress

from imagegen.core.errors import Forbidden, ImageNotFound, TaskNotFound
from imagegen.core.events import (
    ConfigChanged,
    ConfigRejected,
    Event,
    EventBus,
    Published,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskQueued,
    TaskStarted,
)
from imagegen.core.owner import Owner
from imagegen.core.task import GenerationTask, StoredImage, TaskStatus
from imagegen.storage.images import task_of
from imagegen.storage.journal import Claim, Page, TaskFilter
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.manager import Accepted, TaskManager
from imagegen.tasks.outlooks import Plan

#: Tasks of which a stream of all events remembers whether its caller may see them.
REMEMBERED = 1000


class ImageService:
    """What a caller can do with tasks. A task that its owner may not see raises TaskNotFound in every method."""

    def __init__(self, tasks: TaskManager, bus: EventBus) -> None:
        self._tasks = tasks
        self._bus = bus

    # -- making tasks -------------------------------------------------------------------------------------------------

    async def submit(self, who: Owner, draft: TaskDraft, claim: Claim | None = None) -> Accepted:
        """Accept a task: once this returns it is on disk and will run.

        With a claim, an earlier request with the same key returns its task instead. Raises ImagegenError with the
        reason why the task is refused, KeyReused if the key was used for another request.
        """
        draft = _stamped(who, draft)
        if claim is None:
            return Accepted(await self._tasks.submit(draft), repeated=False)
        return await self._tasks.submit_once(draft, claim._replace(owner=who.name))

    async def replay(self, who: Owner, task_id: str) -> Accepted:
        """Accept a task that makes the pictures of another one again. Raises TaskNotFound, NoReceipt; as submit()."""
        await self.task(who, task_id)
        return await self.submit(who, await self._tasks.redraft(task_id))

    async def plan(self, who: Owner, draft: TaskDraft) -> Plan:
        """What would happen to a request. Raises ImagegenError if it would be refused for ever."""
        return await self._tasks.plan(_stamped(who, draft))

    # -- looking at tasks ---------------------------------------------------------------------------------------------

    async def task(self, who: Owner, task_id: str) -> GenerationTask:
        """A task as it is now. Raises TaskNotFound."""
        task = await self._tasks.records.get(task_id)
        if not who.may_see(task.owner):
            raise TaskNotFound
        return task

    async def picture(self, who: Owner, path: str) -> StoredImage:
        """A picture of a task, by its path. Raises ImageNotFound for any other file."""
        try:
            await self.task(who, task_of(path))
        except TaskNotFound:
            raise ImageNotFound from None
        return await self._tasks.records.picture(path)

    async def tasks(self, who: Owner, wanted: TaskFilter, limit: int, before: int | None = None) -> Page:
        """A page of tasks, newest first; with `before`, those that arrived before that sequence number."""
        if not who.sees_all:
            wanted = wanted._replace(owner=who.name)
        return await self._tasks.records.page(wanted, limit, before)

    async def wait(self, who: Owner, task_id: str, seconds: float) -> GenerationTask:
        """The task when it has ended, or after so many seconds, or when the service stops. Raises TaskNotFound."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                with self._bus.subscribe(task_id) as subscription:
                    if (task := await self.task(who, task_id)).status.finished:
                        return task
                    async for published in subscription:
                        if published.event.final:
                            break
        return await self.task(who, task_id)

    async def events(
        self, who: Owner, task_id: str, after: int = 0, silence_s: float | None = None
    ) -> AsyncIterator[Published | None]:
        """The events of a task with an id above `after`, until it has ended. None: `silence_s` seconds without one.

        If some of them may be forgotten, the first event is a Gap. A task whose events are not remembered begins with
        the event of its present state. If the service stops or the caller is too slow, the last event is StreamClosed.
        Raises TaskNotFound at the first iteration.
        """
        # Subscribe first and read the record afterwards, so that no event is missed.
        with self._bus.subscribe(task_id, after=after) as subscription:
            task = await self.task(who, task_id)
            past = self._bus.history(task_id)
            if past and past[-1].event.final and past[-1].id <= after:
                return  # the caller has all of it
            if (gap := self._bus.gap(after, task_id)) is not None:
                yield gap
            if not past:
                now = Published(self._bus.last_id, self._current(task))
                yield now
                if now.event.final:
                    return
            self._tasks.tell_position(task_id)
            async for published in subscription.with_silence(silence_s):
                yield published
                if published is not None and published.event.final:
                    return

    async def everything(
        self, who: Owner, after: int = 0, silence_s: float | None = None
    ) -> AsyncIterator[list[Published] | None]:
        """The events of all that the caller may see, after the id `after` or from now on: those that have arrived, in
        one list. A Gap comes before them if some may be missing. None: `silence_s` seconds without one.
        """
        seen: OrderedDict[str, bool] = OrderedDict()
        with self._bus.subscribe(after=after) as subscription:
            if (gap := self._bus.gap(after)) is not None:
                yield [gap]
            async for published in subscription.with_silence(silence_s):
                if published is None:
                    yield None
                    continue
                arrived = [published, *subscription.waiting()]
                if not who.sees_all:
                    arrived = [it for it in arrived if await self._shows(it.event, who, seen)]
                yield arrived

    async def _shows(self, event: Event, who: Owner, seen: OrderedDict[str, bool]) -> bool:
        """Whether the caller, who does not see all, may see this event. `seen`: what is known of the latest tasks."""
        if not isinstance(event, TaskEvent):
            return not isinstance(event, ConfigChanged | ConfigRejected)
        if event.task_id not in seen:
            if len(seen) >= REMEMBERED:
                seen.popitem(last=False)
            try:
                await self.task(who, event.task_id)
                seen[event.task_id] = True
            except TaskNotFound:
                seen[event.task_id] = False
        return seen[event.task_id]

    def _current(self, task: GenerationTask) -> Event:
        """The event that leads to the present state of a task."""
        match task.status:
            case TaskStatus.PENDING:
                outlook = self._tasks.outlook(task)
                return TaskQueued(task_id=task.id, position=(outlook.position if outlook else None) or 0)
            case TaskStatus.PROCESSING:
                return TaskStarted(task_id=task.id, attempt=task.attempt)
            case TaskStatus.COMPLETED:
                return TaskCompleted(task_id=task.id, images=task.images)
            case TaskStatus.FAILED:
                assert task.failure is not None
                return TaskFailed(task_id=task.id, failure=task.failure)
            case TaskStatus.CANCELLED:
                return TaskCancelled(task_id=task.id)

    # -- ending tasks -------------------------------------------------------------------------------------------------

    async def cancel(self, who: Owner, task_id: str) -> GenerationTask:
        """Cancel a task: at once while it waits, after the present step while it runs. Raises TaskFinished."""
        await self._own(who, task_id)
        return await self._tasks.cancel(task_id)

    async def delete(self, who: Owner, task_id: str) -> None:
        """Delete an ended task with its pictures. Raises TaskNotFinished, StorageFailed."""
        await self._own(who, task_id)
        await self._tasks.records.delete(task_id)

    async def _own(self, who: Owner, task_id: str) -> None:
        """Raises TaskNotFound if the task does not exist for the caller, Forbidden if it may only see it."""
        if not who.may_change((await self.task(who, task_id)).owner):
            raise Forbidden("Only its own key, or one with the scope admin, may change this task.")


def _stamped(who: Owner, draft: TaskDraft) -> TaskDraft:
    """The draft as the caller's. What its key allows is checked when the draft is admitted."""
    priority = draft.priority if who.priority_floor is None else max(draft.priority, who.priority_floor)
    return draft.evolve(owner=who.name, models=who.models, budget=who.limits, priority=priority)
