"""What a CUDA device makes of a full-size FLUX.1 with random weights: one table for docs/benchmarks.md.

python -m bench.gpu [--small] [--folder DIR]

It drives the worker process as the service does, and measures beside it what the machine can do at best.
"""

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

from bench._flux import build
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.task import GenerationRequest
from imagegen.gpu.child import ChildEngine
from imagegen.gpu.engine import Engine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Load, Loaded, Measured, Unload, Unloaded
from imagegen.loaders import SPECS
from imagegen.loaders.folder import header_bytes

GB, MIB = 10**9, 2**20

#: What one FLUX.1 step takes at 1024x1024 with 512 words, in floating-point operations.
STEP_FLOP = 74.4e12

#: On disk, and in host memory for two models that stay warm: 33.7 GB, and 23.8 GB for the second one.
DISK_BYTES, HOST_BYTES = 36 * GB, 64 * GB

#: Step counts of two pictures whose difference is steps alone.
FEW, MANY = 4, 12

#: Left free when the device is full: enough for the driver, too little for a picture of this size.
CRUMBS = 128 * MIB
LARGE = {"width": 4096, "height": 4096}

AnswerT = TypeVar("AnswerT")


class Row(NamedTuple):
    """One line of the table. `best`: what the machine does with the same bytes or operations."""

    what: str
    ours: str
    best: str = ""
    times: str = ""

    @classmethod
    def seconds(cls, what: str, ours: float, best_is: str, best: float) -> "Row":
        return cls(what, f"{ours:.3f} s", f"{best_is}: {best:.3f} s", f"{ours / best:.2f}" if best else "")


class Rig(NamedTuple):
    """Where it runs, and with what."""

    root: Path
    device: str
    small: bool

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def pixels(self) -> int:
        return 64 if self.small else 1024

    @property
    def folder(self) -> Path:
        return self.root / "flux"

    def catalog(self, host_cache_gb: float = 0, **fields: Any) -> Catalog:
        """Two models with the same files: each has a transformer of its own, the rest they may share."""
        entry = {"name": "A", "type": "flux", "local_path": "flux", "base_size": 64, "torch_dtype": "bfloat16"} | fields
        return parse_catalog(
            json.dumps({"global": {"host_cache_gb": host_cache_gb}, "models": {"a": entry, "b": entry}}), SPECS
        )

    def load(self, engine: Engine, catalog: Catalog, model: str = "a") -> Loaded:
        return expect(engine.load(Load.entry(catalog, model, Folders(self.root, self.root))), Loaded)

    def request(self, steps: int = FEW, prompt: str = "a cat", seed: int = 1) -> GenerationRequest:
        size = {"width": self.pixels, "height": self.pixels}
        return GenerationRequest(prompt=prompt, steps=steps, guidance_scale=3.5, seed=seed, **size)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny parts: tries the program itself, on a CPU too")
    parser.add_argument("--folder", type=Path, help="where 34 GB of weights may lie meanwhile")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        print("bench.gpu: no CUDA device here, nothing to measure.")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if not options.small and shutil.disk_usage(folder).free < DISK_BYTES:
            print(f"bench.gpu: {folder} has no {DISK_BYTES / GB:.0f} GB free; name another --folder.")
            return
        rig = Rig(Path(folder), device, options.small)
        began = time.monotonic()
        build("tiny" if rig.small else "full", rig.folder, device)
        give_back()
        tell(f"weights written in {time.monotonic() - began:.0f} s")
        print(table(rig, list(measure(rig)), time.monotonic() - began))


def measure(rig: Rig) -> Iterator[Row]:
    """All rows. Each part unloads what it has loaded."""
    engine = ChildEngine(EngineOptions(device=rig.device))
    try:
        warm_up(rig, engine)
        yield from residency(rig, engine)
        if rig.cuda:
            yield from warmth(rig, engine)
        yield from steps(rig, engine)
        if rig.cuda:
            yield from full_device(rig, engine)
    finally:
        engine.close()


def warm_up(rig: Rig, engine: Engine) -> None:
    """Imports, the CUDA context, cuBLAS: a first load of tiny parts pays for them."""
    expect(engine.measure(), Measured)
    tiny = rig if rig.small else rig._replace(root=rig.root / "tiny", small=True)
    if not rig.small:
        build("tiny", tiny.folder)
    catalog = tiny.catalog()
    tiny.load(engine, catalog)
    draw(engine, "a", tiny.request())
    expect(engine.unload(Unload(model="a")), Unloaded)


# -- loads, swaps, unloads ---------------------------------------------------------------------------------------------


def residency(rig: Rig, engine: ChildEngine) -> Iterator[Row]:
    """A cold load, a swap between two that share, pictures after it, and what stays behind."""
    catalog, floor = rig.catalog(), used(rig, engine)
    loaded = rig.load(engine, catalog)
    yield Row.seconds(f"cold load of {loaded.weight_bytes / GB:.1f} GB", loaded.seconds, *reading(rig.folder))
    draw(engine, "a", rig.request())
    expect(engine.unload(Unload(model="a", switching=True)), Unloaded)
    swapped, needed = rig.load(engine, catalog, "b"), transformer_bytes(rig)
    yield Row.seconds("cold swap, the rest shared", swapped.seconds, *reading(rig.folder / "transformer"))
    yield Row("bytes of the swap", f"{swapped.moved_bytes:,}", f"{needed:,}", f"{swapped.moved_bytes / needed:.2f}")
    yield pictures_after_swap(rig, engine, "b")
    expect(engine.unload(Unload(model="b")), Unloaded)
    yield Row("left after the unload", f"{(used(rig, engine) - floor) / MIB:.0f} MiB", "before any load: 0 MiB")


def pictures_after_swap(rig: Rig, engine: Engine, model: str) -> Row:
    """Each with a prompt of its own, so that all run the text encoders."""
    seconds = [timed(draw, engine, model, rig.request(prompt=f"{number} cats")) for number in range(10)]
    return Row.seconds("first picture after the swap", seconds[0], "the tenth", seconds[-1])


def warmth(rig: Rig, engine: ChildEngine) -> Iterator[Row]:
    """Two models that stay in host memory, and back to the first one."""
    if not rig.small and psutil.virtual_memory().available < HOST_BYTES:
        yield Row("warm swap", "not measured: too little host memory")
        return
    catalog, free = rig.catalog(host_cache_gb=1000), psutil.virtual_memory().available
    first = rig.load(engine, catalog, "a")
    began = time.monotonic()
    expect(engine.unload(Unload(model="a", keep_warm=True)), Unloaded)
    copied = "pinned copy", pinned_copy_seconds(first.weight_bytes)
    yield Row.seconds("first way to host memory, which is pinned for it", time.monotonic() - began, *copied)
    taken = free - psutil.virtual_memory().available
    first = rig.load(engine, catalog, "a")
    size = f"{first.weight_bytes / GB:.1f} GB"
    yield Row("host memory of it", f"{taken / GB:.1f} GB", f"its weights: {size}", f"{taken / first.weight_bytes:.2f}")
    expected = draw(engine, "a", rig.request())
    for old, new in (("a", "b"), ("b", "a")):
        expect(engine.unload(Unload(model=old, keep_warm=True, switching=True)), Unloaded)
        back = rig.load(engine, catalog, new)
    assert back.warm
    what = f"warm swap, {back.moved_bytes / GB:.1f} GB moved"
    yield Row.seconds(what, back.seconds, "pinned copy", pinned_copy_seconds(back.moved_bytes))
    same = draw(engine, "a", rig.request()) == expected
    yield Row("the same picture after it", "yes" if same else "**no**")
    for model in ("a", "b"):
        expect(engine.unload(Unload(model=model)), Unloaded)
    give_back()
    left = free - psutil.virtual_memory().available
    yield Row("host memory left after both unloads", f"{left / GB:.1f} GB", "before any load: 0 GB")


# -- steps -------------------------------------------------------------------------------------------------------------


def steps(rig: Rig, engine: ChildEngine) -> Iterator[Row]:
    """Seconds a step: plain, with the step cache, compiled."""
    options: dict[str, dict[str, Any]] = {"plain": {}, "with the step cache (random weights)": {"step_cache": 0.12}}
    if rig.cuda:
        options["compiled"] = {"compile": True}
    for word, fields in options.items():
        rig.load(engine, rig.catalog(**fields))
        first = timed(draw, engine, "a", rig.request())
        yield step_row(rig, engine, word)
        expect(engine.unload(Unload(model="a")), Unloaded)
    if rig.cuda:
        yield Row("first picture while it compiles", f"{first:.1f} s")


def step_row(rig: Rig, engine: Engine, word: str) -> Row:
    seconds = step_seconds(rig, engine)
    if not rig.cuda or rig.small:
        return Row(f"a step, {word}", f"{seconds:.3f} s")
    return Row.seconds(f"a step, {word}", seconds, "at the peak of a product of matrices", STEP_FLOP / gemm_flops())


def step_seconds(rig: Rig, engine: Engine) -> float:
    """By the difference of two pictures of one prompt: words and decoding fall out."""
    for count in (FEW, MANY):
        draw(engine, "a", rig.request(count))
    pairs = [[timed(draw, engine, "a", rig.request(count)) for count in (FEW, MANY)] for _ in range(3)]
    return statistics.median((many - few) / (MANY - FEW) for few, many in pairs)


# -- out of memory -----------------------------------------------------------------------------------------------------


def full_device(rig: Rig, engine: ChildEngine) -> Iterator[Row]:
    """Someone else takes what is left: the picture fails with numbers, and the next one is what it was."""
    expected = picture(rig, engine)
    rig.load(engine, rig.catalog())  # after a fresh load, the worker holds nothing but weights
    with hog():
        failed = expect(engine.generate(Generate(model="a", request=rig.request().evolve(**LARGE)), *ALONE), Failed)
    told = failed.code is FailureCode.OUT_OF_MEMORY and "GiB" in failed.message
    yield Row("a full device", f"{failed.code}: {failed.message}", "numbers are told", "yes" if told else "**no**")
    same = draw(engine, "a", rig.request()) == expected
    yield Row("the same picture once there is room", "yes" if same else "**no**")


def picture(rig: Rig, engine: Engine) -> bytes:
    """Of a model that is loaded for it and unloaded again."""
    rig.load(engine, rig.catalog())
    made = draw(engine, "a", rig.request())
    expect(engine.unload(Unload(model="a")), Unloaded)
    return made


@contextmanager
def hog() -> Iterator[None]:
    """Holds all of the device but crumbs."""
    give_back()
    taken = torch.empty(torch.cuda.mem_get_info()[0] - CRUMBS, dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del taken
        give_back()


# -- what the machine can do -------------------------------------------------------------------------------------------


def reading(folder: Path) -> tuple[str, float]:
    """A direct read of the weights into memory that is there already."""
    buffer = memoryview(bytearray(64 * MIB))
    began = time.perf_counter()
    for file in folder.rglob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return "direct read", time.perf_counter() - began


def pinned_copy_seconds(size: int) -> float:
    """The same number of bytes from pinned memory to the device, in pieces."""
    piece = min(size, 1024 * MIB)
    host = torch.empty(piece, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(piece, dtype=torch.uint8, device="cuda")

    def copy() -> None:
        for begin in range(0, size, piece):
            there[: size - begin].copy_(host[: size - begin], non_blocking=True)
        torch.cuda.synchronize()

    copy()
    return statistics.median(timed(copy) for _ in range(3))


def gemm_flops(side: int = 8192, rounds: int = 50) -> float:
    """Floating-point operations a second of a product of two large bfloat16 matrices, the best of five."""
    one, other = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))

    def multiply() -> None:
        for _ in range(rounds):
            torch.mm(one, other)
        torch.cuda.synchronize()

    multiply()
    return 2 * side**3 * rounds / min(timed(multiply) for _ in range(5))


# -- small things ------------------------------------------------------------------------------------------------------

#: Nobody stops it, nobody counts its steps.
ALONE = (threading.Event(), lambda step, total: None)


def draw(engine: Engine, model: str, request: GenerationRequest) -> bytes:
    return expect(engine.generate(Generate(model=model, request=request), *ALONE), Generated).images[0].rgb


def expect(answer: object, kind: type[AnswerT]) -> AnswerT:
    if not isinstance(answer, kind):
        raise SystemExit(f"bench.gpu: expected {kind.__name__}, got {answer!r}")
    return answer


def timed(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def used(rig: Rig, engine: Engine) -> int:
    """Bytes: of the whole device, else of the worker's memory."""
    held = expect(engine.measure(), Measured).memory.held
    if not rig.cuda:
        return held
    give_back()
    free, total = torch.cuda.mem_get_info()
    return total - free


def transformer_bytes(rig: Rig) -> int:
    return sum(header_bytes(file, 2) for file in (rig.folder / "transformer").glob("*.safetensors"))


def give_back() -> None:
    """What this process itself held of the device, and of pinned memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()


def tell(words: str) -> None:
    print(f"({words})", flush=True)


def table(rig: Rig, rows: Sequence[Row], seconds: float) -> str:
    device = torch.cuda.get_device_name() if rig.cuda else "no GPU"
    parts = "tiny parts" if rig.small else "FLUX.1 dev in full size"
    head = f"{device}, torch {torch.__version__}, {parts}, random weights in bfloat16; {seconds:.0f} s in all:"
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((head, "", "| what | imagegen | at best | times |", "|---|---|---|---|", *lines))


if __name__ == "__main__":
    main()
