"""Loads and unloads: what stays behind, what a swap moves, what a load takes. Run: `python -m bench.residency`."""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from safetensors.torch import load_file

from bench._flux import build
from imagegen.builtin import builtin_model, default_config
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import load_catalog, parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.task import GenerationRequest
from imagegen.gpu.protocol import EngineOptions, Generate, Generated, Load, Loaded, Unload, Unloaded
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.loaders import SPECS
from imagegen.loaders.folder import header_bytes

ROUNDS = 50
REQUEST = GenerationRequest(prompt="a cat", width=128, height=128, steps=2, guidance_scale=0, seed=1)

#: Of the interleaved loads of 1 GB, and the picture that each of them makes.
LARGE_ROUNDS = 5
SMALL_PICTURE = REQUEST.evolve(width=64, height=64, steps=1)

#: Memory in times the weights, two numbers each: at the peak of the load and of the first picture, which uses it all.
HEAD = """
| become | load s | reading s | as tensors s | load / reading | load / as tensors | own memory | with mapped files |
|---|---|---|---|---|---|---|---|"""

#: What the weights, stored as bfloat16, become; bytes of one of them.
WIDTHS = {"bfloat16": 2, "float32": 4}

#: Between two looks at the worker's memory, in seconds.
LOOK_S = 0.002


def main() -> None:
    shipped = load_catalog(default_config(), SPECS)
    tiny = shipped.model("tiny")
    catalog = shipped.evolve(models={"a": tiny, "b": tiny.evolve(steps=9)})
    engine = WorkerEngine(EngineOptions(device="cpu"))
    leftovers(engine, catalog)
    speeds(engine, catalog)
    with tempfile.TemporaryDirectory() as folder:
        large(engine, Path(folder))
    engine.close()


# -- the embedded model ------------------------------------------------------------------------------------------------


def leftovers(engine: WorkerEngine, catalog: Catalog) -> None:
    """The worker after the second and after the last of ROUNDS loads and unloads, with a picture in between."""
    seen = []
    for number in range(ROUNDS):
        model = "ab"[number % 2]
        load(engine, catalog, model)
        draw(engine, model, REQUEST)
        unloaded = engine.unload(Unload(model=model))
        assert isinstance(unloaded, Unloaded)
        worker = psutil.Process(engine.pid)
        seen.append((unloaded.memory.host / 2**20, worker.num_fds(), worker.num_threads()))
    print(f"after | host MiB | descriptors | threads\n2     | {row(seen[1])}\n{ROUNDS}    | {row(seen[-1])}")
    print(f"host memory after {ROUNDS} / after 2: {seen[-1][0] / seen[1][0]:.3f}")


def row(seen: tuple[float, int, int]) -> str:
    host, descriptors, threads = seen
    return f"{host:8.1f} | {descriptors:11} | {threads}"


def speeds(engine: WorkerEngine, catalog: Catalog) -> None:
    """Median seconds of a cold load, of one that was kept warm, and of reading the same files."""
    cold, warm, read = [], [], []
    for _ in range(9):
        cold.append(load(engine, catalog, "a").seconds)
        engine.unload(Unload(model="a", keep_warm=True))
        back = load(engine, catalog, "a")
        assert back.warm
        warm.append(back.seconds)
        engine.unload(Unload(model="a"))
        read.append(read_files(builtin_model("tiny")))
    size = sum(file.stat().st_size for file in weights(builtin_model("tiny")))
    seconds = [statistics.median(times) for times in (cold, warm, read)]
    print(f"cold {seconds[0]:.4f} s, warm {seconds[1]:.4f} s, reading {size / 2**20:.1f} MiB {seconds[2]:.4f} s")
    print(f"cold / read: {seconds[0] / seconds[2]:.1f}, warm / cold: {seconds[1] / seconds[0]:.4f}")


# -- a FLUX.1 of 1 GB --------------------------------------------------------------------------------------------------


class Peak:
    """The most memory that a process was seen to have. `own`: anonymous pages. `all`: with those of mapped files."""

    own = 0
    all = 0

    def look(self, worker: psutil.Process) -> None:
        memory = worker.memory_info()
        self.own = max(self.own, memory.rss - memory.shared)
        self.all = max(self.all, memory.rss)


class Cost(NamedTuple):
    """Of one load. Bytes are times the weights, beyond what the worker had before."""

    load_s: float
    read_s: float
    #: Reading the tensors into memory of their own, as what they become.
    convert_s: float
    load_own: float
    load_all: float
    picture_own: float
    picture_all: float


def large(engine: WorkerEngine, root: Path) -> None:
    """Swaps and loads of a FLUX.1 of 1 GB, kept as it is stored and widened to float32."""
    torch.set_num_threads(1)  # as many as the worker has on two cores
    build("middle", root / "flux")
    print(HEAD)
    for word in WIDTHS:
        catalog = catalog_of(word)
        once(engine, catalog, root, word)  # imports, and the page cache
        print(cost_row(word, [once(engine, catalog, root, word) for _ in range(LARGE_ROUNDS)]))
    for word in WIDTHS:
        swap(engine, catalog_of(word), root, WIDTHS[word])


def catalog_of(word: str) -> Catalog:
    """Two models with the same weights: their transformers are two all the same, the rest they may share."""
    entry = {"name": "A", "type": "flux", "local_path": "flux", "base_size": 64, "torch_dtype": word}
    return parse_catalog(json.dumps({"models": {"a": entry, "b": entry}}), SPECS)


def once(engine: WorkerEngine, catalog: Catalog, root: Path, word: str) -> Cost:
    """A cold load and its first picture, and reading the same files."""
    memory = psutil.Process(engine.pid).memory_info()
    own, whole = memory.rss - memory.shared, memory.rss
    with watched(engine) as at_load:
        loaded = load(engine, catalog, "a", root)
    with watched(engine) as at_picture:
        draw(engine, "a", SMALL_PICTURE)
    engine.unload(Unload(model="a"))
    size = loaded.weight_bytes
    return Cost(
        loaded.seconds,
        read_files(root),
        convert_files(root, getattr(torch, word)),
        (at_load.own - own) / size,
        (at_load.all - whole) / size,
        (at_picture.own - own) / size,
        (at_picture.all - whole) / size,
    )


@contextmanager
def watched(engine: WorkerEngine) -> Iterator[Peak]:
    """The worker's memory is looked at all the while, from here."""
    peak, done, worker = Peak(), threading.Event(), psutil.Process(engine.pid)

    def look() -> None:
        while not done.is_set():
            peak.look(worker)
            time.sleep(LOOK_S)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield peak
    finally:
        done.set()
        looker.join()


def cost_row(word: str, costs: list[Cost]) -> str:
    """Medians; of memory, the worst."""
    middle = Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))
    worst = Cost(*(max(column) for column in zip(*costs, strict=True)))
    seconds = f"{middle.load_s:.2f} | {middle.read_s:.2f} | {middle.convert_s:.2f}"
    ratios = (
        statistics.median(cost.load_s / cost.read_s for cost in costs),
        statistics.median(cost.load_s / cost.convert_s for cost in costs),
    )
    memory = f"{worst.load_own:.2f}, {worst.picture_own:.2f} | {worst.load_all:.2f}, {worst.picture_all:.2f}"
    return f"| {word} | {seconds} | {ratios[0]:.2f} | {ratios[1]:.2f} | {memory} |"


def swap(engine: WorkerEngine, catalog: Catalog, root: Path, width: int) -> None:
    """There and back between two models that differ in their transformer."""
    needed = sum(header_bytes(file, width) for file in weights(root / "flux" / "transformer"))
    whole, moved = load(engine, catalog, "a", root), []
    for old, new in (("a", "b"), ("b", "a")):
        engine.unload(Unload(model=old, switching=True))
        moved.append(load(engine, catalog, new, root).moved_bytes)
    engine.unload(Unload(model="a"))
    ratios = ", ".join(f"{size / needed:.2f}" for size in moved)
    share = needed / whole.weight_bytes
    print(f"swaps, {8 * width} bits: moved / needed = {ratios}; needed / the whole model = {share:.2f}")


# -- what they share ---------------------------------------------------------------------------------------------------


def weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def read_files(folder: Path) -> float:
    """Seconds for reading all weights into memory, file by file."""
    began = time.perf_counter()
    for file in weights(folder):
        file.read_bytes()
    return time.perf_counter() - began


def convert_files(folder: Path, dtype: torch.dtype) -> float:
    """Seconds for the same as tensors, all of them in memory of their own."""
    began = time.perf_counter()
    tensors = [tensor.to(dtype, copy=True) for file in weights(folder) for tensor in load_file(file).values()]
    seconds = time.perf_counter() - began
    del tensors
    return seconds


def load(engine: WorkerEngine, catalog: Catalog, model: str, root: Path = Path()) -> Loaded:
    loaded = engine.load(Load.entry(catalog, model, Folders(root, root)))
    assert isinstance(loaded, Loaded), loaded
    return loaded


def draw(engine: WorkerEngine, model: str, request: GenerationRequest) -> None:
    outcome = engine.generate(Generate(model=model, request=request), threading.Event(), lambda *step: None)
    assert isinstance(outcome, Generated), outcome


if __name__ == "__main__":
    main()
