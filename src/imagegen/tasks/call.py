"""Call: the tasks that share one call of their model on the GPU, and the progress of that call."""

import base64
from collections.abc import Iterator, Sequence

from imagegen.core.events import EventBus, TaskPreview, TaskStep
from imagegen.core.task import GenerationRequest, Pixels, TokensRead, Warnings
from imagegen.tasks.life import LiveTask


class Call:
    """One task, or several similar tasks. It is also the stop flag of the call: set once all of them should stop.

    Belongs to Runner.
    """

    def __init__(self, first: LiveTask, bus: EventBus, now: float) -> None:
        self.members = [first]
        #: What other tasks must have in common with the first one to join it; None: none may join.
        self.likeness = first.likeness  # read now, because it changes once the attempt counts
        #: Whether all pictures are made at once. If not, the call has one task, whose pictures are made one by one.
        self.together = False
        #: Whether the pictures are being made; before that, the model is loaded.
        self.began = False
        #: When the load began; once `began` is set, when the pictures began. Seconds of the manager's clock.
        self.since = now
        #: Steps done, and steps in all.
        self.steps = (0, 0)
        self._bus = bus

    def __repr__(self) -> str:
        stage = "RUNNING" if self.began else "LOADING"
        return (
            f"<Call [{stage}, Model: {self.model}, Tasks: {len(self.members)}, Step: {self.steps[0]}/{self.steps[1]}]>"
        )

    @property
    def first(self) -> LiveTask:
        """The task that was taken from the queue. The others join it once the model is loaded."""
        return self.members[0]

    @property
    def model(self) -> str:
        return self.first.record.model

    @property
    def requests(self) -> list[GenerationRequest]:
        return [member.record.request for member in self.members]

    @property
    def pictures(self) -> int:
        return sum(request.batch_size for request in self.requests)

    def begin(self, now: float) -> None:
        """Note that the pictures are made from now on, and that no further task joins."""
        self.began, self.since = True, now

    def is_set(self) -> bool:
        """Whether all members should stop. The GPU thread reads it between two steps, when no task joins any more."""
        return all(member.told_to_stop for member in self.members)

    def on_step(self, step: int, total: int, preview: bytes = b"") -> None:
        """Publish the step for each member that has not ended.

        If all pictures are made at once, one step of the call is one step of each picture.
        """
        self.steps = (step, total)
        for member in self.members:
            if member.ending:
                continue
            pictures = member.record.request.batch_size if self.together else 1
            task_id, done, of = member.record.id, step * pictures, total * pictures
            self._bus.publish(TaskStep(task_id=task_id, step=done, total=of))
            if preview:
                image = base64.b64encode(preview).decode()
                self._bus.publish(TaskPreview(task_id=task_id, step=done, total=of, image=image))

    def split_remarks(
        self, warnings: Sequence[Warnings], tokens: Sequence[tuple[TokensRead, ...]]
    ) -> Iterator[tuple[LiveTask, Warnings, tuple[TokensRead, ...]]]:
        """Each member that has not ended, with its warnings and tokens. Arguments: an item for each member, or none."""
        for number, member in enumerate(self.members):
            if not member.ending:
                yield member, warnings[number] if warnings else (), tokens[number] if tokens else ()

    def split_pictures(self, images: Sequence[Pixels]) -> Iterator[tuple[LiveTask, tuple[Pixels, ...]]]:
        """Each member that has not ended, with its pictures."""
        begin = 0
        for member in self.members:
            end = begin + member.record.request.batch_size
            if not member.ending:
                yield member, tuple(images[begin:end])
            begin = end
