"""Call: the tasks that are on the GPU in one call of their model, and what is told of them while it lasts."""

import base64
from collections.abc import Iterator, Sequence

from imagegen.core.events import EventBus, TaskPreview, TaskStep
from imagegen.core.task import GenerationRequest, Pixels
from imagegen.tasks.active import Active


class Call:
    """One task, or several that are alike. It is a stop flag as well: set once nobody wants its pictures any more."""

    def __init__(self, first: Active, bus: EventBus) -> None:
        self.members = [first]
        #: Of the first one before its attempt counted; None: it runs alone.
        self.likeness = first.likeness
        #: Whether all pictures are made at once; else it is one task, and its pictures come one by one.
        self.together = False
        self._bus = bus

    @property
    def first(self) -> Active:
        """The one that the others joined; it alone is there while the model is loaded."""
        return self.members[0]

    @property
    def model(self) -> str:
        return self.first.task.model

    @property
    def requests(self) -> list[GenerationRequest]:
        return [member.task.request for member in self.members]

    @property
    def pictures(self) -> int:
        return sum(request.batch_size for request in self.requests)

    def is_set(self) -> bool:
        """Read in the GPU's thread between two steps, while nothing but the members' own flags changes."""
        return all(member.stop.is_set() for member in self.members)

    def on_step(self, step: int, total: int, *preview: bytes) -> None:
        """Together, a step is one of each picture."""
        for member in self.members:
            pictures = member.task.request.batch_size if self.together else 1
            member.steps = (step * pictures, total * pictures)
            if not member.ending:
                self._tell(member, *member.steps, *preview)

    def _tell(self, member: Active, step: int, total: int, *preview: bytes) -> None:
        task_id = member.task.id
        self._bus.publish(TaskStep(task_id=task_id, step=step, total=total))
        for jpeg in preview:
            image = base64.b64encode(jpeg).decode()
            self._bus.publish(TaskPreview(task_id=task_id, step=step, total=total, image=image))

    def deal(self, images: Sequence[Pixels]) -> Iterator[tuple[Active, tuple[Pixels, ...]]]:
        """To each member that still wants them, its pictures."""
        begin = 0
        for member in self.members:
            end = begin + member.task.request.batch_size
            if not member.ending:
                yield member, tuple(images[begin:end])
            begin = end
