"""LoRAs: those of an entry stay on its weights, those of a request leave with it."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from imagegen.core.errors import LoraRefused
from imagegen.core.task import Lora


class Adapters:
    """What is added to one pipeline's weights."""

    def __init__(
        self, pipeline: Any, loras: Sequence[Lora], files: Sequence[Path], offload: Callable[[], None] | None = None
    ) -> None:
        """Add an entry's own LoRAs. `offload` switches the pipeline's offloading on again. Raises LoraRefused."""
        self._pipeline = pipeline
        self._offload = offload
        self._names = [f"entry{i}" for i in range(len(loras))]
        self._scales = [lora.scale for lora in loras]
        self._add(self._names, files)
        self._activate()

    @contextmanager
    def added(self, loras: Sequence[Lora], files: Sequence[Path]) -> Iterator[None]:
        """Add a request's LoRAs as well, and remove them at the end. Raises LoraRefused."""
        if not loras:
            yield
            return
        names = [f"request{i}" for i in range(len(loras))]
        with ExitStack() as failed:
            if self._offload:
                # The library switches offloading off to add a LoRA, and on again only if that succeeds.
                failed.callback(self._offload)
            try:
                self._add(names, files)
                failed.pop_all()
                self._pipeline.set_adapters([*self._names, *names], [*self._scales, *(lora.scale for lora in loras)])
                yield
            finally:
                self._remove(names)

    def _add(self, names: Sequence[str], files: Sequence[Path]) -> None:
        from safetensors import SafetensorError

        for name, file in zip(names, files, strict=True):
            try:
                self._pipeline.load_lora_weights(
                    file.parent, weight_name=file.name, adapter_name=name, use_safetensors=True
                )
                known = [name for part in self._pipeline.get_list_adapters().values() for name in part]
            except (ValueError, KeyError, RuntimeError, OSError, SafetensorError) as error:
                raise LoraRefused from error
            if name not in known:  # no key of the file fits: the library only warns
                raise LoraRefused

    def _remove(self, names: Sequence[str]) -> None:
        if not self._names:
            # The wrappers go, too: what is left is what was there before. FLUX's own LoRAs may widen a layer.
            unload = self._pipeline.unload_lora_weights
            widened = "reset_to_overwritten_params" in inspect.signature(unload).parameters
            unload(**({"reset_to_overwritten_params": True} if widened else {}))
            return
        self._pipeline.delete_adapters(list(names))
        self._activate()

    def _activate(self) -> None:
        if self._names:
            self._pipeline.set_adapters(self._names, self._scales)
