"""The pretended card behaves like a real one, and leaves torch unchanged."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines import pipeline_utils

from imagegen.core.errors import FailureCode
from imagegen.gpu.memory import classify, needed
from tests.pretend_cuda import GIB, KIB, MIB, Card, Cuda, pretended

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real card")


@pytest.fixture
def cuda() -> Any:
    with pretended() as cuda:
        yield cuda


def floats(size: int, **how: Any) -> torch.Tensor:
    """A tensor of so many bytes."""
    return torch.ones(size // 4, **how)


# -- on and off --------------------------------------------------------------------------------------------------------


def everything_that_is_replaced() -> list[Any]:
    return [
        dict(vars(torch._C)),
        {name: value for name, value in vars(torch.cuda).items() if name != "_queued_calls"},
        list(torch.cuda._queued_calls),
        (torch.version.cuda, torch.compile, torch.get_num_threads()),
        (ThreadPoolExecutor.submit, list(pipeline_utils.SUPPORTED_DEVICE_MAP)),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_torch_is_unchanged(fails: bool) -> None:
    before = everything_that_is_replaced()
    with suppress(KeyError), pretended():
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        assert torch.cuda.is_available()
        assert everything_that_is_replaced() != before
        if fails:
            raise KeyError
    assert everything_that_is_replaced() == before
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")


def test_only_this_thread_and_those_of_pools_pretend(cuda: Cuda) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: torch.zeros(2).to(device="cuda")).result().is_cuda
    seen: list[object] = []

    def look() -> None:
        try:
            seen.append(torch.zeros(2).to(device="cuda"))
        except (AssertionError, RuntimeError) as error:
            seen.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert isinstance(seen[0], Exception)


# -- torch.cuda checks its arguments -----------------------------------------------------------------------------------


def test_device_names_that_torch_cuda_refuses_are_refused(cuda: Cuda) -> None:
    with pytest.raises(ValueError, match="with a specified index"):
        torch.cuda.set_per_process_memory_fraction(0.5, torch.device("cuda"))
    with pytest.raises(TypeError, match="must be `float`"):
        torch.cuda.set_per_process_memory_fraction(1, 0)
    with pytest.raises(AssertionError, match="Invalid device id"):
        torch.cuda.get_device_properties("cuda:1")
    torch.cuda.set_per_process_memory_fraction(0.5, torch.device("cuda:0"))
    assert torch.cuda.get_per_process_memory_fraction(0) == 0.5


def test_before_cuda_is_initialised_there_is_no_peak_to_forget(cuda: Cuda) -> None:
    assert not torch.cuda.is_initialized()
    with pytest.raises(RuntimeError, match="Invalid device argument"):
        torch.cuda.reset_peak_memory_stats("cuda:0")
    assert torch.cuda.memory_allocated("cuda:0") == 0
    torch.ones(1, device="cuda")
    assert torch.cuda.is_initialized()
    torch.cuda.reset_peak_memory_stats("cuda:0")


def test_the_card_is_the_configured_one() -> None:
    with pretended(Card(name="Old card", total=8 * GIB, foreign=2 * GIB, capability=(7, 5))) as cuda:
        assert torch.cuda.get_device_name("cuda") == "Old card"
        assert torch.cuda.get_device_capability() == (7, 5)
        assert not torch.cuda.is_bf16_supported(including_emulation=False)
        free, total = torch.cuda.mem_get_info("cuda")
        assert (free, total) == (6 * GIB - 500 * MIB, 8 * GIB)
        cuda.foreign = 5 * GIB
        assert torch.cuda.mem_get_info()[0] == 3 * GIB - 500 * MIB


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("1", 1), ("0,1", 2), ("5", 0), ("", 0), ("GPU-0a1b", 1)])
def test_the_environment_hides_cards(monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pretended(Card(count=2)):
        assert torch.cuda.device_count() == count
        assert torch.cuda.is_available() is (count > 0)
        if not count:
            with pytest.raises(RuntimeError, match="No CUDA GPUs are available"):
                torch.cuda.init()


# -- where tensors are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0), 0], ids=str)
def test_a_tensor_moves_to_the_card_and_back(cuda: Cuda, word: Any) -> None:
    host = torch.arange(3.0)
    there = host.to(word)
    assert there.is_cuda
    assert there.device == torch.device("cuda", 0)
    assert (there * 2).is_cuda
    assert not host.is_cuda
    back = (there * 2).cpu()
    assert back.device == torch.device("cpu")
    assert back.tolist() == [0, 2, 4]
    there += 1
    assert host.tolist() == [0, 1, 2]


def test_tensors_made_on_the_card_are_on_it(cuda: Cuda) -> None:
    module = torch.nn.Linear(4, 4).to("cuda")
    with torch.device("cuda"):
        inside = torch.zeros(1, 4)
    for tensor in (*module.parameters(), inside, module(inside), torch.empty_like(inside), inside[0]):
        assert tensor.is_cuda
    assert not torch.empty_like(inside, device="cpu").is_cuda
    assert not torch.empty(2, device="meta").is_cuda
    assert torch.empty_like(torch.empty(2, device="meta"), device="cuda").is_cuda
    assert torch.vmap(lambda row: row + 1)(inside).is_cuda
    host = torch.zeros(1, 4)
    assert not host.copy_(inside).is_cuda
    assert not host.is_cuda


def test_both_sides_in_one_call_are_refused(cuda: Cuda) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    for mix in (lambda: there + here, lambda: here * there, lambda: torch.cat([here, there]), lambda: here[there > 0]):
        with pytest.raises(RuntimeError, match="on the same device"):
            mix()
    assert (there + torch.tensor(1.0)).is_cuda
    assert there[here > 0].is_cuda
    there[:] = here
    assert there.type_as(here).device.type == "cpu"


def test_operations_that_need_host_memory_are_refused(cuda: Cuda) -> None:
    there = torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        there.pin_memory()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.randn(3, device="cuda", generator=torch.Generator("cpu"))


def test_compiled_code_draws_on_the_card(quick_compiler: None, cuda: Cuda) -> None:
    module = torch.nn.Linear(4, 4).to("cuda")
    expected = module(torch.ones(2, 4, device="cuda")).cpu()
    module.compile()
    answer = module(torch.ones(2, 4, device="cuda"))
    assert answer.is_cuda
    assert torch.equal(answer.cpu(), expected)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_counted_while_a_tensor_lives(cuda: Cuda) -> None:
    torch.cuda.init()
    there = floats(8 * MIB, device="cuda")
    view, more = there[:10], there + 1
    assert torch.cuda.memory_allocated() == 16 * MIB
    del there, more
    assert torch.cuda.memory_allocated() == 8 * MIB
    del view
    assert torch.cuda.memory_allocated() == 0
    assert torch.cuda.memory_reserved() == torch.cuda.max_memory_allocated() == 16 * MIB
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.memory_reserved() == torch.cuda.max_memory_allocated() == 0


def test_moved_weights_are_counted_once(cuda: Cuda) -> None:
    torch.cuda.init()
    module = torch.nn.Linear(1024, 1024, bias=False).to("cuda")
    assert torch.cuda.memory_allocated() == 4 * MIB
    module.to("cuda")
    assert torch.cuda.memory_allocated() == 4 * MIB
    module.to("cpu")
    assert torch.cuda.memory_allocated() == 0


def test_pinned_memory_is_counted_until_its_cache_is_emptied(cuda: Cuda) -> None:
    torch.cuda.init()
    here = floats(4 * MIB)
    pinned = here.pin_memory()
    made = torch.empty(KIB, dtype=torch.uint8, pin_memory=True)
    assert pinned.is_pinned()
    assert pinned.pin_memory() is pinned
    assert made.is_pinned()
    assert not here.is_pinned()
    assert torch.cuda.memory.host_memory_stats()["active_bytes.current"] == 4 * MIB + KIB
    del pinned, made
    stats = torch.cuda.memory.host_memory_stats()
    assert (stats["active_bytes.current"], stats["allocated_bytes.current"]) == (0, 4 * MIB + KIB)
    torch.accelerator.empty_host_cache()
    assert torch.cuda.memory.host_memory_stats()["allocated_bytes.current"] == 0


@pytest.mark.parametrize(("foreign", "fraction"), [(0, 0.5), (3 * GIB + 512 * MIB, 1.0)])
def test_a_full_card_raises_the_error_of_torch(foreign: int, fraction: float) -> None:
    with pretended(Card(total=4 * GIB, foreign=foreign, context=0)):
        torch.cuda.set_per_process_memory_fraction(fraction, 0)
        torch.cuda.reset_peak_memory_stats()
        held = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 2\.00 GiB\. GPU 0 has a total") as raised:
            torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
        assert classify(raised.value, FailureCode.GENERATION_FAILED)[0] is FailureCode.OUT_OF_MEMORY
        assert needed("cuda", str(raised.value)) == 256 * MIB + 2 * GIB
        assert torch.cuda.memory_allocated() == held.nbytes


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_chosen_call_runs_out_of_memory_and_the_next_one_does_not(cuda: Cuda) -> None:
    there = torch.ones(2, 2, device="cuda")
    cuda.fail("out_of_memory", "matmul", skip=1, tried=300 * MIB)
    assert (there @ there).is_cuda
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 300.00 MiB"):
        there @ there
    assert (there @ there).is_cuda
    assert cuda.calls["matmul"] == 3


def test_after_an_illegal_access_every_call_fails(cuda: Cuda) -> None:
    there = torch.ones(2, 2, device="cuda")
    cuda.fail("illegal_access", "matmul")
    for call in (lambda: there @ there, lambda: there + 1, torch.cuda.synchronize, torch.cuda.empty_cache, there.cpu):
        with pytest.raises(torch.AcceleratorError, match="an illegal memory access was encountered") as raised:
            call()
        assert classify(raised.value, FailureCode.GENERATION_FAILED)[0] is FailureCode.DEVICE_FAULT
    assert torch.cuda.memory_allocated() == there.nbytes


def test_another_process_can_say_what_fails(tmp_path: Path) -> None:
    with pretended(faults=tmp_path / "faults") as cuda:
        there = torch.ones(2, device="cuda")
        (tmp_path / "faults").write_text('{"error": "out_of_memory", "call": "mul"}')
        with pytest.raises(torch.OutOfMemoryError):
            there * 2
        assert not (tmp_path / "faults").exists()
        assert cuda.calls["mul"] == 1
        assert (there * 2).is_cuda
