"""Active: a task that has not ended, as this room passes it on."""

import asyncio
import threading
from dataclasses import dataclass, field

from imagegen.core.task import GenerationTask
from imagegen.tasks.batching import likeness
from imagegen.tasks.queue import Likeness, TaskTicket


@dataclass(slots=True)
class Active:
    """A task that has not ended: its record, how far it is, and how to stop it. Times are on the manager's clock."""

    task: GenerationTask
    #: Accepted at.
    since: float
    #: Must have begun by then.
    deadline: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    #: Whether a stop means "back to the queue" (the service is leaving) and not "cancelled".
    put_back: bool = False
    #: Whether its end is on its way to the disk: nothing may end it again, and nobody has been told yet.
    ending: bool = False
    #: Set once its pictures are not to be waited for any more: it was cancelled, or the service leaves.
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether its listeners were told that the store of pictures is down.
    waits_for_store: bool = False
    #: Whether the present attempt has got as far as making pictures; only then does it count.
    began: bool = False
    #: Since when it is at its present stage: loading, or making pictures.
    stage_since: float = 0
    #: Steps done and steps in all, of the present attempt.
    steps: tuple[int, int] = (0, 0)
    #: Whether a call that it shared has failed, perhaps because of it.
    alone: bool = False
    #: Whether its model's weights were fetched while it waited; if the loader still misses some, it says so.
    fetched: bool = False
    #: The position that it had when it was queued, and the one that its listeners were told last.
    queued_at: int = 0
    told: int = 0

    @property
    def likeness(self) -> Likeness | None:
        """What it must have in common with a companion; None: it runs alone.

        What was attempted before does so, for it may have brought its worker down; a replay does, for the very pixels.
        """
        task = self.task
        return None if self.alone or task.attempt or task.replay else likeness(task.type, task.request, task.previews)

    def ticket(self) -> TaskTicket:
        task = self.task
        place = (task.priority, task.sequence, task.id, task.model, self.since)
        return TaskTicket(*place, self.likeness, task.request.batch_size)

    def is_late(self, now: float) -> bool:
        """Whether it is too late for it to begin; what has begun once is past that."""
        return self.deadline is not None and now >= self.deadline and self.task.attempt == 0
