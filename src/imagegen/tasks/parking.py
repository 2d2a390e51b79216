"""Parking: holds tasks that wait for their model's weights, so that the tasks in the queue can run."""

from collections.abc import Iterator

import structlog

from imagegen.core.errors import Draining, WeightsHere
from imagegen.core.events import EventBus, TaskDownloading
from imagegen.hub.puller import ModelPuller, Pull, PullState
from imagegen.models.manager import DynamicModelManager
from imagegen.tasks.life import LiveTask

log = structlog.get_logger(__name__)


class Parking:
    """Belongs to TaskManager. A parked task is `pending` in the journal, so that a restart enqueues it again."""

    def __init__(self, models: DynamicModelManager, puller: ModelPuller | None, bus: EventBus) -> None:
        """Without a puller no weights are pulled, whatever the catalog says."""
        self._models = models
        self._puller = puller
        self._bus = bus
        #: By model and task id. A model has an entry from its first `park` to its `release`.
        self._parked: dict[str, dict[str, LiveTask]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parked.values()))

    def __repr__(self) -> str:
        return f"<Parking [{', '.join(f'{model}: {len(tasks)}' for model, tasks in self._parked.items())}]>"

    @property
    def models(self) -> set[str]:
        """The models of the parked tasks."""
        return {model for model, tasks in self._parked.items() if tasks}

    @property
    def tasks(self) -> Iterator[LiveTask]:
        """The parked tasks."""
        return (live for tasks in self._parked.values() for live in tasks.values())

    def lacks_weights(self, live: LiveTask) -> bool:
        """Whether the weights of its model must be pulled first."""
        model, catalog = live.record.model, self._models.catalog
        if self._puller is None or live.fetched or not catalog.settings.auto_download:
            return False
        if model not in catalog.models or self._models.resident(model) is not None:
            return False
        return bool(catalog.model(model).hub_files()) and not self._puller.is_here(model)

    def park(self, live: LiveTask) -> bool:
        """Park a task. True: it is the first one of its model, so the caller must call `pull` and `release`."""
        model = live.record.model
        first = model not in self._parked
        live.park()
        log.info("task_parked", **live.record.ids)
        self._parked.setdefault(model, {})[live.record.id] = live
        self._publish(live, self._present_pull(model))
        return first

    async def pull(self, model: str) -> Pull | None:
        """Pull the weights, publish each percent for the parked tasks, and return the ended pull.

        None: the service is draining, and its next run resumes the pull.
        """
        assert self._puller is not None
        try:
            self._puller.start(model)
        except WeightsHere:  # another program has downloaded them
            return Pull(model=model, state=PullState.READY)
        except Draining:
            return None
        published = None
        async for pull in self._puller.follow(model):
            if pull.ended:
                return pull
            if pull.percent != published:
                published = pull.percent
                for live in self._parked[model].values():
                    self._publish(live, pull)
        return None

    def release(self, model: str) -> list[LiveTask]:
        """Remove all tasks of a model, and return them."""
        return list(self._parked.pop(model).values())

    def remove(self, task_id: str) -> bool:
        """Remove a task; False if it is not parked."""
        return any(tasks.pop(task_id, None) is not None for tasks in self._parked.values())

    def remove_all(self) -> list[str]:
        """Remove all tasks; returns their ids."""
        ids = [task_id for tasks in self._parked.values() for task_id in tasks]
        for tasks in self._parked.values():
            tasks.clear()
        return ids

    def pull_of(self, task_id: str) -> Pull | None:
        """The pull that a task waits for; None: it is not parked."""
        return next((self._present_pull(model) for model, tasks in self._parked.items() if task_id in tasks), None)

    def _present_pull(self, model: str) -> Pull:
        pull = self._puller.pull(model) if self._puller else None
        # If the latest pull has ended, `pull` is about to start the next one.
        return pull if pull is not None and not pull.ended else Pull(model=model)

    def _publish(self, live: LiveTask, pull: Pull) -> None:
        event = TaskDownloading(
            task_id=live.record.id, model=pull.model, bytes_done=pull.bytes_done, bytes_total=pull.bytes_total
        )
        self._bus.publish(event)
