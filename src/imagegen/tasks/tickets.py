"""TaskTicket: what the order of tasks depends on, for each waiting task."""

from dataclasses import dataclass, field
from typing import NamedTuple

from imagegen.core.task import GenerationRequest

#: Pixels of a picture, steps, whether guidance runs the model twice, whether there is a negative prompt.
Kind = tuple[int, int, bool, bool]


class Likeness(NamedTuple):
    """What tasks must have in common, beside their model, to share a call."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    negative_prompt: bool

    @property
    def kind(self) -> Kind:
        """The part of it that decides how long a picture takes."""
        return self.width * self.height, self.steps, self.guidance_scale > 1, self.negative_prompt


class Work(NamedTuple):
    """What the time of a task depends on, beside its model."""

    #: Of one picture.
    pixels: int
    #: Whether it begins with a picture.
    from_picture: bool
    #: Denoising steps of all pictures. With a strength, only that share of them runs.
    steps: float

    @classmethod
    def of(cls, request: GenerationRequest) -> "Work":
        steps = request.steps * request.batch_size * (request.strength or 1)
        return cls(request.size.pixels, request.strength is not None, steps)


@dataclass(frozen=True, slots=True, order=True)
class TaskTicket:
    """A waiting task's place in the queue: by priority, then by arrival."""

    #: Lower runs first.
    priority: int
    #: Arrival order.
    sequence: int
    task_id: str = field(compare=False)
    model: str = field(compare=False)
    #: When the task was accepted, in seconds of the clock that `choose` is given.
    since: float = field(compare=False)
    #: What a companion in its call must have in common with it; None: it cannot be batched.
    likeness: Likeness | None = field(default=None, compare=False)
    #: The number of pictures that it makes.
    pictures: int = field(default=1, compare=False)
    work: Work = field(default=Work(1, False, 1), compare=False)

    @property
    def place(self) -> tuple[int, int]:
        """The key by which tickets are ordered."""
        return self.priority, self.sequence
