"""Limits that a process setting and a field of models.yaml have in common, each written once."""

from typing import Annotated, Literal

from pydantic import Field

#: Tasks that may wait.
MaxQueue = Annotated[int, Field(ge=1, le=100_000)]
#: Pixels times steps times pictures of one task, as long as nobody knows how long its model takes.
MaxPixelSteps = Annotated[int, Field(ge=1_000_000, le=10**15)]
#: The default of MaxPixelSteps: one picture of 2048x2048 with the most steps, or eight with 29 steps.
MAX_PIXEL_STEPS = 10**9
#: Days after which ended tasks and their files are deleted; 0 keeps them.
RetentionDays = Annotated[float, Field(ge=0, le=36_500)]
#: Ended tasks that are kept; 0 keeps all.
RetentionTasks = Annotated[int, Field(ge=0, le=100_000_000)]
#: GiB; 0 keeps all.
RetentionGb = Annotated[float, Field(ge=0, le=1_000_000)]
#: GiB of pictures that are kept; `auto`: a quarter of their disk, and all of those in a bucket.
RetentionOfPictures = RetentionGb | Literal["auto"]
