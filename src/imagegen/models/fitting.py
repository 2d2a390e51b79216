"""Fitting: what models need, measured or read from their files, against what the device has."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import DoesNotFit, EngineError
from imagegen.gpu.protocol import DeviceMemory, Failed
from imagegen.loaders import FAMILIES
from imagegen.loaders.base import Family, Placement
from imagegen.loaders.parts import Parts
from imagegen.models.residency import Need

GIB = 2**30
#: Of a model's weights: the share that a picture is taken to need beside them until it was measured. Where there is no
#: device it is never measured.
UNMEASURED_WORK = 0.25
#: Loads after which models that ran out of memory together may be resident together again: another process may have
#: had the rest.
CROWDED_FOR = 100
ADVICE = "Ask for less, choose a smaller model, or set cpu_offload."


class Fitting:
    """Remembers what each model took, and tells what can never fit before it is tried."""

    def __init__(self, folders: Folders, families: Mapping[str, Family] = FAMILIES) -> None:
        self._folders = folders
        self._families = families
        #: Bytes of a model's weights that the device must hold at one time, counted after its load or read from its
        #: files.
        self._weights: dict[str, int] = {}
        #: Pixels of a picture that was too large for the device, and the bytes that it would have taken.
        self._peaks: dict[str, tuple[int, int]] = {}
        #: By model: bytes of its parts that others may share, by name.
        self._shared: dict[str, Mapping[str, int]] = {}
        #: Bytes beside the weights that its largest picture took.
        self._working: dict[str, int] = {}
        #: Models that ran out of memory together, whatever was known of their needs, and loads until it is forgotten.
        self._crowds: dict[frozenset[str], int] = {}

    def loaded(self, model: str, device_bytes: int, shared: Mapping[str, int] = MappingProxyType({})) -> None:
        """`device_bytes`: what the device holds of its weights; `shared`: parts that others may share."""
        self._weights[model] = device_bytes
        self._shared[model] = shared
        self._crowds = {crowd: loads - 1 for crowd, loads in self._crowds.items() if loads > 1}

    def worked(self, model: str, working_bytes: int) -> None:
        """A picture took so many bytes beside the weights; 0: not measured."""
        self._working[model] = max(working_bytes, self._working.get(model, 0))

    def failed(self, model: str, pixels: int, failed: Failed) -> None:
        """It ran out of memory; 0 pixels: already at its load."""
        if failed.need_bytes:
            self._peaks[model] = (pixels, failed.need_bytes)

    def crowded(self, *models: str) -> None:
        """They ran out of memory together."""
        self._crowds[frozenset(models)] = CROWDED_FOR

    @property
    def crowds(self) -> Collection[frozenset[str]]:
        """Models that ran out of memory together."""
        return self._crowds.keys()

    def forget(self, model: str) -> None:
        """Its entry is another one now."""
        self._crowds = {crowd: loads for crowd, loads in self._crowds.items() if model not in crowd}
        for known in (self._weights, self._peaks, self._shared, self._working):
            known.pop(model, None)

    def knows(self, model: str) -> bool:
        """Whether there is nothing left to learn without running it."""
        return model in self._weights

    def weigh(self, model: str, catalog: Catalog, memory: DeviceMemory) -> None:
        """Learn from its files what a model needs that was not loaded yet. Blocks."""
        spec = catalog.model(model)
        placement = Placement("cuda" if memory.gpu_available else "cpu", catalog.settings, self._folders, Parts())
        try:
            least = self._families[spec.type].loader.least_bytes(spec, placement)
        except (EngineError, OSError):
            return  # its load will say what is wrong
        if least is not None:
            self._weights[model] = least

    def file_bytes(self, model: str, catalog: Catalog) -> int | None:
        """Bytes of the files that a load of the model reads; None: unknown. Blocks."""
        try:
            return sum(file.stat().st_size for file in self.files(model, catalog)) or None
        except (EngineError, OSError):
            return None  # its load will say what is wrong

    def files(self, model: str, catalog: Catalog) -> Sequence[Path]:
        """The files that a load of the model reads. Blocks. Raises EngineError or OSError."""
        spec = catalog.model(model)
        return self._families[spec.type].loader.files(spec, self._folders)

    def need(self, model: str, catalog: Catalog, memory: DeviceMemory, floor: int) -> Need | None:
        """What keeping it on the device and working with it takes; None: nobody knows.

        The limit leaves out what other processes hold, and `floor`: what the engine held before anything was loaded.
        """
        if model not in self._weights or model not in catalog.models:
            return None
        weights, shared = self._weights[model], self._shared.get(model, {})
        working = self._working.get(model) or int(weights * UNMEASURED_WORK)
        limit = memory.capacity(catalog.memory_fraction(model))
        if limit:
            theirs = memory.free + memory.cached + memory.outside if memory.gpu_available else limit
            limit = max(1, min(limit, theirs) - floor)
        own = max(0, weights - sum(shared.values()))  # fewer: some of it is offloaded
        return Need(own=own, shared=shared, working=working, limit=limit)

    def check(self, model: str, pixels: int, catalog: Catalog, memory: DeviceMemory) -> None:
        """Raises DoesNotFit, with the numbers, for what the device can never hold."""
        capacity = memory.capacity(catalog.memory_fraction(model))
        weights, (large, peak) = self._weights.get(model, 0), self._peaks.get(model, (0, 0))
        there_is = f"{memory.gpu_name or 'this machine'} has {_gib(capacity)} for it. {ADVICE}"
        if 0 < capacity < weights:
            raise DoesNotFit(f"The weights of '{model}' take {_gib(weights)}; {there_is}")
        if 0 < capacity < peak and pixels >= large:
            raise DoesNotFit(f"A picture of {pixels} pixels by '{model}' takes at least {_gib(peak)}; {there_is}")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
