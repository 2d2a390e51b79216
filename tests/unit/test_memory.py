"""The failure code and message for each exception of the engine; the exception's own text stays in the log."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.core.errors import FailureCode, WeightsCorrupt, WeightsMissing, WeightsRefused
from imagegen.gpu import memory as gpu_memory
from imagegen.gpu.memory import causes, classify, context_works, forget_peak, give_back, limit, measure, needed, peak
from imagegen.gpu.protocol import CONTEXT_BYTES

LOADING, WORKING = FailureCode.LOAD_FAILED, FailureCode.GENERATION_FAILED
SECRET = "/srv/models/private token=hf_secret"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError(SECRET),
        OutOfMemoryError(SECRET),
        RuntimeError(f"CUDA out of memory. Tried to allocate 2.00 GiB. {SECRET}"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_is_reported_with_advice(error: Exception) -> None:
    code, message = classify(error, WORKING)
    assert code is FailureCode.OUT_OF_MEMORY
    assert "smaller" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_out_of_memory_is_recognised_in_the_errors_of_each_allocator(words: str) -> None:
    assert classify(RuntimeError(words), WORKING)[0] is FailureCode.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: misaligned address",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_a_broken_device_is_recognised_by_the_errors_of_cuda(words: str) -> None:
    code, message = classify(RuntimeError(f"{words}\n{SECRET}"), WORKING)
    assert code is FailureCode.DEVICE_FAULT
    assert SECRET not in message


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: hardware stack error",
        "CUDA error: operation not supported on global/shared address space",
        "CUDA error: invalid program counter",
        "CUDA error: unknown error",
    ],
)
def test_a_broken_device_is_recognised_by_rare_errors_of_cuda(words: str) -> None:
    # Each is documented with: "the process must be terminated and relaunched".
    assert classify(RuntimeError(words), WORKING)[0] is FailureCode.DEVICE_FAULT


@pytest.mark.parametrize(
    ("error", "code"),
    [(WeightsMissing("a"), FailureCode.WEIGHTS_MISSING), (WeightsRefused("a"), FailureCode.WEIGHTS_REFUSED)],
)
def test_a_known_engine_error_keeps_its_message(error: WeightsMissing | WeightsRefused, code: FailureCode) -> None:
    assert classify(error, LOADING) == (code, "a")


def wrapped(cause: Exception, *, plainly: bool) -> Exception:
    """The error of a library that catches an exception and raises its own, with `from` or without."""
    try:
        try:
            raise cause
        except Exception as error:
            if plainly:
                raise WeightsCorrupt from error
            raise WeightsCorrupt  # noqa: B904
    except WeightsCorrupt as outer:
        return outer


@pytest.mark.parametrize("plainly", [True, False])
@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (OutOfMemoryError(SECRET), FailureCode.OUT_OF_MEMORY),
        (MemoryError(), FailureCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: device-side assert triggered"), FailureCode.DEVICE_FAULT),
        (RuntimeError("size mismatch"), FailureCode.WEIGHTS_CORRUPT),
    ],
)
def test_a_device_error_is_recognised_inside_a_librarys_error(
    cause: Exception, code: FailureCode, plainly: bool
) -> None:
    assert classify(wrapped(cause, plainly=plainly), LOADING)[0] is code


def test_an_exception_that_was_raised_from_none_counts_alone() -> None:
    error = KeyError("x")
    error.__context__, error.__suppress_context__ = OutOfMemoryError(), True
    assert classify(error, LOADING)[0] is LOADING


def test_exceptions_that_were_raised_from_one_another_come_to_an_end() -> None:
    one, other = KeyError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    assert list(causes(one)) == [one, other]


@pytest.mark.parametrize("during", [LOADING, WORKING])
def test_an_unexpected_failure_has_the_code_of_the_current_operation(during: FailureCode) -> None:
    assert classify(KeyError("x"), during)[0] is during


def test_an_unexpected_failure_names_its_class_and_the_log() -> None:
    assert classify(KeyError(SECRET), WORKING)[1] == (
        "An unexpected KeyError while making the picture; the log (stderr of the service; "
        "`journalctl` under systemd) has the details."
    )
    assert "loading the model" in classify(OSError(2, "No such file", SECRET), LOADING)[1]


@given(
    st.sampled_from([OSError, RuntimeError, ValueError, KeyError, ImportError, AssertionError, MemoryError]),
    st.text(min_size=1),
    st.sampled_from([LOADING, WORKING]),
)
def test_the_text_of_an_exception_never_reaches_the_caller(
    kind: type[Exception], words: str, during: FailureCode
) -> None:
    # Whatever it says, the message is one of those that are written here.
    messages = {classify(kind(text), during)[1] for text in ("x", "out of memory", "misaligned address")}
    assert classify(kind(words), during)[1] in messages


def test_without_a_gpu_the_process_is_measured() -> None:
    memory = measure("cpu")
    assert not memory.gpu_available
    assert memory.total == 0
    assert 1_000_000 < memory.host < 1_000_000_000_000


def test_without_a_device_a_model_may_take_what_the_machine_has() -> None:
    memory = measure("cpu")
    assert memory.host < memory.capacity(0.1)
    assert memory.total == 0


def test_the_peak_of_a_failure_includes_the_failed_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    assert needed("cuda", "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has") == 2**30 * 5 // 2
    assert needed("cuda", "CUDA out of memory. Tried to allocate 20.00 MiB.") == 2**30 + 20 * 2**20
    assert needed("cuda", "CUDA error: out of memory") == 0
    assert needed("cpu", "Tried to allocate 1.50 GiB") == 0
    assert (peak("cuda"), peak("cpu")) == (2**30, 0)


@pytest.mark.parametrize(("device", "index"), [("cuda", None), ("cuda:1", 1)])
def test_a_limit_names_the_device_by_its_index(monkeypatch: pytest.MonkeyPatch, device: str, index: int | None) -> None:
    import torch

    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *how: asked.append(how))
    limit(device, 0.5)
    assert asked == [(0.5, index)]


def test_cuda_is_initialised_before_its_peak_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    forget_peak("cuda:0")
    assert calls == ["init", "cuda:0"]


# -- torch.cuda, patched -----------------------------------------------------------------------------------------------

GIB = 2**30


@pytest.mark.parametrize(("free", "foreign"), [(20 * GIB, 0), (20 * GIB - CONTEXT_BYTES, 0), (7 * GIB, 12.5 * GIB)])
def test_memory_of_other_processes_is_neither_free_nor_held_here(
    monkeypatch: pytest.MonkeyPatch, free: int, foreign: float
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "G")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="8932f937-d72c"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * GIB)
    now = measure("cuda")
    assert (now.free, now.total, now.cached) == (free, 24 * GIB, 4 * GIB)
    assert now.gpu_uuid == "8932f937-d72c"
    assert now.foreign == foreign


def test_without_a_card_no_process_holds_memory_of_it() -> None:
    assert measure("cpu").foreign == 0


@pytest.mark.parametrize(
    ("words", "works"),
    [
        ("", True),
        ("CUDA error: out of memory", True),  # it says nothing of the context
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: no CUDA-capable device is detected", False),
    ],
)
def test_a_context_works_that_runs_a_kernel(monkeypatch: pytest.MonkeyPatch, words: str, works: bool) -> None:
    def run_kernel(device: str) -> None:
        assert device == "cuda"
        if words:
            raise RuntimeError(words)

    monkeypatch.setattr(gpu_memory, "run_kernel", run_kernel)
    assert context_works("cuda") is works
    assert context_works("cpu")


@pytest.mark.parametrize(
    ("switching", "calls"), [(False, ["synchronize", "empty_cache", "empty_host_cache"]), (True, [])]
)
def test_memory_goes_back_to_the_device_unless_the_next_model_takes_it(
    monkeypatch: pytest.MonkeyPatch, switching: bool, calls: list[str]
) -> None:
    import torch

    made: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: made.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.append("empty_cache"))
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: made.append("empty_host_cache"))
    give_back("cuda", switching=switching)
    assert made == calls
