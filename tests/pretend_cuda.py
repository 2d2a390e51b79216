"""Pretends that this machine has a CUDA card, so that the CUDA branches of the code run on a CPU build of torch.

`with pretended(Card()) as cuda:` pretends until the block ends; torch is then as it was before. A worker process
pretends from its start if it gets the environment that `environment_of_workers` makes (see `pretended_worker`).

Every torch call passes through one function mode. The mode replaces each device word `cuda` by `cpu`, runs the call,
and remembers which storages would now be on the card: those that a call with the word `cuda` made, and the results of
calls on such tensors. From that it answers `tensor.device` and `tensor.is_cuda`, counts memory, and refuses what a real
card refuses: tensors of both sides in one call, pinning or reading as numpy what is on the card, a generator of the
wrong side, more memory than there is. `torch.cuda` is not replaced: its own functions run and check their arguments, on
top of pretended primitives (`torch._C._cuda_*`), which a CPU build lacks.

What this cannot show: speed, streams, kernels and whether there is one for a dtype, rounding, what the allocator adds
(rounding, fragmentation, workspaces of cuBLAS and cuDNN), memory that is taken and given back inside of one call, and
code that reaches the device past torch's Python functions. The size of the context is a guess. What `torch.compile`
made runs as on a CPU; only its results are counted. CUDA generators, graphs and a second card's memory are not there.
"""

import atexit
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Self
from unittest.mock import patch
from weakref import finalize

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

KIB, MIB, GIB = 2**10, 2**20, 2**30

Error = Literal["out_of_memory", "illegal_access"]

#: The environment variable that a pretending worker reads: JSON with `card` and `faults`.
VARIABLE = "PRETEND_CUDA"

#: torch's words for an error after which every later call in the process fails.
ILLEGAL_ACCESS = (
    "CUDA error: an illegal memory access was encountered\n"
    "Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"
    " for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call,"
    " so the stacktrace below might be incorrect.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


@dataclass(frozen=True)
class Card:
    """The properties of the pretended card. Memory is in bytes."""

    name: str = "Pretended card"
    total: int = 80 * GIB
    #: Taken by other processes.
    foreign: int = 0
    #: Taken by this process's own context and libraries, beside torch's allocator.
    context: int = 500 * MIB
    capability: tuple[int, int] = (9, 0)
    #: How many such cards the machine has; CUDA_VISIBLE_DEVICES hides some, as it does of real ones.
    count: int = 1


@dataclass
class _Fault:
    """An error of calls with one name: after the next `skip` calls, the following `times` raise it."""

    error: Error
    call: str
    skip: int
    times: int
    tried: int

    def due(self, call: str) -> bool:
        """Count one call; True: it fails."""
        if self.call not in ("", call) or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Storages:
    """The storages in one kind of memory, each from when it is added until torch frees it. Bytes."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        # Threads that load add to it as well. CPython changes threads at calls and jumps, not inside of `+=`.
        self.bytes = 0
        #: Most at once since `forget_peak`.
        self.peak = 0
        #: Most at once since `trim`: an allocator keeps what was freed.
        self.reserved = 0

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return self.has(_keys(tensor))

    def has(self, keys: Iterable[int]) -> bool:
        """Whether one of these storages is here."""
        return not self._sizes.keys().isdisjoint(keys)

    def has_all(self, keys: set[int]) -> bool:
        return keys <= self._sizes.keys()

    def add(self, tensor: torch.Tensor) -> None:
        for storage in _storages(tensor):
            key, size = storage._cdata, storage.nbytes()
            if key not in self._sizes:
                self._sizes[key] = size
                self.bytes += size
                finalize(storage, self._remove, key, size).atexit = False
        self.peak, self.reserved = max(self.peak, self.bytes), max(self.reserved, self.bytes)

    def _remove(self, key: int, size: int) -> None:
        del self._sizes[key]
        self.bytes -= size

    def forget_peak(self) -> None:
        self.peak = self.bytes

    def trim(self) -> None:
        self.reserved = self.bytes

    @property
    def pieces(self) -> int:
        """The number of storages; an empty one takes no memory."""
        return sum(map(bool, list(self._sizes.values())))


class Cuda:
    """The pretended device: what it holds, how often it was called, and which calls are to fail."""

    def __init__(self, card: Card, faults: Path | None = None) -> None:
        """`faults`: a file that another process may write, the arguments of `fail` as JSON. It is read and removed."""
        self.card = card
        #: Bytes taken by other processes; a test may change them.
        self.foreign = card.foreign
        #: How often each torch function was called with something on the card, by the function's name.
        self.calls: Counter[str] = Counter()
        #: On the card.
        self.device = Storages()
        #: Pinned host memory.
        self.pinned = Storages()
        self._fraction = 1.0
        self._initialised = False
        self._broken = False
        self._faults: list[_Fault] = []
        self._file = faults

    def fail(self, error: Error, call: str = "", *, skip: int = 0, times: int = 1, tried: int = 2 * GIB) -> None:
        """Let calls of the torch function `call` raise (empty: of any function), after `skip` of them that do not.

        `out_of_memory` is raised `times` times and says that `tried` bytes were asked for. After `illegal_access` all
        later calls fail as well.
        """
        self._faults.append(_Fault(error, call, skip, times, tried))

    @property
    def free(self) -> int:
        """The bytes that `mem_get_info` reports as free."""
        return max(0, self.card.total - self.foreign - self.card.context - self.device.reserved)

    def touch(self, call: str) -> None:
        """Count a call of the card, and raise the error that is set for it."""
        self.calls[call] += 1
        if self._file is not None and self._file.exists():
            self.fail(**json.loads(self._file.read_bytes()))
            self._file.unlink()
        for fault in self._faults:
            if fault.due(call):
                if fault.error == "out_of_memory":
                    raise self._out_of_memory(fault.tried)
                self._broken = True
        if self._broken:
            raise torch.AcceleratorError(ILLEGAL_ACCESS)

    def place(self, tensor: torch.Tensor) -> None:
        """The card holds this tensor from now on. Raises OutOfMemoryError."""
        if tensor.is_meta or tensor in self.device:
            return
        size = sum(storage.nbytes() for storage in _storages(tensor))
        there_is = self.card.total - self.foreign - self.card.context
        if self.device.bytes + size > min(int(self.card.total * self._fraction), there_is):
            raise self._out_of_memory(size)
        self.device.add(tensor)

    def _out_of_memory(self, tried: int) -> torch.OutOfMemoryError:
        self.device.trim()  # before it raises, the allocator gives back what it keeps and tries again
        held, kept, ours = self.device.bytes, self.device.reserved, self.card.context + self.device.reserved
        foreign = f"Process 1 has {_size(self.foreign)} memory in use. " if self.foreign else ""
        limit = f"{_size(int(self.card.total * self._fraction))} allowed; " if self._fraction < 1 else ""
        return torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {_size(tried)}. GPU 0 has a total capacity of "
            f"{_size(self.card.total)} of which {_size(self.free)} is free. {foreign}Including non-PyTorch memory, "
            f"this process has {_size(ours)} memory in use. {limit}Of the allocated memory {_size(held)} is allocated "
            f"by PyTorch, and {_size(kept - held)} is reserved by PyTorch but unallocated. If reserved but unallocated "
            "memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
            "documentation for Memory Management  "
            "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
        )

    # -- what the functions of torch.cuda and torch.accelerator call ---------------------------------------------------

    def primitives(self) -> dict[str, Any]:
        """Names of `torch._C` that a CPU build does not have, or that report no device there."""
        return {
            "_has_cuda": True,
            "_cuda_init": self._init,
            "_cuda_getDeviceCount": self._count,
            "_cuda_getDevice": lambda: 0,
            "_cuda_setDevice": self._check_index,
            "_cuda_getDriverVersion": lambda: 13_000,
            "_cuda_getArchFlags": lambda: "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
            "_cuda_synchronize": lambda: self.touch("synchronize"),
            "_cuda_ipc_collect": lambda: self.touch("ipc_collect"),
            "_cuda_emptyCache": self._empty_cache,
            "_cuda_setMemoryFraction": self._limit,
            "_cuda_getMemoryFraction": lambda index: self._fraction,
            "_cuda_memoryStats": self._stats,
            "_cuda_resetPeakMemoryStats": self._forget_peak,
            "_cuda_hostMemoryStats": self._host_stats,
            "_cuda_getCurrentStream": lambda index: (0, 0, 1),
            "_cuda_getCurrentRawStream": lambda index: 0,
            "_cuda_getDefaultStream": lambda index: (0, 0, 1),
            "_cuda_setStream": lambda **stream: None,
            "_accelerator_getAccelerator": lambda: torch.device("cuda"),
            "_accelerator_getDeviceIndex": lambda: 0,
            "_accelerator_setDeviceIndex": self._check_index,
            "_accelerator_exchangeDevice": lambda index: 0,
            "_accelerator_maybeExchangeDevice": lambda index: 0,
            "_accelerator_isAllocatorInitialized": lambda: self._initialised,
            "_accelerator_synchronizeDevice": lambda index: self.touch("synchronize"),
            "_accelerator_getStream": lambda index: _Stream(),
            "_accelerator_setStream": lambda stream: None,
            "_accelerator_emptyCache": self._empty_cache,
            "_accelerator_emptyHostCache": self.pinned.trim,
            "_accelerator_getDeviceStats": self._stats,
            "_accelerator_resetPeakStats": self._forget_peak,
            "_accelerator_getMemoryInfo": self._memory_info,
        }

    def attributes(self) -> dict[str, Any]:
        """Such names of `torch.cuda`, and its state before its first use."""
        return {
            "_cudart": SimpleNamespace(cudaMemGetInfo=self._memory_info),
            "_get_device_properties": self._properties,
            "_exchange_device": lambda index: 0,
            "_maybe_exchange_device": lambda index: 0,
            "_initialized": False,
            "_cached_device_count": None,
            "_queued_calls": list(torch.cuda._queued_calls),
            "default_generators": (torch.Generator(),),
            "Stream": _Stream,
            "Event": _Stream,
        }

    def _init(self) -> None:
        if not self._count():
            raise RuntimeError("No CUDA GPUs are available")
        self._initialised = True

    def _count(self) -> int:
        visible = torch.cuda._parse_visible_devices()
        known = [device for device in visible if isinstance(device, str) or device < self.card.count]
        return min(len(known), self.card.count)

    def _check_index(self, index: int) -> None:
        """Raises as torch does for a device that it does not know, or not yet."""
        if not self._initialised or not 0 <= index < self._count():
            raise RuntimeError(f"Invalid device argument {index}: did you call init?")

    def _properties(self, index: int) -> Any:
        major, minor = self.card.capability
        return SimpleNamespace(
            name=self.card.name, total_memory=self.card.total, major=major, minor=minor, multi_processor_count=132
        )

    def _limit(self, fraction: float, index: int) -> None:
        self._check_index(index)
        self.touch("set_per_process_memory_fraction")
        self._fraction = fraction

    def _empty_cache(self) -> None:
        self.touch("empty_cache")
        self.device.trim()

    def _forget_peak(self, index: int) -> None:
        self._check_index(index)
        self.device.forget_peak()

    def _stats(self, index: int) -> dict[str, Any]:
        self._check_index(index)
        kept = self.device.reserved
        return {
            "allocated_bytes": {"all": {"current": self.device.bytes, "peak": self.device.peak}},
            "reserved_bytes": {"all": {"current": kept, "peak": max(kept, self.device.peak)}},
        }

    def _host_stats(self) -> dict[str, Any]:
        return {
            "allocations": {"current": self.pinned.pieces},
            "allocated_bytes": {"current": self.pinned.reserved},
            "active_bytes": {"current": self.pinned.bytes},
        }

    def _memory_info(self, index: int) -> tuple[int, int]:
        self._check_index(index)
        self.touch("mem_get_info")
        return self.free, self.card.total


class _Stream:
    """A stream or an event. It never waits, because all work is done already."""

    device, device_index, device_type, stream_id, cuda_stream = torch.device("cuda", 0), 0, 1, 0, 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def record_event(self, event: "_Stream | None" = None) -> "_Stream":
        return event or _Stream()

    def query(self) -> bool:
        return True

    def record(self, *streams: Any) -> None: ...

    synchronize = wait = wait_event = wait_stream = record


# -- tensors -----------------------------------------------------------------------------------------------------------

_TENSOR = torch.Tensor

#: Answered with no tensor, and without the card.
_QUESTIONS = (
    *(_TENSOR.numel, _TENSOR.element_size, _TENSOR.is_floating_point, _TENSOR.is_complex, _TENSOR.size, _TENSOR.dim),
    *(_TENSOR.stride, _TENSOR.is_contiguous, _TENSOR.__len__, _TENSOR.untyped_storage),
)

#: These take tensors of both sides. A tensor in host memory takes an index from there only.
_BOTH_SIDES = frozenset({_TENSOR.to, _TENSOR.copy_, _TENSOR.type_as, _TENSOR.__getitem__, _TENSOR.__setitem__})


class _Mode(TorchFunctionMode):
    """The function mode, which handles every call of a torch function from Python."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        #: Calls that are answered here, and those that run with the device words that they were given.
        self._answers: dict[Any, Callable[..., Any]] = {
            **{question: question for question in _QUESTIONS},
            torch.device: torch.device,
            torch._C._nn._parse_to: torch._C._nn._parse_to,
            torch._has_compatible_shallow_copy_type: torch._has_compatible_shallow_copy_type,
            _TENSOR.device.__get__: self._device_of,
            _TENSOR.is_cuda.__get__: lambda tensor, *_: tensor in cuda.device,  # type: ignore[attr-defined]
            _TENSOR.is_cpu.__get__: lambda tensor, *_: self._device_of(tensor).type == "cpu",  # type: ignore[attr-defined]
            _TENSOR.get_device: lambda tensor: 0 if tensor in cuda.device else -1,
            _TENSOR.is_pinned: lambda tensor, *_: tensor in cuda.pinned,
            _TENSOR.pin_memory: self._pin,
            _TENSOR.record_stream: lambda tensor, stream: None,
            _TENSOR.cuda: lambda tensor, *_, **how: self._call(_TENSOR.to, (tensor, "cuda"), {}),
            _TENSOR.cpu: lambda tensor, **how: self._call(_TENSOR.to, (tensor, "cpu"), how),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._answers:
            return self._answers[func](*args, **(kwargs or {}))
        if func.__name__ in ("__get__", "__set__"):
            return func(*args)
        return self._call(func, args, dict(kwargs or {}))

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if type(kwargs.get("device")) is int:  # a card's number
            kwargs["device"] = "cuda"
        if func is _TENSOR.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cuda", *args[2:])
        given = [*_tensors(args), *_tensors(kwargs)]
        known = {key for tensor in given for key in _keys(tensor)}
        ours, target = self._cuda.device.has(known), self._target(func, args, kwargs)
        if ours or target == "cuda":
            torch.cuda.init()  # torch does, at the first tensor
            self._cuda.touch(func.__name__)
            self._refuse(func, [] if self._cuda.device.has_all(known) or not ours else given, args, kwargs, target)
        if target == "cuda":
            args = tuple(map(_on_cpu, args))
            kwargs = {name: _on_cpu(value) for name, value in kwargs.items()}
        pin = kwargs.pop("pin_memory", False)
        if ours and func is torch.nn.functional.scaled_dot_product_attention:
            # A CPU has neither cuDNN's attention nor the memory-efficient one: those that it has stand in.
            with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
                answer = func(*args, **kwargs)
        else:
            answer = func(*args, **kwargs)
        if pin:
            torch.cuda.init()
            self._cuda.pinned.add(answer)
        return self._placed(answer, target, known, ours)

    def _target(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The kind of device that the call names for its result; empty: none."""
        for value in (*args, *kwargs.values()):
            if (device := _device(value)) is not None:
                return device.type
        if func in (_TENSOR.to, _TENSOR.type_as) and len(args) > 1 and isinstance(args[1], torch.Tensor):
            return self._device_of(args[1]).type
        return ""

    def _refuse(
        self, func: Any, given: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], target: str
    ) -> None:
        """Raise what the real functions raise. `given`: tensors of which one at least is on the card."""
        theirs = any(it not in self._cuda.device and it.dim() and not it.is_meta for it in given)
        if theirs and func not in _BOTH_SIDES:
            words = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            raise RuntimeError(f"{words} (when calling {func.__name__})")
        if func is _TENSOR.__getitem__ and args[0] not in self._cuda.device:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        if func in (_TENSOR.numpy, _TENSOR.__array__):
            words = "can't convert cuda:0 device type tensor to numpy."
            raise TypeError(f"{words} Use Tensor.cpu() to copy the tensor to host memory first.")
        if target != "cpu" and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")

    def _placed(self, answer: Any, target: str, known: set[int], ours: bool) -> Any:
        """The answer on the side where it belongs: copied, where the call handed out one of the `known` storages."""
        if target and isinstance(answer, torch.Tensor) and not known.isdisjoint(_keys(answer)):
            if (answer in self._cuda.device) is (target == "cuda"):
                return answer
            answer = answer.clone()
        if target == "cuda" or (ours and not target):
            for tensor in _tensors(answer):
                if known.isdisjoint(_keys(tensor)):
                    self._cuda.place(tensor)
        return answer

    def _device_of(self, tensor: torch.Tensor, *_: Any) -> torch.device:
        return torch.device("cuda", 0) if tensor in self._cuda.device else tensor.device

    def _pin(self, tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        if tensor in self._cuda.device:
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        if tensor not in self._cuda.pinned:
            torch.cuda.init()
            tensor = tensor.clone()
            self._cuda.pinned.add(tensor)
        return tensor

    def compiled(self, compiler: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.compile`, whose code then runs without this mode: the compiler cannot look through it."""

        @wraps(compiler)
        def compile_aside(model: Callable[..., Any], **how: Any) -> Any:
            code = compiler(model, **how)

            def run(*args: Any, **kwargs: Any) -> Any:
                with _pop_mode_temporarily():
                    known = {key for tensor in _tensors([args, kwargs]) for key in _keys(tensor)}
                    ours = self._cuda.device.has(known)
                    if ours:
                        self._cuda.touch("compiled")
                    return self._placed(code(*args, **kwargs), "", known, ours)

            return run

        return compile_aside

    def in_threads(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        """`ThreadPoolExecutor.submit` that pretends in the thread as well: modes belong to one thread."""

        def run(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self:
                return work(*args, **kwargs)

        @wraps(submit)
        def submit_pretending(pool: Any, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            return submit(pool, run, work, *args, **kwargs)

        return submit_pretending


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        # Quantised: a wrapper around others.
        return [it for name in tensor.__tensor_flatten__()[0] for it in _storages(getattr(tensor, name))]
    try:
        return [tensor.untyped_storage()]
    except NotImplementedError:  # inside of torch.vmap: a wrapper as well
        return _storages(torch._C._functorch.get_unwrapped(tensor))


def _keys(tensor: torch.Tensor) -> list[int]:
    """The key that distinguishes its storages from all other live ones."""
    return [storage._cdata for storage in _storages(tensor)]


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in the arguments of a call, or in its result."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def _device(value: Any) -> torch.device | None:
    """The device that an argument names."""
    if isinstance(value, str):
        return torch.device(value) if value.partition(":")[0] in ("cuda", "cpu", "meta") else None
    return value if isinstance(value, torch.device) else None


def _on_cpu(value: Any) -> Any:
    device = _device(value)
    return "cpu" if device is not None and device.type == "cuda" else value


def _size(size: int) -> str:
    """The size in the format of torch's allocator."""
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"


# -- on and off --------------------------------------------------------------------------------------------------------


@contextmanager
def pretended(card: Card | None = None, faults: Path | None = None) -> Iterator[Cuda]:
    """Pretend a CUDA card until the context ends. Contexts cannot be nested. `faults` is as in Cuda."""
    cuda = Cuda(card or Card(), faults)
    mode = _Mode(cuda)
    with ExitStack() as undo:
        undo.enter_context(_told_to_diffusers())
        undo.enter_context(patch.multiple(torch._C, create=True, **cuda.primitives()))
        undo.enter_context(patch.multiple(torch.cuda, create=True, **cuda.attributes()))
        undo.enter_context(patch.object(torch.version, "cuda", "13.0"))
        undo.enter_context(patch.object(torch, "compile", mode.compiled(torch.compile)))
        undo.enter_context(patch.object(torch.Tensor, "_make_wrapper_subclass", _wrapper()))
        undo.enter_context(patch.object(ThreadPoolExecutor, "submit", mode.in_threads(ThreadPoolExecutor.submit)))
        # As the engine does for a CPU, which does the work: threads that share a core with others spin for each other.
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        undo.enter_context(mode)
        yield cuda


def _wrapper() -> Any:
    """What makes torchao's quantised tensors, which is called past the mode: the wrapper is where its parts are."""
    make = torch.Tensor._make_wrapper_subclass

    def on_cpu(kind: Any, *args: Any, **kwargs: Any) -> Any:
        return make(kind, *args, **{name: _on_cpu(value) for name, value in kwargs.items()})

    return staticmethod(on_cpu)


@contextmanager
def _told_to_diffusers() -> Iterator[None]:
    """diffusers finds out about the device once, when it is imported or first asked."""
    from diffusers.pipelines import pipeline_utils
    from diffusers.utils.torch_utils import TorchDeviceBackend

    forget = TorchDeviceBackend._detect_device_type.cache_clear
    forget()
    with patch.object(pipeline_utils, "SUPPORTED_DEVICE_MAP", ["balanced", "cuda", "cpu"]):
        yield
    forget()


def environment_of_workers(card: Card | None = None, faults: Path | None = None) -> dict[str, str]:
    """Variables that let worker processes pretend, and no other process. `faults` is as in Cuda."""
    tests = Path(__file__).parent
    path = [str(tests / "pretended_worker"), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    told = {"card": asdict(card or Card()), "faults": str(faults or "")}
    return {"PYTHONPATH": os.pathsep.join(filter(None, path)), VARIABLE: json.dumps(told)}


def install(environment: Mapping[str, str]) -> None:
    """Pretend until this process ends, as `environment_of_workers` says."""
    told = json.loads(environment[VARIABLE])
    card = Card(**told["card"] | {"capability": tuple(told["card"]["capability"])})
    context = pretended(card, Path(told["faults"]) if told["faults"] else None)
    context.__enter__()
    atexit.register(context.__exit__, None, None, None)  # one that nobody refers to would end here
