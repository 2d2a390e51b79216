"""What a CUDA device makes of a FLUX.1 with random weights: one table for docs/benchmarks.md.

python -m bench.gpu [--shape full|short|tiny] [--folder DIR]

It drives the worker process as the service does, and measures beside it what the machine can do at best. Each row is
printed as soon as it is known, those that say most first; where one fails, the next one follows.
"""

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from bench._flux import build, part_bytes
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.catalog.sources import Folders
from imagegen.core.errors import FailureCode
from imagegen.core.task import GenerationRequest
from imagegen.gpu.machine import driver
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Load, Loaded, Measured, Unload, Unloaded
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.loaders import SPECS
from imagegen.loaders.base import OnStep, StopFlag
from imagegen.loaders.folder import header_bytes
from imagegen.loaders.host_memory import available_bytes

GB, MIB = 10**9, 2**20

#: What one FLUX.1 step takes at 1024x1024 with 512 words, in floating-point operations.
STEP_FLOP = 74.4e12

#: Beside the weights: on disk for tokenizers and configurations, on the device for a picture of 1024x1024 and two CUDA
#: contexts, in host memory for torch in two processes.
DISK_BESIDE, DEVICE_BESIDE, HOST_BESIDE = GB * 6 // 10, 8 * GB, 12 * GB

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

    def __str__(self) -> str:
        return f"| {' | '.join(self)} |"


class Wrong(Exception):
    """The worker's answer is another one than the row needs."""


class Rig(NamedTuple):
    """Where it runs, and with what."""

    root: Path
    device: str
    #: A name of bench._flux.SHAPES.
    shape: str
    #: Of each part's weights.
    parts: Mapping[str, int]

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def small(self) -> bool:
        return self.shape == "tiny"

    @property
    def pixels(self) -> int:
        return 64 if self.small else 1024

    @property
    def folder(self) -> Path:
        return self.root / "flux"

    @property
    def weights(self) -> int:
        """Bytes of the whole model."""
        return sum(self.parts.values())

    def catalog(self, host_cache_gb: float = 0, **fields: Any) -> Catalog:
        """Two models with the same files: each has a transformer of its own, the rest they may share."""
        entry = {"name": "A", "type": "flux", "local_path": "flux", "base_size": 64, "torch_dtype": "bfloat16"} | fields
        return parse_catalog(
            json.dumps({"global": {"host_cache_gb": host_cache_gb}, "models": {"a": entry, "b": entry}}), SPECS
        )

    def request(self, steps: int = FEW, prompt: str = "a cat", seed: int = 1) -> GenerationRequest:
        size = {"width": self.pixels, "height": self.pixels}
        return GenerationRequest(prompt=prompt, steps=steps, guidance_scale=3.5, seed=seed, **size)


class Stage:
    """The worker and what is loaded in it, as far as one row leaves it to the next."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.engine = WorkerEngine(EngineOptions(device=rig.device))
        #: The first load of all; None: not yet.
        self.first: Loaded | None = None
        self._here: dict[str, Catalog] = {}
        self._flops = 0.0

    def warm_up(self) -> None:
        """Imports, the CUDA context, cuBLAS: a first load of tiny parts pays for them."""
        expect(self.engine.measure(), Measured)
        tiny, whole = self.rig._replace(root=self.rig.root / "tiny", shape="tiny"), self.rig
        build("tiny", tiny.folder)
        self.rig = tiny
        self.load(tiny.catalog())
        self.draw(tiny.request())
        self.empty()
        self.rig = whole

    def load(self, catalog: Catalog, model: str = "a") -> Loaded:
        folders = Folders(self.rig.root, self.rig.root)
        loaded = expect(self.engine.load(Load.entry(catalog, model, folders)), Loaded)
        self._here[model] = catalog
        return loaded

    def ready(self, **fields: Any) -> None:
        """Model `a` with these fields is loaded, and nothing else."""
        catalog = self.rig.catalog(**fields)
        if self._here == {"a": catalog}:
            return
        self.empty()
        loaded = self.load(catalog)
        self.first = self.first or loaded

    def unload(self, model: str, **how: bool) -> None:
        expect(self.engine.unload(Unload(model=model, **how)), Unloaded)
        self._here.pop(model, None)

    def empty(self) -> None:
        for model in list(self._here):
            self.unload(model)

    def reset(self) -> None:
        """After a failure: whatever it left in the worker and in this process goes."""
        self.engine.close()
        self._here.clear()
        give_back()

    def draw(self, request: GenerationRequest, model: str = "a") -> bytes:
        return expect(self.engine.generate(Generate(model=model, request=request), *ALONE), Generated).images[0].rgb

    def used(self) -> int:
        """Bytes: of the whole device, else of the worker's memory."""
        held = expect(self.engine.measure(), Measured).memory.held
        if not self.rig.cuda:
            return held
        give_back()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def step(self, what: str) -> Row:
        """Seconds a step of what is loaded, by the difference of two pictures of one prompt: all else falls out."""
        for count in (FEW, MANY):
            self.draw(self.rig.request(count))
        pairs = [[timed(self.draw, self.rig.request(count)) for count in (FEW, MANY)] for _ in range(3)]
        seconds = statistics.median((many - few) / (MANY - FEW) for few, many in pairs)
        if not self.rig.cuda or self.rig.small:
            return Row(what, f"{seconds:.3f} s")
        self._flops = self._flops or gemm_flops()
        return Row.seconds(what, seconds, "at the peak of a product of matrices", STEP_FLOP / self._flops)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("full", "short", "tiny"), help="default: the largest that fits")
    parser.add_argument(
        "--small", action="store_const", const="tiny", dest="shape", help="as --shape tiny: on a CPU too"
    )
    parser.add_argument("--folder", type=Path, help="where the weights may lie meanwhile: 34 GB, `short` 26 GB")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.shape != "tiny":
        print("bench.gpu: no CUDA device here, nothing to measure.")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rigs = [Rig(Path(folder), device, shape, part_bytes(shape)) for shape in _shapes(options.shape)]
        refusals = [refusal(rig) for rig in rigs]
        rig = next((rig for rig, why in zip(rigs, refusals, strict=True) if why is None), None)
        if rig is None:
            print(f"bench.gpu: {'; '.join(filter(None, refusals))}.")
            return
        began = time.monotonic()
        build(rig.shape, rig.folder, device)
        give_back()
        tell(f"(weights written in {time.monotonic() - began:.0f} s)")
        run(rig, PARTS)
        tell(f"\n({time.monotonic() - began:.0f} s in all)")


def _shapes(wanted: str | None) -> Sequence[str]:
    return ("full", "short") if wanted is None else (wanted,)


def refusal(rig: Rig) -> str | None:
    """Why this shape cannot be measured here; None: it can."""
    disk, free = (rig.weights + DISK_BESIDE) / GB, shutil.disk_usage(rig.root).free / GB
    if free < disk:
        return f"`{rig.shape}` needs {disk:.1f} GB in {rig.root.parent}, where {free:.1f} are free"
    card, total = (rig.weights + DEVICE_BESIDE) / GB, 0.0
    if rig.cuda and not rig.small:
        total = torch.cuda.get_device_properties(0).total_memory / GB
    return f"`{rig.shape}` needs a card of {card:.1f} GB, and this one has {total:.1f}" if 0 < total < card else None


def run(rig: Rig, parts: Sequence["Part"]) -> None:
    """Print the table, row by row."""
    tell(f"{heading(rig)}\n\n{Row('what', 'imagegen', 'at best', 'times')}\n|---|---|---|---|")
    stage = Stage(rig)
    try:
        for part in parts:
            if part.cuda_only and not rig.cuda:
                continue
            try:
                for row in part.rows(stage):
                    tell(str(row))
            except Exception as error:  # noqa: BLE001 - whatever a row fails of, the next ones are wanted as well
                tell(str(Row(part.name, "**FAILED**", reason(error))))
                stage.reset()
    finally:
        stage.engine.close()


def heading(rig: Rig) -> str:
    """GPU, driver, torch, and what is drawn with."""
    where = "no GPU"
    if rig.cuda:
        where = f"{torch.cuda.get_device_name()}, driver {driver() or 'unknown'}, CUDA {torch.version.cuda}"
    shapes = {"full": "FLUX.1 dev in full size", "short": "FLUX.1 dev with a T5 of two layers", "tiny": "tiny parts"}
    size = f"{rig.weights / GB:.1f} GB of random weights" if not rig.small else "random weights"
    return f"{where}, torch {torch.__version__}; {shapes[rig.shape]}, {size} in bfloat16, {rig.pixels}x{rig.pixels}:"


def reason(error: Exception) -> str:
    """One line that fits into a cell."""
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0]}".replace("|", "/")[:300]


# -- rows, those that say most first -----------------------------------------------------------------------------------


def warm_up(stage: Stage) -> Iterator[Row]:
    stage.warm_up()
    yield from ()


def plain_step(stage: Stage) -> Iterator[Row]:
    stage.ready()
    yield stage.step("a step, plain")


def cold_load(stage: Stage) -> Iterator[Row]:
    """The load that came before the first step, against reading the same files."""
    if stage.first is None:
        stage.ready()
    assert stage.first is not None
    what = f"cold load of {stage.first.weight_bytes / GB:.1f} GB"
    yield Row.seconds(what, stage.first.seconds, *reading(stage.rig.folder))


def cold_swap(stage: Stage) -> Iterator[Row]:
    """To a model that shares all but the transformer, and pictures after it, each with a prompt of its own."""
    rig = stage.rig
    stage.ready()
    stage.draw(rig.request())
    stage.unload("a", switching=True)
    swapped, needed = stage.load(rig.catalog(), "b"), transformer_bytes(rig)
    yield Row.seconds("cold swap, the rest shared", swapped.seconds, *reading(rig.folder / "transformer"))
    yield Row("bytes of the swap", f"{swapped.moved_bytes:,}", f"{needed:,}", f"{swapped.moved_bytes / needed:.2f}")
    seconds = [timed(stage.draw, rig.request(prompt=f"{number} cats"), "b") for number in range(3)]
    yield Row.seconds("first picture after the swap", seconds[0], "the third", seconds[-1])


def warm_swap(stage: Stage) -> Iterator[Row]:
    """Two models that stay in host memory, and back to the first one."""
    rig, free = stage.rig, available_bytes()
    needed = rig.weights + rig.parts["transformer"] + HOST_BESIDE
    if free < needed and not rig.small:
        yield Row("warm swap", f"not measured: {free / GB:.0f} GB of host memory available, {needed / GB:.0f} needed")
        return
    stage.empty()
    catalog = rig.catalog(host_cache_gb=1000)
    first = stage.load(catalog)
    seconds = timed(stage.unload, "a", keep_warm=True)
    copied = pinned_copy_seconds(first.weight_bytes)
    yield Row.seconds("first way to host memory, which is pinned for it", seconds, "pinned copy", copied)
    taken, size = free - available_bytes(), f"{first.weight_bytes / GB:.1f} GB"
    stage.load(catalog)
    yield Row("host memory of it", f"{taken / GB:.1f} GB", f"its weights: {size}", f"{taken / first.weight_bytes:.2f}")
    expected = stage.draw(rig.request())
    for old, new in (("a", "b"), ("b", "a")):
        stage.unload(old, keep_warm=True, switching=True)
        back = stage.load(catalog, new)
    if not back.warm:
        raise Wrong("the model did not stay warm")
    what = f"warm swap, {back.moved_bytes / GB:.1f} GB moved"
    yield Row.seconds(what, back.seconds, "pinned copy", pinned_copy_seconds(back.moved_bytes))
    yield Row("the same picture after it", yes(stage.draw(rig.request()) == expected))
    stage.unload("b")
    stage.unload("a")
    give_back()
    left = free - available_bytes()
    yield Row("host memory left after both unloads", f"{left / GB:.1f} GB", "before any load: 0 GB")


def attention(word: str) -> Callable[[Stage], Iterator[Row]]:
    def rows(stage: Stage) -> Iterator[Row]:
        stage.ready(attention_backend=word)
        yield stage.step(f"a step, attention `{word}`")

    return rows


def step_cache(stage: Stage) -> Iterator[Row]:
    """How many steps random weights let it leave out says nothing of real ones."""
    stage.ready(step_cache=0.12)
    yield stage.step("a step, with the step cache (random weights)")


def compiled(stage: Stage) -> Iterator[Row]:
    stage.ready(compile=True)
    first = timed(stage.draw, stage.rig.request())
    yield stage.step("a step, compiled")
    yield Row("first picture while it compiles", f"{first:.1f} s")


def float8(stage: Stage) -> Iterator[Row]:
    stage.empty()
    loaded = stage.load(stage.rig.catalog(quantize="float8"))
    yield stage.step("a step, `quantize: float8`")
    best = f"in bfloat16: {stage.rig.weights / GB:.1f} GB"
    yield Row("weights, `quantize: float8`", f"{loaded.weight_bytes / GB:.1f} GB", best)


def full_device(stage: Stage) -> Iterator[Row]:
    """Someone else takes what is left: the picture fails with numbers, and the next one is what it was."""
    rig = stage.rig
    stage.ready()
    expected = stage.draw(rig.request())
    stage.empty()
    stage.ready()  # after a fresh load, the worker holds nothing but weights
    with hog():
        command = Generate(model="a", request=rig.request().evolve(**LARGE))
        failed = stage.engine.generate(command, *ALONE)
    if not isinstance(failed, Failed):
        raise Wrong(f"expected Failed, got {type(failed).__name__}")
    told = failed.code is FailureCode.OUT_OF_MEMORY and "GiB" in failed.message
    yield Row("a full device", f"{failed.code}: {failed.message}", "numbers are told", yes(told))
    yield Row("the same picture once there is room", yes(stage.draw(rig.request()) == expected))


def leftovers(stage: Stage) -> Iterator[Row]:
    """A load and an unload, in a worker that has done nothing but tiny things before."""
    stage.reset()
    stage.warm_up()
    floor = stage.used()
    stage.ready()
    stage.draw(stage.rig.request())
    stage.empty()
    yield Row("left after the unload", f"{(stage.used() - floor) / MIB:.0f} MiB", "before any load: 0 MiB")


class Part(NamedTuple):
    """Rows that belong together."""

    name: str
    rows: Callable[[Stage], Iterator[Row]]
    #: It says nothing on a CPU, or takes minutes there.
    cuda_only: bool = False


PARTS = (
    Part("warm-up", warm_up),
    Part("a step, plain", plain_step),
    Part("cold load", cold_load),
    Part("cold swap", cold_swap),
    Part("warm swap", warm_swap, cuda_only=True),
    Part("a step, attention of cuDNN", attention("_native_cudnn"), cuda_only=True),
    Part("a step, flash attention", attention("_native_flash"), cuda_only=True),
    Part("a step, with the step cache", step_cache),
    Part("a step, compiled", compiled, cuda_only=True),
    Part("a step, `quantize: float8`", float8, cuda_only=True),
    Part("a full device", full_device, cuda_only=True),
    Part("left after the unload", leftovers),
)


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
ALONE: tuple[StopFlag, OnStep] = (threading.Event(), lambda *step: None)


def expect(answer: object, kind: type[AnswerT]) -> AnswerT:
    if isinstance(answer, Failed):
        details = [line for line in answer.traceback.strip().splitlines()[-1:] if answer.message not in line]
        raise Wrong(" ".join((f"{answer.code}: {answer.message}", *details)))
    if not isinstance(answer, kind):
        raise Wrong(f"expected {kind.__name__}, got {type(answer).__name__}")
    return answer


def timed(work: Callable[..., object], *arguments: object, **options: object) -> float:
    began = time.perf_counter()
    work(*arguments, **options)
    return time.perf_counter() - began


def yes(it: bool) -> str:
    return "yes" if it else "**no**"


def transformer_bytes(rig: Rig) -> int:
    return sum(header_bytes(file, 2) for file in (rig.folder / "transformer").glob("*.safetensors"))


def give_back() -> None:
    """What this process itself held of the device, and of pinned memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()


def tell(words: str) -> None:
    """At once: whoever ends the program early has what was measured so far."""
    print(words, flush=True)


if __name__ == "__main__":
    main()
