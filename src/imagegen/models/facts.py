"""Facts: what is known of each model: measured in its calls, read from its files, and its failures."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pydantic import Field

from imagegen.core.value import Value
from imagegen.gpu.protocol import Failed, Loaded
from imagegen.models.residency import Kills

#: After this number of loads, models that ran out of memory together may be resident together again: perhaps another
#: process held the memory that they needed.
CROWDED_FOR = 100


class Peak(NamedTuple):
    """A picture or a load that needed more memory than the device has."""

    #: Pixels of the picture; 0: it was a load.
    pixels: int
    #: Bytes of device memory that it would have taken.
    size: int


class ModelFacts(Value):
    """What is known of one model. Sizes are bytes of device memory; None: not known yet."""

    #: How long the latest load from disk took.
    load_seconds: float | None = None
    #: How long the latest return from host memory took.
    warm_seconds: float | None = None
    #: The weights that the device must hold at the same time. Counted at a load; before the first, read from the files.
    weights: int | None = None
    #: The parts of the weights that other models may share, by name.
    shared: Mapping[str, int] = Field(default_factory=dict)
    #: The longest side that it can make, in pixels, read from the files; 0: any.
    longest_side: int | None = None
    #: What a picture took at most, in addition to the weights; 0: not measured.
    working: int = 0
    #: The latest picture or load that ran out of memory.
    peak: Peak | None = None
    #: Workers that the model has killed since its last picture.
    kills: Kills = Kills()
    #: Why the latest load failed, or why the model is quarantined.
    error: Failed | None = None


NOTHING_KNOWN = ModelFacts()


class Facts:
    """Holds the facts of all models and is their only writer. Belongs to DynamicModelManager. Event loop only."""

    def __init__(self) -> None:
        self._models: dict[str, ModelFacts] = {}
        #: Models that ran out of memory together, and the number of loads until that is forgotten.
        self._crowds: dict[frozenset[str], int] = {}

    def __repr__(self) -> str:
        return f"<Facts [Models: {len(self._models)}, Crowds: {len(self._crowds)}]>"

    def of(self, model: str) -> ModelFacts:
        """What is known of a model, configured or not."""
        return self._models.get(model, NOTHING_KNOWN)

    @property
    def crowds(self) -> Collection[frozenset[str]]:
        """Models that ran out of memory together."""
        return self._crowds.keys()

    def learn(self, model: str, **facts: Any) -> None:
        """Replace some fields of a model's facts."""
        self._models[model] = self.of(model).evolve(**facts)

    def loaded(self, model: str, answer: Loaded) -> None:
        """Record a load that succeeded."""
        seconds = {"warm_seconds" if answer.warm else "load_seconds": answer.seconds}
        self.learn(model, weights=answer.device_bytes, shared=answer.shared, error=None, **seconds)
        self._crowds = {crowd: loads - 1 for crowd, loads in self._crowds.items() if loads > 1}

    def worked(self, model: str, working_bytes: int) -> None:
        """Record a call that succeeded, which ends a row of kills.

        `working_bytes`: the memory that it took in addition to the weights; 0: not measured.
        """
        self.learn(model, kills=Kills(), working=max(working_bytes, self.of(model).working))

    def failed(self, model: str, pixels: int, failed: Failed) -> None:
        """Record the memory that a load (0 pixels) or a picture needs, if it failed because that is too much."""
        if failed.need_bytes:
            self.learn(model, peak=Peak(pixels, failed.need_bytes))

    def crowded(self, *models: str) -> None:
        """Record that models ran out of memory together."""
        self._crowds[frozenset(models)] = CROWDED_FOR

    def forget(self, model: str) -> None:
        """Forget a model. Its entry was removed, or changed in something that a load depends on."""
        self._models.pop(model, None)
        self._crowds = {crowd: loads for crowd, loads in self._crowds.items() if model not in crowd}
