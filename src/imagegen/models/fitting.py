"""Fitting: compares the memory that models need with the memory that the device has."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import DoesNotFit, EngineError
from imagegen.gpu.protocol import DeviceMemory
from imagegen.loaders.base import Family, Placement
from imagegen.loaders.parts import Parts
from imagegen.models.facts import Facts
from imagegen.models.residency import Need

GIB = 2**30
#: Until the memory of a picture is measured, this share of the model's weights is assumed. Without a GPU it is never
#: measured.
UNMEASURED_WORK = 0.25
ADVICE = "Ask for less, choose a smaller model, or set cpu_offload."


class Fitting:
    """Reads from the files of models what they need, and refuses what can never fit. It does not change the facts."""

    def __init__(self, facts: Facts, folders: Folders, families: Mapping[str, Family]) -> None:
        self._facts = facts
        self._folders = folders
        self._families = families

    def least_bytes(self, model: str, catalog: Catalog, memory: DeviceMemory) -> int | None:
        """The least device memory that a model needs, in bytes, read from its files; None: unknown. Blocks."""
        spec = catalog.model(model)
        placement = Placement("cuda" if memory.gpu_available else "cpu", catalog.settings, self._folders, Parts())
        try:
            return self._families[spec.type].loader.least_bytes(spec, placement)
        except (EngineError, OSError):
            return None  # the load of the model reports it

    def longest_side(self, model: str, catalog: Catalog) -> int | None:
        """The longest side that the model can make, in pixels; 0: any. None: its files are absent or broken. Blocks."""
        spec = catalog.model(model)
        try:
            return self._families[spec.type].loader.longest_side(spec, self._folders)
        except (EngineError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None  # the load of the model reports it

    def prompt_warnings(self, model: str, catalog: Catalog, prompt: str) -> Sequence[str]:
        """Sentences about what pictures of this prompt would ignore of it. Blocks."""
        spec = catalog.model(model)
        try:
            return self._families[spec.type].loader.prompt_warnings(spec, self._folders, prompt)
        except (EngineError, OSError, ValueError):
            return ()  # the load of the model reports it

    def file_bytes(self, model: str, catalog: Catalog) -> int | None:
        """Bytes of the files that a load of the model reads; None: unknown. Blocks."""
        try:
            return sum(file.stat().st_size for file in self.files(model, catalog)) or None
        except (EngineError, OSError):
            return None  # the load of the model reports it

    def files(self, model: str, catalog: Catalog) -> Sequence[Path]:
        """The files that a load of the model reads. Blocks. Raises EngineError or OSError."""
        spec = catalog.model(model)
        return self._families[spec.type].loader.files(spec, self._folders)

    def need(self, model: str, catalog: Catalog, memory: DeviceMemory, floor: int) -> Need | None:
        """The device memory that a resident model takes while it makes a picture; None: unknown.

        `floor`: the bytes that the engine held before the first load. The limit excludes them, and those of other
        processes.
        """
        facts = self._facts.of(model)
        if facts.weights is None or model not in catalog.models:
            return None
        working = facts.working or int(facts.weights * UNMEASURED_WORK)
        limit = memory.capacity(catalog.memory_fraction(model))
        if limit:
            obtainable = memory.free + memory.cached + memory.outside if memory.gpu_available else limit
            limit = max(1, min(limit, obtainable) - floor)
        own = max(0, facts.weights - sum(facts.shared.values()))  # `weights` is the smaller one if parts are offloaded
        return Need(own=own, shared=facts.shared, working=working, limit=limit)

    def check(self, model: str, pixels: int, catalog: Catalog, memory: DeviceMemory) -> None:
        """Raises DoesNotFit if the device can never hold the model, or a picture of this number of pixels by it."""
        capacity = memory.capacity(catalog.memory_fraction(model))
        facts = self._facts.of(model)
        available = f"{memory.gpu_name or 'this machine'} has {_gib(capacity)} for it. {ADVICE}"
        if facts.weights is not None and 0 < capacity < facts.weights:
            raise DoesNotFit(f"The weights of '{model}' take {_gib(facts.weights)}; {available}")
        if facts.peak is not None and 0 < capacity < facts.peak.size and pixels >= facts.peak.pixels:
            raise DoesNotFit(
                f"A picture of {pixels} pixels by '{model}' takes at least {_gib(facts.peak.size)}; {available}"
            )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
