"""The events of a task, typed."""

from collections.abc import Mapping
from typing import Any

from imagegen_client.generated.models import (
    Gap,
    TaskCancelled,
    TaskCompleted,
    TaskDownloading,
    TaskFailed,
    TaskLoaded,
    TaskLoading,
    TaskMoved,
    TaskPreview,
    TaskQueued,
    TaskSaved,
    TaskStarted,
    TaskStep,
    TaskStoring,
)

TaskEvent = (
    TaskQueued
    | TaskMoved
    | TaskDownloading
    | TaskStarted
    | TaskLoading
    | TaskLoaded
    | TaskStep
    | TaskPreview
    | TaskStoring
    | TaskSaved
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
    | Gap
)

#: The classes by `type`. `closed` is not among them: the client connects again.
_KINDS: Mapping[str, type[Any]] = {
    "queued": TaskQueued,
    "position": TaskMoved,
    "downloading": TaskDownloading,
    "started": TaskStarted,
    "loading": TaskLoading,
    "loaded": TaskLoaded,
    "step": TaskStep,
    "preview": TaskPreview,
    "storing": TaskStoring,
    "saved": TaskSaved,
    "completed": TaskCompleted,
    "failed": TaskFailed,
    "cancelled": TaskCancelled,
    "gap": Gap,
}


def task_event(data: dict[str, Any]) -> TaskEvent | None:
    """The event with this data; None: one of a type that this version does not know."""
    kind = _KINDS.get(str(data.get("type")))
    event: TaskEvent | None = kind.from_dict(data) if kind is not None else None
    return event


def is_final(event: TaskEvent) -> bool:
    """Whether it is the last event of its task."""
    return isinstance(event, TaskCompleted | TaskFailed | TaskCancelled)
