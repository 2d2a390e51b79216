"""Several resident models: real weights, the real policy, and a pretended card that counts bytes."""

import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.events import EventBus
from imagegen.core.task import InputPictures
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.executor import GpuExecutor
from imagegen.gpu.protocol import EngineOptions, Failed, Generated, Stopped
from imagegen.loaders import FAMILIES, SPECS
from imagegen.models.manager import DynamicModelManager
from tests.conftest import request_for
from tests.pipelines import build
from tests.pretend_cuda import Card, Cuda, pretended

TRANSFORMER = Path("transformer/diffusion_pytorch_model.safetensors")
FLUX = {"type": "flux", "base_size": 64, "torch_dtype": "float32"}
MODELS = ("one", "two", "three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pipelines that differ in their transformer alone."""
    root = tmp_path_factory.mktemp("models")
    build("flux-dev", root / "one")
    weights = load_file(root / "one" / TRANSFORMER)
    for number, model in enumerate(MODELS[1:], start=2):
        shutil.copytree(root / "one", root / model)
        save_file({name: it * number for name, it in weights.items()}, root / model / TRANSFORMER, {"format": "pt"})
    return root


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    with pretended(Card()) as card:
        yield card


def catalog(max_resident: int) -> Catalog:
    settings = {"max_resident": max_resident, "gpu_memory_fraction": 1, "host_cache_gb": 0}
    models = {model: FLUX | {"name": model, "local_path": model} for model in MODELS}
    return parse_catalog(json.dumps({"global": settings, "models": models}), SPECS)


class Device:
    """A manager with a real engine in a thread."""

    def __init__(self, folder: Path, max_resident: int) -> None:
        self.executor = GpuExecutor(lambda: LocalEngine(EngineOptions(device="cuda")))
        self.models = DynamicModelManager(
            catalog(max_resident), self.executor, EventBus(1), Folders(folder, folder), FAMILIES
        )

    async def draw(self, model: str) -> bytes:
        outcome = await self.work(model)
        assert isinstance(outcome, Generated), outcome
        return outcome.images[0].rgb

    async def work(self, model: str) -> Generated | Stopped | Failed:
        failed = await self.models.ensure(model)
        return failed or await self.models.generate(
            model, request_for(), InputPictures(), threading.Event(), lambda *step: None
        )

    @property
    def residents(self) -> list[str]:
        return [resident.model for resident in self.models.residents]


@pytest.fixture
async def device(cuda: Cuda, folder: Path) -> AsyncIterator[Device]:
    """Three models may be resident."""
    made = Device(folder, 3)
    await made.models.warm_up()
    yield made
    await made.executor.close(5)


def bytes_of(device: Device, *models: str) -> int:
    """The bytes of these models together."""
    entries = (device.models.resident(model) for model in models)
    own, shared = 0, dict[str, int]()
    for entry, parts in ((entry, device.models.facts.of(entry.model).shared) for entry in entries if entry):
        own += entry.device_bytes - sum(parts.values())
        shared |= parts
    return own + sum(shared.values())


def leave_free(cuda: Cuda, size: int) -> None:
    """Another process takes the rest of the card."""
    cuda.device.trim()
    cuda.foreign += cuda.free - size


async def test_models_stay_resident_together_if_they_fit_and_draw_the_same_as_alone(device: Device, cuda: Cuda) -> None:
    alone = {}
    for model in ("one", "two"):
        alone[model] = await device.draw(model)
        await device.models.unload_all()
    for model in ("one", "two", "one"):
        assert await device.draw(model) == alone[model]
    assert device.residents == ["one", "two"]
    weights = bytes_of(device, "one", "two")
    assert weights < cuda.device.bytes < weights + 300_000  # and the prompts that they remember
    working = device.models.facts.of("one").working
    # From now on the card has room for these two at work, and not for the transformer of a third one.
    leave_free(cuda, weights + working + 200_000 - cuda.device.bytes)
    await device.draw("one")
    await device.models.ensure("three")
    assert device.residents == ["three"]  # in a plain folder: nobody knows yet what it shares
    await device.models.ensure("two")
    await device.models.ensure("one")
    assert device.residents == ["one", "two"]
    assert not device.models.facts.crowds  # nothing ran out of memory


async def test_a_picture_that_does_not_fit_beside_another_model_is_drawn_without_it(device: Device, cuda: Cuda) -> None:
    for model in ("one", "two"):
        picture = await device.draw(model)
    both = bytes_of(device, "one", "two")
    cuda.fail("out_of_memory", "linear", times=2)  # also without what is kept for speed
    assert await device.draw("two") == picture
    assert device.residents == ["two"]
    assert cuda.device.bytes < both
    await device.draw("one")
    assert device.residents == ["one"]  # for some time these two do not meet again


async def test_a_model_that_does_not_fit_beside_others_is_loaded_without_them(device: Device, cuda: Cuda) -> None:
    for model in ("one", "two"):
        await device.draw(model)
    leave_free(cuda, 10_000)  # since the last look
    assert await device.models.ensure("three") is None
    assert device.residents == ["three"]
    assert cuda.device.bytes == bytes_of(device, "three")
