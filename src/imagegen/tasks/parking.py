"""Parking: tasks that wait for their model's weights beside the queue, while the others go on."""

import asyncio
from collections.abc import Awaitable, Callable

from imagegen.core.errors import Draining, WeightsHere
from imagegen.core.events import EventBus, TaskDownloading
from imagegen.core.task import Failure
from imagegen.hub.puller import ModelPuller, Pull, PullState
from imagegen.models.manager import DynamicModelManager
from imagegen.tasks.active import Active

#: What becomes of a task whose weights came (None) or did not.
GoOn = Callable[[Active, Failure | None], Awaitable[None]]


class Parking:
    """Owned by TaskManager. A task stays `pending` here, in the journal as well: after a restart it comes again."""

    def __init__(self, models: DynamicModelManager, puller: ModelPuller | None, bus: EventBus, go_on: GoOn) -> None:
        """Without a puller nothing is fetched, whatever the catalog says."""
        self._models = models
        self._puller = puller
        self._bus = bus
        self._go_on = go_on
        #: By model and id; each model has one `_await_weights`.
        self._parked: dict[str, dict[str, Active]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._parked.values()))

    def all(self) -> list[Active]:
        return [active for waiting in self._parked.values() for active in waiting.values()]

    def lacks_weights(self, active: Active) -> bool:
        """Whether its model is to be fetched first."""
        model, catalog, resident = active.task.model, self._models.catalog, self._models.current
        if self._puller is None or active.fetched or not catalog.settings.auto_download:
            return False
        if model not in catalog.models or (resident is not None and resident.model == model):
            return False
        return bool(catalog.model(model).hub_files()) and not self._puller.is_here(model)

    def park(self, active: Active, beside: asyncio.TaskGroup) -> None:
        model = active.task.model
        if model not in self._parked:
            self._parked[model] = {}
            beside.create_task(self._await_weights(model))
        self._parked[model][active.task.id] = active
        self._tell(active, self._pull_of(model))

    def download(self, task_id: str) -> Pull | None:
        """The download that a parked task waits for."""
        return next((self._pull_of(model) for model, waiting in self._parked.items() if task_id in waiting), None)

    def remove(self, task_id: str) -> bool:
        """Take a task out; False if it is not here."""
        return any(waiting.pop(task_id, None) is not None for waiting in self._parked.values())

    def remove_all(self) -> list[str]:
        """Take all tasks out; their ids."""
        ids = [active.task.id for active in self.all()]
        for waiting in self._parked.values():
            waiting.clear()
        return ids

    def _pull_of(self, model: str) -> Pull:
        """The download that its parked tasks wait for; an earlier one, which has ended, is none of theirs."""
        pull = self._puller.pull(model) if self._puller else None
        return pull if pull is not None and not pull.ended else Pull(model=model)

    async def _await_weights(self, model: str) -> None:
        """Have the weights fetched, tell every percent, and let the model's tasks go on when that has ended."""
        assert self._puller is not None
        try:
            self._puller.start(model)
        except WeightsHere:  # somebody else brought them
            await self._release(model, Pull(model=model, state=PullState.READY))
            return
        except Draining:  # the next start of the service goes on
            return
        told = None
        async for pull in self._puller.follow(model):
            if pull.ended:
                await self._release(model, pull)
                return
            if pull.percent != told:
                told = pull.percent
                for active in self._parked[model].values():
                    self._tell(active, pull)

    def _tell(self, active: Active, pull: Pull) -> None:
        event = TaskDownloading(
            task_id=active.task.id, model=pull.model, bytes_done=pull.bytes_done, bytes_total=pull.bytes_total
        )
        self._bus.publish(event)

    async def _release(self, model: str, pull: Pull) -> None:
        """Back to their old places; or they end as the download did."""
        for active in self._parked.pop(model).values():
            active.fetched = pull.state is PullState.READY
            await self._go_on(active, None if active.fetched else pull.failure)
