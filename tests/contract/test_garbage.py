"""The engine freezes the libraries' objects for the garbage collector, but never a model's."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Loaded, Unload
from tests.conftest import load_command
from tests.contract.families import LIBRARY_WARNINGS, Shelf, catalog_of, shelf_of, small
from tests.gguf_files import write_gguf

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIBRARY_WARNINGS]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf_of(tmp_path_factory.mktemp("models"), ("flux-dev",)) as shelf:
        write_gguf(shelf.model("flux-dev"), shelf.folder / "dev.gguf", "Q8_0")
        yield shelf


#: The classes of the denoisers of the models below.
DENOISERS = ("FluxTransformer2DModel", "UNet2DConditionModel")


def transformers() -> int:
    """How many live denoisers the garbage collector tracks."""
    return sum(type(it).__name__ in DENOISERS for it in gc.get_objects())


@pytest.mark.parametrize("kind", ["flux-dev", "sdxl", "sd15", "gguf"])
def test_objects_before_the_first_model_are_frozen_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gguf = small(type="gguf", local_path="dev.gguf", base_model="flux-dev")
    catalog = catalog_of(model=gguf if kind == "gguf" else shelf.entry(kind))
    engine = LocalEngine(EngineOptions(device="cpu"))
    gc.collect()
    before, frozen = transformers(), []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(transformers()))
    for _ in range(2):
        assert isinstance(engine.load(load_command(catalog, "model", shelf.folder)), Loaded)
        assert transformers() == before + 1
        engine.unload(Unload(model="model"))
        assert transformers() == before
    assert frozen == [before]
    engine.close()


def test_nothing_is_frozen_once_a_loader_has_read_a_part(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegen.loaders.gguf.import_pipeline", lambda *_: None)  # a family that forgets it
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(transformers()))
    engine = LocalEngine(EngineOptions(device="cpu"))
    catalog = catalog_of(model=small(type="gguf", local_path="dev.gguf", base_model="flux-dev"))
    assert isinstance(engine.load(load_command(catalog, "model", shelf.folder)), Loaded)
    assert frozen == []
    engine.close()


def test_a_model_is_collected_after_what_came_before_it_was_frozen(shelf: Shelf, tmp_path: Path) -> None:
    catalog = catalog_of(model=shelf.entry("flux-dev"))
    engine = LocalEngine(EngineOptions(device="cpu"))
    try:
        assert isinstance(engine.load(load_command(catalog, "model", shelf.folder)), Loaded)
        assert gc.get_freeze_count() > 100_000
        assert transformers() == 1
        engine.unload(Unload(model="model"))
        assert transformers() == 0
    finally:
        engine.close()
        gc.unfreeze()
