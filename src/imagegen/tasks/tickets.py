"""TaskTicket: what the scheduler knows of a waiting task."""

from dataclasses import dataclass, field
from typing import NamedTuple

from imagegen.core.task import GenerationRequest

#: The pixels of a picture, its steps, whether guidance runs the model twice, whether there is a negative prompt.
Kind = tuple[int, int, bool, bool]


class Likeness(NamedTuple):
    """What tasks must have in common to share a call, in addition to their model."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    negative_prompt: bool

    @property
    def kind(self) -> Kind:
        """The fields that decide how long a picture takes."""
        return self.width * self.height, self.steps, self.guidance_scale > 1, self.negative_prompt


class Work(NamedTuple):
    """What the time of a task depends on, in addition to its model."""

    #: Pixels of one picture.
    pixels: int
    #: Whether the pictures start from an input picture.
    from_picture: bool
    #: Denoising steps that run for all pictures. With a strength, that share of the requested steps runs.
    steps: float

    @property
    def pixel_steps(self) -> float:
        """Pixels times steps, of all pictures."""
        return self.pixels * self.steps

    @classmethod
    def of(cls, request: GenerationRequest) -> "Work":
        steps = request.steps * request.batch_size * (request.strength or 1)
        return cls(request.size.pixels, request.strength is not None, steps)


@dataclass(frozen=True, slots=True, order=True)
class TaskTicket:
    """A waiting task's place in the queue: by priority, then by arrival."""

    #: Lower runs first.
    priority: int
    #: The order of arrival.
    sequence: int
    task_id: str = field(compare=False)
    model: str = field(compare=False)
    #: When the task was accepted, in seconds of the device's clock.
    since: float = field(compare=False)
    #: What other tasks must have in common with it to share its call; None: it cannot be batched.
    likeness: Likeness | None = field(default=None, compare=False)
    #: The number of pictures that it makes.
    pictures: int = field(default=1, compare=False)
    work: Work = field(default=Work(1, False, 1), compare=False)

    @property
    def place(self) -> tuple[int, int]:
        """The key by which tickets are ordered."""
        return self.priority, self.sequence
