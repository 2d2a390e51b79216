"""LoRAs: an entry's own LoRAs stay on the weights; a request's LoRAs are removed when its call ends."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from imagegen.core.errors import LoraRefused
from imagegen.core.task import Lora
from imagegen.loaders.lora_file import LoraFile

#: The errors that the library raises for files that it does not expect. A lack of memory and a broken device also
#: raise RuntimeError; gpu/engine.py recognises them by the `__cause__` of LoraRefused.
_UNREADABLE = (ValueError, KeyError, RuntimeError, OSError, AssertionError, TypeError, AttributeError, IndexError)


class Adapters:
    """The LoRAs on one pipeline's weights."""

    def __init__(
        self, pipeline: Any, loras: Sequence[Lora], files: Sequence[Path], offload: Callable[[], None] | None = None
    ) -> None:
        """Add an entry's own LoRAs. `offload` switches the pipeline's offloading on again. Raises LoraRefused."""
        self._pipeline = pipeline
        self._offload = offload
        self._names = [f"entry{i}" for i in range(len(loras))]
        self._scales = [lora.scale for lora in loras]
        #: Warnings about ignored layers: of the entry's LoRAs, and of the latest request's LoRAs.
        self._warnings = self._add(self._names, files)
        self._request_warnings: list[str] = []
        self._activate()

    def warnings(self, loras: Sequence[Lora]) -> list[str]:
        """Warnings about ignored layers of the entry's LoRAs, and of the latest request's LoRAs if it had any."""
        return [*self._warnings, *(self._request_warnings if loras else ())]

    @contextmanager
    def added(self, loras: Sequence[Lora], files: Sequence[Path]) -> Iterator[None]:
        """Add a request's LoRAs while the context lasts. Raises LoraRefused."""
        if not loras:
            yield
            return
        names = [f"request{i}" for i in range(len(loras))]
        with ExitStack() as failed:
            if self._offload:
                # The library switches offloading off to add a LoRA, and on again only if that succeeds.
                failed.callback(self._offload)
            try:
                self._request_warnings = self._add(names, files)
                failed.pop_all()
                self._pipeline.set_adapters([*self._names, *names], [*self._scales, *(lora.scale for lora in loras)])
                yield
            finally:
                self._remove(names)

    def _add(self, names: Sequence[str], files: Sequence[Path]) -> list[str]:
        """Add the files under these names and return warnings about ignored layers. Raises LoraRefused."""
        from safetensors import SafetensorError

        warnings = []
        for name, file in zip(names, files, strict=True):
            lora = LoraFile.read(file)
            try:
                self._pipeline.load_lora_weights(
                    file.parent, weight_name=file.name, adapter_name=name, use_safetensors=True
                )
                added = [adapter for part in self._pipeline.get_list_adapters().values() for adapter in part]
            except _UNREADABLE as error:
                raise LoraRefused(self._why_refused(lora, error)) from error
            except SafetensorError as error:
                raise LoraRefused(f"{lora.name} is damaged.") from error
            if name not in added:  # no key of the file fits the model; the library only warns
                raise LoraRefused(self._made_for_another(lora))
            warnings += self._ignored(lora, name)
        return warnings

    def _why_refused(self, lora: LoraFile, error: Exception) -> str:
        if "size mismatch" in str(error) or "shape" in str(error):
            return f"{lora.name} is for a model of another width: the shape of '{lora.first}' does not fit."
        return self._made_for_another(lora)

    def _made_for_another(self, lora: LoraFile) -> str:
        pipeline = type(self._pipeline).__name__
        if lora.kronecker:
            return f"{lora.name} is a LoKr, which diffusers does not read for {pipeline}."
        return f"{lora.name} is for another model: {pipeline} has no such layers as '{lora.first}'."

    def _ignored(self, lora: LoraFile, name: str) -> list[str]:
        """Warnings about the layers of a file that were not added."""
        warnings = []
        if lora.has_scales:
            warnings.append(f"{lora.name} is a DoRA: its LoRA part is applied, its scales are not.")
        if lora.has_t5 and not any(self._layers(name, part) for part in ("text_encoder_2", "text_encoder_3")):
            warnings.append(f"The layers of {lora.name} for the T5 text encoder are ignored.")
        layers = [layer for part in self._pipeline.components for layer in self._layers(name, part)]
        if lora.kronecker:
            added, total = len(layers), lora.kronecker
        else:
            added, total = sum(layer.lora_B[name].weight.shape[0] for layer in layers), lora.rows
        if added < total:
            percent = max(1, round(100 * (total - added) / total))
            warnings.append(f"About {percent} % of the layers of {lora.name} are not in this model and are ignored.")
        return warnings

    def _layers(self, name: str, part: str) -> list[Any]:
        """The layers of a part of the pipeline that have this adapter."""
        module = self._pipeline.components.get(part)
        if not hasattr(module, "modules"):
            return []
        kinds = ("lora_B", "lokr_w1", "lokr_w1_a")
        return [it for it in module.modules() if any(name in getattr(it, kind, ()) for kind in kinds)]

    def _remove(self, names: Sequence[str]) -> None:
        if not self._names:
            # Remove the wrappers too, to restore the original layers: FLUX's own LoRAs may widen a layer.
            unload = self._pipeline.unload_lora_weights
            widened = "reset_to_overwritten_params" in inspect.signature(unload).parameters
            unload(**({"reset_to_overwritten_params": True} if widened else {}))
            return
        self._pipeline.delete_adapters(list(names))
        self._activate()

    def _activate(self) -> None:
        if self._names:
            self._pipeline.set_adapters(self._names, self._scales)
