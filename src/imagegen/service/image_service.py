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
from imagegen.core.tracing import current_traceparent
from imagegen.storage.images import task_of
from imagegen.storage.journal import Claim, Page, TaskFilter
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.manager import Accepted, TaskManager
from imagegen.tasks.outlooks import Plan

#: For this number of tasks, a stream of all events remembers whether its caller may see them.
REMEMBERED = 1000


class ImageService:
    """What a caller can do with tasks. Every method raises TaskNotFound for a task that the caller may not see."""

    def __init__(self, tasks: TaskManager, bus: EventBus) -> None:
        self._tasks = tasks
        self._bus = bus

    # -- making tasks -------------------------------------------------------------------------------------------------

    async def submit(self, who: Owner, draft: TaskDraft, claim: Claim | None = None) -> Accepted:
        """Accept a task. When this returns, the task is on disk and will run.

        With a claim: if an earlier request had the same key and the same content, returns its task; KeyReused if the
        content was another. Raises ImagegenError with the reason why the task is refused.
        """
        draft = _stamped(who, draft)
        if claim is None:
            return Accepted(await self._tasks.submit(draft), repeated=False)
        return await self._tasks.submit_once(draft, claim._replace(owner=who.name))

    async def replay(self, who: Owner, task_id: str) -> Accepted:
        """Accept a task that makes the pictures of another one again.

        Raises NoReceipt, NoInputs, and what submit() raises.
        """
        await self.task(who, task_id)
        return await self.submit(who, await self._tasks.redraft(task_id))

    async def plan(self, who: Owner, draft: TaskDraft) -> Plan:
        """What would happen to a request. Raises ImagegenError if it would be refused now and later."""
        return await self._tasks.plan(_stamped(who, draft))

    # -- reading tasks ------------------------------------------------------------------------------------------------

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
        """The task once it has ended, or as it is after `seconds`, or when the service stops. Raises TaskNotFound."""
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
        """The events of a task with an id above `after`, until it has ended; None after each `silence_s` without one.

        If some of the events may be forgotten, the first one is a Gap. If no event of the task is remembered, the
        stream begins with the event of its present state. If it ends before the task, the last event is StreamClosed.
        Raises TaskNotFound at the first iteration.
        """
        # Subscribe first and read the record afterwards, so that no event is missed.
        with self._bus.subscribe(task_id, after=after, caller=None if who.signed else who) as subscription:
            task = await self.task(who, task_id)
            past = self._bus.history(task_id)
            if past and past[-1].event.final and past[-1].id <= after:
                return  # the caller has received all events
            if (gap := self._bus.gap(after, task_id)) is not None:
                yield gap
            if not past:
                now = Published(self._bus.last_id, self._current(task))
                yield now
                if now.event.final:
                    return
            self._tasks.publish_position(task_id)
            async for published in subscription.with_silence(silence_s):
                yield published
                if published is not None and published.event.final:
                    return

    async def everything(
        self, who: Owner, after: int = 0, silence_s: float | None = None
    ) -> AsyncIterator[list[Published] | None]:
        """All events that the caller may see, as lists of those that have arrived; None after `silence_s` without one.

        They begin after the id `after`, or now if it is 0. If some may be forgotten, the first event is a Gap.
        """
        visible: OrderedDict[str, bool] = OrderedDict()
        with self._bus.subscribe(after=after, caller=who) as subscription:
            if (gap := self._bus.gap(after)) is not None:
                yield [gap]
            async for published in subscription.with_silence(silence_s):
                if published is None:
                    yield None
                    continue
                arrived = [published, *subscription.take_delivered()]
                if not who.sees_all:
                    arrived = [it for it in arrived if await self._may_see(who, it.event, visible)]
                yield arrived

    async def _may_see(self, who: Owner, event: Event, visible: OrderedDict[str, bool]) -> bool:
        """Whether a caller that does not see all tasks may see this event. `visible`: the answers for recent tasks."""
        if not isinstance(event, TaskEvent):
            return not isinstance(event, ConfigChanged | ConfigRejected)
        if event.task_id not in visible:
            if len(visible) >= REMEMBERED:
                visible.popitem(last=False)
            try:
                await self.task(who, event.task_id)
                visible[event.task_id] = True
            except TaskNotFound:
                visible[event.task_id] = False
        return visible[event.task_id]

    def _current(self, task: GenerationTask) -> Event:
        """The event that tells the present state of a task."""
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
        await self._check_may_change(who, task_id)
        return await self._tasks.cancel(task_id)

    async def delete(self, who: Owner, task_id: str) -> None:
        """Delete an ended task with its pictures. Raises TaskNotFinished, StorageFailed."""
        await self._check_may_change(who, task_id)
        await self._tasks.records.delete(task_id)

    async def _check_may_change(self, who: Owner, task_id: str) -> None:
        """Raises Forbidden if the caller may see the task but not change it."""
        if not who.may_change((await self.task(who, task_id)).owner):
            raise Forbidden("Only its own key, or one with the scope admin, may change this task.")


def _stamped(who: Owner, draft: TaskDraft) -> TaskDraft:
    """The draft with the caller as its owner, the limits of the caller's key, which admission checks, and its trace."""
    priority = draft.priority if who.priority_floor is None else max(draft.priority, who.priority_floor)
    return draft.evolve(
        owner=who.name,
        models=who.models,
        budget=who.limits,
        priority=priority,
        traceparent=current_traceparent(),
    )
