"""Loads and unloads: what stays behind after fifty, and what warm and cold cost. Run: `python -m bench.residency`."""

import statistics
import threading
import time
from pathlib import Path

import psutil

from imagegen.builtin import builtin_model, default_config
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import load_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.task import GenerationRequest
from imagegen.gpu.child import ChildEngine
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Load, Loaded, Unload, Unloaded
from imagegen.loaders import SPECS

ROUNDS = 50
REQUEST = GenerationRequest(prompt="a cat", width=128, height=128, steps=2, guidance_scale=0, seed=1)


def main() -> None:
    shipped = load_catalog(default_config(), SPECS)
    tiny = shipped.model("tiny")
    catalog = shipped.evolve(models={"a": tiny, "b": tiny.evolve(steps=9)})
    engine = ChildEngine(EngineOptions(device="cpu"))
    leftovers(engine, catalog)
    speeds(engine, catalog)
    engine.close()


def leftovers(engine: ChildEngine, catalog: Catalog) -> None:
    """The worker after the second and after the last of ROUNDS loads and unloads, with a picture in between."""
    seen = []
    for number in range(ROUNDS):
        model = "ab"[number % 2]
        load(engine, catalog, model)
        outcome = engine.generate(Generate(model=model, request=REQUEST), threading.Event(), lambda step, total: None)
        assert isinstance(outcome, Generated)
        unloaded = engine.unload(Unload(model=model))
        assert isinstance(unloaded, Unloaded)
        worker = psutil.Process(engine.pid)
        seen.append((unloaded.memory.host / 2**20, worker.num_fds(), worker.num_threads()))
    print(f"after | host MiB | descriptors | threads\n2     | {row(seen[1])}\n{ROUNDS}    | {row(seen[-1])}")
    print(f"host memory after {ROUNDS} / after 2: {seen[-1][0] / seen[1][0]:.3f}")


def row(seen: tuple[float, int, int]) -> str:
    host, descriptors, threads = seen
    return f"{host:8.1f} | {descriptors:11} | {threads}"


def speeds(engine: ChildEngine, catalog: Catalog) -> None:
    """Median seconds of a cold load, of one that was kept warm, and of reading the same files."""
    cold, warm, read = [], [], []
    for _ in range(9):
        cold.append(load(engine, catalog, "a").seconds)
        engine.unload(Unload(model="a", keep_warm=True))
        back = load(engine, catalog, "a")
        assert back.warm
        warm.append(back.seconds)
        engine.unload(Unload(model="a"))
        began = time.perf_counter()
        size = sum(len(file.read_bytes()) for file in builtin_model("tiny").rglob("*.safetensors"))
        read.append(time.perf_counter() - began)
    seconds = [statistics.median(times) for times in (cold, warm, read)]
    print(f"cold {seconds[0]:.4f} s, warm {seconds[1]:.4f} s, reading {size / 2**20:.1f} MiB {seconds[2]:.4f} s")
    print(f"cold / read: {seconds[0] / seconds[2]:.1f}, warm / cold: {seconds[1] / seconds[0]:.4f}")


def load(engine: ChildEngine, catalog: Catalog, model: str) -> Loaded:
    loaded = engine.load(Load.entry(catalog, model, Folders(Path(), Path())))
    assert isinstance(loaded, Loaded)
    return loaded


if __name__ == "__main__":
    main()
