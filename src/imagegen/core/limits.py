"""Limits that a process setting and a field of models.yaml have in common, each written once."""

from typing import Annotated

from pydantic import Field

#: Tasks that may wait.
MaxQueue = Annotated[int, Field(ge=1, le=100_000)]
#: Days after which ended tasks and their files are deleted; 0 keeps them.
RetentionDays = Annotated[float, Field(ge=0, le=36_500)]
#: Ended tasks that are kept; 0 keeps all.
RetentionTasks = Annotated[int, Field(ge=0, le=100_000_000)]
#: GiB of pictures that are kept; 0 keeps all.
RetentionGb = Annotated[float, Field(ge=0, le=1_000_000)]
