"""Helpers for the tests of the families: models of each kind on disk, their entries, and how to draw."""

import gc
import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.core.provenance import Provenance
from imagegen.core.task import Lora
from imagegen.gpu.engine import Engine
from imagegen.gpu.protocol import Failed, Generate, Generated, Stopped
from imagegen.loaders import SPECS
from imagegen.loaders.pipelines import FLUX, STABLE_DIFFUSION
from tests.conftest import request_for
from tests.pipelines import build

#: What the libraries' own code warns of, in the versions that constraints.txt names.
LIBRARY_WARNINGS = (
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:`FluxPosEmbed` is deprecated:FutureWarning",
    "ignore:`upcast_vae` is deprecated:FutureWarning",
    "ignore:`LoraLoaderMixin` is deprecated:FutureWarning",
)


class Shelf:
    """A models directory that is filled on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._built: set[str] = set()

    def model(self, kind: str) -> Path:
        """The folder of this kind's pipeline."""
        if kind not in self._built:
            build(kind, self.folder / kind)
            self._built.add(kind)
        return self.folder / kind

    def entry(self, kind: str) -> dict[str, Any]:
        """An entry of models.yaml for it."""
        index = json.loads((self.model(kind) / "model_index.json").read_bytes())
        name = index["_class_name"]
        word = "flux" if name in FLUX else "stable_diffusion" if name in STABLE_DIFFUSION else "diffusers"
        return small(type=word, pipeline_class=name, local_path=kind)


@contextmanager
def shelf_of(folder: Path, kinds: Iterable[str]) -> Iterator[Shelf]:
    """A shelf with these kinds, and quick unloading.

    Every unload collects garbage; the half million objects of imported modules need not be looked at each time.
    """
    shelf = Shelf(folder)
    for kind in kinds:
        shelf.model(kind)
    gc.collect()
    gc.freeze()
    yield shelf
    gc.unfreeze()


def small(**fields: Any) -> dict[str, Any]:
    """An entry with numbers for tiny models."""
    return {"name": "tiny", "base_size": 64, "steps": 2, "guidance_scale": 3.0, **fields}


def catalog_of(**models: Mapping[str, Any]) -> Catalog:
    """A catalog of these entries, as models.yaml would be read."""
    return parse_catalog(json.dumps({"models": models}), SPECS)


@cache
def picture(width: int = 96, height: int = 64) -> bytes:
    """Noise, as PNG."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return _png(Image.fromarray(noise))


@cache
def left_half(width: int = 96, height: int = 64) -> bytes:
    """A mask whose left half is white."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 255
    return _png(Image.fromarray(mask))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


#: Task -> what a request brings along and says for it.
TASKS: Mapping[str, tuple[Mapping[str, bytes], Mapping[str, Any]]] = MappingProxyType(
    {
        "text2image": ({}, {}),
        "image2image": ({"init_image": picture()}, {"strength": 0.6}),
        "inpaint": ({"init_image": picture(), "mask_image": left_half()}, {"strength": 0.6}),
    }
)


def run(
    engine: Engine,
    model: str,
    task: str = "text2image",
    lora: Path | None = None,
    pictures: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Generated | Stopped | Failed:
    """One small picture of 2 steps. `pictures` take the place of the task's own."""
    own, fields = TASKS[task]
    loras = {} if lora is None else {"loras": (Lora(path=lora.name, scale=1),)}
    request = request_for(**({"steps": 2, "guidance_scale": 3.0} | dict(fields) | loras | changes))
    files = () if lora is None else (str(lora),)
    command = Generate(model=model, request=request, lora_files=files, **(own if pictures is None else pictures))
    return engine.generate(command, threading.Event(), lambda *_: None)


def draw(engine: Engine, model: str, task: str = "text2image", lora: Path | None = None, **changes: Any) -> Any:
    """The pixels of the first picture: height x width x 3, 8 bits."""
    outcome = run(engine, model, task, lora, **changes)
    assert isinstance(outcome, Generated), outcome
    first = outcome.images[0]
    return np.frombuffer(first.rgb, dtype=np.uint8).reshape(first.height, first.width, 3)


def provenance(engine: Engine, model: str) -> Provenance:
    """The provenance of its pictures."""
    outcome = run(engine, model, steps=1)
    assert isinstance(outcome, Generated), outcome
    return outcome.provenance


def write_lora(pipeline: Path, file: Path) -> Path:
    """A random adapter for the attention of a pipeline's denoiser, in diffusers' key names."""
    part = next(part for part in ("transformer", "unet") if (pipeline / part).is_dir())
    weights = load_file(pipeline / part / "diffusion_pytorch_model.safetensors")
    noise = torch.Generator().manual_seed(0)
    adapter = {}
    for name, tensor in weights.items():
        if name.endswith(("to_q.weight", "to_qkv_mlp_proj.weight")) and tensor.ndim == 2:
            rows, columns = tensor.shape
            key = f"{part}.{name.removesuffix('.weight')}"
            adapter[f"{key}.lora_A.weight"] = torch.randn(2, columns, generator=noise)
            adapter[f"{key}.lora_B.weight"] = torch.randn(rows, 2, generator=noise)
    save_file(adapter, file)
    return file
