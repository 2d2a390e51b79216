"""Measurements: the measured times of calls, which the scheduler and the forecasts use."""

from collections.abc import Sequence

from imagegen.core.errors import FailureCode
from imagegen.models.manager import DynamicModelManager
from imagegen.tasks.batching import Payoffs
from imagegen.tasks.call import Call
from imagegen.tasks.estimates import Paces
from imagegen.tasks.scheduling import Costs, Current, Fairness
from imagegen.tasks.tickets import TaskTicket, Work


class Measurements:
    """Learns from the calls of one device. The settings and the resident models are read from its manager."""

    def __init__(self, models: DynamicModelManager) -> None:
        self._models = models
        self._paces = Paces()
        self.payoffs = Payoffs()

    # -- written by Runner --------------------------------------------------------------------------------------------

    def learn(self, call: Call, seconds: float) -> None:
        """Record the seconds of a call that succeeded."""
        model, first, pictures = call.model, call.first.record.request, call.pictures
        if call.together:
            self._paces.learn_together(model, call.requests, seconds)
        else:
            self._paces.learn(model, first, seconds)
        if call.likeness is not None:
            in_call = pictures if call.together else 1
            self.payoffs.learn(model, call.likeness.kind, in_call, seconds / pictures)

    def failed(self, call: Call, code: FailureCode) -> None:
        """Record that a call failed. If it made several pictures, the next calls are smaller."""
        if call.likeness is not None and call.together:
            too_large = code is FailureCode.OUT_OF_MEMORY
            self.payoffs.failed(call.model, call.likeness.kind, call.pictures, too_large=too_large)

    # -- read by the queue, for the scheduler -------------------------------------------------------------------------

    def current(self) -> Current:
        """The resident models."""
        models = [resident.model for resident in self._models.residents]
        return Current(models[0], self._models.served_s, tuple(models[1:])) if models else Current(None)

    def costs(self) -> Costs:
        """The measured seconds of loads and tasks, by model."""
        loads = {model: self._models.switch_seconds(model) for model in self._models.catalog.models}
        return Costs({model: s for model, s in loads.items() if s is not None}, dict(self._paces.work_s))

    def fairness(self) -> Fairness:
        """The settings of the scheduler that are in force."""
        settings = self._models.catalog.settings
        return Fairness(settings.patience_swaps, settings.quantum_swaps, settings.ageing_minutes * 60)

    # -- read by forecasts --------------------------------------------------------------------------------------------

    def expect(self, model: str, work: Work) -> float | None:
        """Seconds that the work takes in a call of its own; None: no size was measured."""
        return self._paces.expect(model, work)

    def at_least(self, model: str, work: Work) -> float | None:
        """Seconds that work takes at the model's best pace; None: fewer than two calls were measured."""
        return self._paces.at_least(model, work)

    def work_s(self, ticket: TaskTicket) -> float | None:
        """Seconds that a waiting task takes in a call of its own; None: unknown."""
        return self._paces.expect(ticket.model, ticket.work)

    def most(self, ticket: TaskTicket) -> int:
        """The most pictures of a call that starts with this ticket. It depends on what has paid so far."""
        model, alike = ticket.model, ticket.likeness
        models = self._models.catalog.models
        if alike is None or model not in models or models[model].max_batch == 1:
            return 1
        if (resident := self._models.resident(model)) is not None:
            self.payoffs.loaded(model, resident.loaded_at)
        return self.payoffs.most(model, alike.kind, models[model].max_batch, ticket.pictures)

    def share(self, ticket: TaskTicket, pictures: int) -> float:
        """The time of one call with this number of pictures, divided by that of as many single calls; 1: unknown."""
        return self.payoffs.share(ticket.model, ticket.likeness.kind, pictures) if ticket.likeness else 1

    def stays(self, model: str, residents: Sequence[str]) -> Sequence[str]:
        """The models of `residents` that a load of `model` leaves in memory."""
        return self._models.stays(model, residents)
