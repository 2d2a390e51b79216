"""The worker process: after any fault the service gets an answer and a new worker."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import torch
from structlog.testing import capture_logs

from imagegen.core.errors import FailureCode
from imagegen.gpu import worker_engine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Loaded, Measured, Stopped
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.hub.process import downloader_environment
from tests.conftest import CPU, fake_catalog, load_command, request_for


@pytest.fixture
def engine() -> Iterator[WorkerEngine]:
    made = WorkerEngine(CPU, load_timeout_s=60, step_timeout_s=60)
    yield made
    made.close()


def generate(engine: WorkerEngine, prompt: str = "fine", stop: threading.Event | None = None) -> object:
    command = Generate(model="fake", request=request_for(prompt))
    return engine.generate(command, stop or threading.Event(), lambda *step: None)


@pytest.mark.parametrize("fault", ["abort", "segfault", "exit", "device_fault"])
@pytest.mark.parametrize("fault_at", ["load", "step"])
def test_a_worker_that_dies_is_an_answer_and_is_replaced(engine: WorkerEngine, fault: str, fault_at: str) -> None:
    catalog = fake_catalog(fake={"fault": fault, "fault_at": fault_at, "fault_prompt": "poison"}, good={})
    failed = engine.load(load_command(catalog, "fake"))
    if fault_at == "step":
        assert isinstance(failed, Loaded)
        failed = generate(engine, "poison")  # type: ignore[assignment]
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_CRASHED
    assert failed.worker_died
    assert isinstance(engine.load(load_command(catalog, "good")), Loaded)


def test_on_a_cpu_a_worker_imports_torch_for_the_first_model_that_needs_it(engine: WorkerEngine) -> None:
    assert isinstance(engine.measure(), Measured)
    assert isinstance(engine.load(load_command(fake_catalog(fake={}), "fake")), Loaded)
    assert "libtorch" not in Path(f"/proc/{engine.pid}/maps").read_text()


@pytest.mark.parametrize("frame", [b"", b"\xc1", msgpack.packb({"kind": "step", "new": 1}), msgpack.packb([1])])
def test_a_worker_that_talks_nonsense_is_replaced(engine: WorkerEngine, frame: bytes) -> None:
    assert isinstance(engine.measure(), Measured)
    pid, ours = engine.pid, engine._worker._connection  # type: ignore[union-attr]
    near, far = socket.socketpair()
    engine._worker._connection = Connection(near.detach())  # type: ignore[union-attr]
    with Connection(far.detach()) as worker:
        worker.send_bytes(frame)
        failed = engine.measure()
    ours.close()
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_CRASHED
    assert isinstance(engine.measure(), Measured)
    assert engine.pid != pid


def test_a_silent_worker_is_killed_and_replaced() -> None:
    engine = WorkerEngine(CPU, load_timeout_s=60, step_timeout_s=1)
    catalog = fake_catalog(fake={"fault": "hang", "fault_prompt": "poison"})
    assert isinstance(engine.load(load_command(catalog, "fake")), Loaded)
    pid = engine.pid
    assert pid is not None
    failed = generate(engine, "poison")
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_HUNG
    assert not psutil.pid_exists(pid)
    assert isinstance(engine.load(load_command(catalog, "fake")), Loaded)
    assert isinstance(generate(engine), Generated)
    engine.close()


@pytest.mark.parametrize("fault", ["hang", "spin"])
def test_a_load_that_hangs_is_killed_and_the_next_one_succeeds(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    assert isinstance(engine.measure(), Measured)  # it has started, which takes its time
    catalog = fake_catalog(fake={"fault": fault, "fault_at": "load"}, good={})
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_load_timeout_s", 0.2)
        failed = engine.load(load_command(catalog, "fake"))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_HUNG
    assert isinstance(engine.load(load_command(catalog, "good")), Loaded)


def test_a_load_may_exceed_its_timeout_as_long_as_it_reads(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(engine.measure(), Measured)
    (tmp_path / "weights").write_bytes(bytes(12 * 2**20))
    catalog = fake_catalog(slow={"local_path": "weights", "read_seconds_per_mib": 0.25})
    monkeypatch.setattr(engine, "_load_timeout_s", 1)
    loaded = engine.load(load_command(catalog, "slow", tmp_path))
    assert isinstance(loaded, Loaded)
    assert loaded.seconds > 2


def test_a_load_that_stops_reading_is_killed(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(engine.measure(), Measured)
    (tmp_path / "weights").write_bytes(bytes(4 * 2**20))
    fields = {"local_path": "weights", "read_seconds_per_mib": 0.25, "fault": "hang", "fault_at": "load"}
    monkeypatch.setattr(engine, "_load_timeout_s", 1)
    failed = engine.load(load_command(fake_catalog(slow=fields), "slow", tmp_path))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_HUNG


# -- a worker that is killed and does not die: it waits in the kernel, for a driver or a disk -----------------------


def never(process: object, timeout: float | None = None) -> int:
    assert timeout is not None, "waits without bound"
    raise subprocess.TimeoutExpired("worker", timeout)


def until_dead() -> None:
    """Whether all children are dead and not yet reaped."""
    for process in psutil.Process().children():
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("closes", [False, True])
def test_a_worker_that_does_not_die_is_reported_and_replaced_and_leaves_no_zombie(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    assert isinstance(engine.measure(), Measured)
    pid = engine.pid
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(subprocess.Popen, "wait", never)
        patch.setattr(engine, "_load_timeout_s", 0.2)
        failed = engine.load(load_command(fake_catalog(fake={"fault": "hang", "fault_at": "load"}), "fake"))
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_HUNG
    assert f"({pid}) was killed and does not end: it may still hold device memory" in failed.message
    assert [(told["event"], told["pid"]) for told in logs] == [("worker_does_not_end", pid)]
    until_dead()
    if closes:
        engine.close()
    else:
        assert isinstance(engine.measure(), Measured)
    assert [child.pid for child in psutil.Process().children()] == ([] if closes else [engine.pid])


def test_a_worker_that_is_aborted_and_does_not_die_is_not_waited_for(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(engine.measure(), Measured)
    with monkeypatch.context() as patch:
        patch.setattr(worker_engine, "KILL_PATIENCE_S", 0.2)
        patch.setattr(subprocess.Popen, "kill", lambda process: None)
        timer = threading.Timer(0.2, engine.abort)
        timer.start()
        failed = engine.load(load_command(fake_catalog(slow={"load_seconds": 600}), "slow"))
    assert isinstance(failed, Failed)
    assert "does not end" in failed.message
    (left,) = psutil.Process().children()
    left.kill()
    until_dead()
    assert isinstance(engine.measure(), Measured)
    assert [child.pid for child in psutil.Process().children()] == [engine.pid]


# -- a worker that somebody has stopped --------------------------------------------------------------------------------


def test_a_stopped_worker_is_continued_when_it_is_needed(engine: WorkerEngine) -> None:
    assert isinstance(engine.measure(), Measured)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert isinstance(engine.measure(), Measured)
    assert engine.pid == pid


def test_a_worker_that_is_stopped_while_it_runs_does_not_hold_a_stop() -> None:
    engine = WorkerEngine(CPU, load_timeout_s=60, step_timeout_s=5)
    assert isinstance(engine.load(load_command(fake_catalog(fake={"step_seconds": 0.02}), "fake")), Loaded)
    stop, seen = threading.Event(), threading.Event()
    pid = engine.pid
    assert pid is not None

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        if not seen.is_set():
            os.kill(pid, signal.SIGSTOP)
            stop.set()
        seen.set()

    command = Generate(model="fake", request=request_for(steps=200, batch_size=8))
    assert isinstance(engine.generate(command, stop, on_step), Stopped)
    assert engine.pid == pid
    engine.close()


def test_running_out_of_memory_keeps_the_worker(engine: WorkerEngine) -> None:
    catalog = fake_catalog(fake={"fault": "out_of_memory", "fault_prompt": "large"})
    assert isinstance(engine.load(load_command(catalog, "fake")), Loaded)
    pid = engine.pid
    for _ in range(5):
        failed = generate(engine, "large")
        assert isinstance(failed, Failed)
        assert failed.code is FailureCode.OUT_OF_MEMORY
        assert isinstance(generate(engine), Generated)
    assert engine.pid == pid


def test_a_worker_that_is_killed_while_idle_leaves_no_process_and_no_descriptor(engine: WorkerEngine) -> None:
    assert isinstance(engine.measure(), Measured)
    here = psutil.Process()
    before = here.num_fds()
    psutil.Process(engine.pid).kill()
    failed = engine.measure()
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_CRASHED
    assert isinstance(engine.measure(), Measured)
    assert here.num_fds() == before
    assert [child.pid for child in here.children()] == [engine.pid]


def test_a_stop_is_noticed_even_between_very_fast_steps(engine: WorkerEngine) -> None:
    assert isinstance(engine.load(load_command(fake_catalog(fake={"step_seconds": 0.001}), "fake")), Loaded)
    stop, seen = threading.Event(), 0

    def on_step(step: int, total: int, preview: bytes = b"") -> None:
        nonlocal seen
        seen = step
        stop.set()

    command = Generate(model="fake", request=request_for(steps=200, batch_size=20))
    assert isinstance(engine.generate(command, stop, on_step), Stopped)
    assert seen < 2000


HALF_AN_ANSWER = "import os, sys, time; os.write(int(sys.argv[1]), bytes([0, 0, 0, 100, 1])); time.sleep(600)"
NEVER_READS = "import time; time.sleep(600)"


@pytest.mark.parametrize("script", [HALF_AN_ANSWER, NEVER_READS])
def test_a_worker_that_stops_in_the_middle_of_a_frame_is_killed_and_replaced(
    monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    engine = WorkerEngine(CPU, load_timeout_s=60, step_timeout_s=1)
    start = subprocess.Popen

    def start_another(arguments: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", script, arguments[4]], **options)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", start_another)
        command = Generate(model="fake", request=request_for(), init_image=bytes(8_000_000))
        failed = engine.generate(command, threading.Event(), lambda *step: None)
    assert isinstance(failed, Failed)
    assert failed.worker_died
    assert engine.pid is None
    assert isinstance(engine.measure(), Measured)
    engine.close()


def test_a_process_that_cannot_be_started_is_tried_again_and_then_an_answer(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 2
    start = subprocess.Popen

    def refuse(*args: Any, **options: Any) -> Any:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(worker_engine, "START_DELAYS_S", (0, 0))
    assert isinstance(engine.measure(), Measured)
    engine.close()
    refusals = 3
    failed = engine.measure()
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.WORKER_CRASHED
    assert isinstance(engine.measure(), Measured)


def test_abort_ends_a_load_from_another_thread(engine: WorkerEngine) -> None:
    assert isinstance(engine.measure(), Measured)
    timer = threading.Timer(0.2, engine.abort)
    timer.start()
    failed = engine.load(load_command(fake_catalog(slow={"load_seconds": 600}), "slow"))
    assert isinstance(failed, Failed)
    assert failed.message == "The worker process died (SIGKILL) and was replaced."


def test_the_worker_has_no_token_no_network_and_no_listening_socket(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    assert isinstance(engine.measure(), Measured)
    worker = psutil.Process(engine.pid)
    environment = worker.environ()
    assert "hf_canary" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not [c for c in worker.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]


def test_ctrl_c_in_the_terminal_leaves_the_worker_to_its_parent(engine: WorkerEngine) -> None:
    assert isinstance(engine.measure(), Measured)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert isinstance(engine.measure(), Measured)
    assert engine.pid == pid


PARENT = """
import sys
from imagegen.gpu.worker_engine import WorkerEngine
from tests.conftest import CPU, fake_catalog, load_command
engine = WorkerEngine(CPU)
engine.measure()
print(engine.pid, flush=True)
engine.load(load_command(fake_catalog(slow={"load_seconds": 600}), "slow"))
"""


def test_a_worker_leaves_with_its_parent_even_in_the_middle_of_a_load() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def test_closing_leaves_no_process_and_no_descriptor_behind() -> None:
    here = psutil.Process()
    before = here.num_fds()
    for _ in range(3):
        engine = WorkerEngine(CPU)
        assert isinstance(engine.measure(), Measured)
        engine.close()
    assert here.num_fds() == before
    assert not here.children()


def test_no_module_is_taken_from_the_folder_that_the_service_starts_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: WorkerEngine
) -> None:
    (tmp_path / "colorsys.py").write_text("import pathlib; pathlib.Path('marker').touch(); raise SystemExit(1)")
    (tmp_path / "safetensors.py").write_text("import pathlib; pathlib.Path('marker').touch(); raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert isinstance(engine.load(load_command(fake_catalog(), "fake")), Loaded)
    assert isinstance(generate(engine), Generated)
    assert not (tmp_path / "marker").exists()


ROUND, CACHE = "pinned_max_round_threshold_mb:1", "pinned_max_cached_size_mb:1"
PIN = "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": f"{ROUND},{CACHE},{PIN}"}),
        ({"PYTORCH_ALLOC_CONF": ""}, {"PYTORCH_ALLOC_CONF": f"{ROUND},{CACHE},{PIN}"}),
        # Alone, it would bring back what torch rounds up.
        (
            {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
            {"PYTORCH_ALLOC_CONF": f"{ROUND},{CACHE},{PIN},expandable_segments:True"},
        ),
        (
            {"PYTORCH_ALLOC_CONF": "pinned_max_round_threshold_mb : 64, backend:native"},
            {"PYTORCH_ALLOC_CONF": f"{CACHE},{PIN},pinned_max_round_threshold_mb : 64, backend:native"},
        ),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "roundup_power2_divisions:[256:1,>:4]"},
            {"PYTORCH_CUDA_ALLOC_CONF": f"{ROUND},{CACHE},{PIN},roundup_power2_divisions:[256:1,>:4]"},
        ),
        (
            {"PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:1", "PYTORCH_CUDA_ALLOC_CONF": CACHE},
            {
                "PYTORCH_HIP_ALLOC_CONF": f"{ROUND},{CACHE},{PIN},max_split_size_mb:1",
                "PYTORCH_CUDA_ALLOC_CONF": f"{ROUND},{PIN},{CACHE}",
            },
        ),
    ],
)
def test_the_operators_settings_of_torchs_allocator_win_key_by_key_over_ours(
    own: dict[str, str], told: dict[str, str]
) -> None:
    environment = worker_engine.worker_environment({"PATH": "/bin"} | own)
    assert {name: value for name, value in environment.items() if name.endswith("ALLOC_CONF")} == told


def test_torch_knows_all_settings_that_its_allocator_gets() -> None:
    """It refuses to start for one that it does not know. A CPU build ignores those of CUDA, but has the headers."""
    folder = Path(torch.__file__).parent / "include" / "c10"
    known = "".join((folder / file).read_text() for file in ("cuda/CUDAAllocatorConfig.h", "core/AllocatorConfig.h"))
    assert all(f" {key.removesuffix('_mb')}() {{" in known for key in worker_engine.ALLOCATOR_SETTINGS)


def test_a_torch_that_does_not_know_our_allocator_settings_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.11.1+cu130")
    own = {"PYTORCH_ALLOC_CONF": "backend:native"}
    assert worker_engine.worker_environment(own)["PYTORCH_ALLOC_CONF"] == "backend:native"
    assert "PYTORCH_ALLOC_CONF" not in worker_engine.worker_environment({})


def test_a_worker_sees_only_the_chosen_card_and_reports_why_it_cannot_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "98,99")
    engine = WorkerEngine(EngineOptions(device="cuda:1"))
    try:
        answer = engine.measure()
        assert isinstance(answer, Measured)
        assert answer.memory.cuda_problem
        assert answer.memory.host > 0
        assert engine.pid
        assert b"\0CUDA_VISIBLE_DEVICES=99\0" in Path(f"/proc/{engine.pid}/environ").read_bytes()
        failed = engine.load(load_command(fake_catalog(), "fake"))
        assert isinstance(failed, Failed)
        assert failed.code is FailureCode.UNSUPPORTED_DEVICE
        assert answer.memory.cuda_problem in failed.message
    finally:
        engine.close()


WITH_PASSWORD = "http://user:password@proxy.internal:3128"
FOR_THE_HUB = {"HF_TOKEN": "token", "HF_ENDPOINT": WITH_PASSWORD, "HTTPS_PROXY": WITH_PASSWORD, "all_proxy": "x"}
OTHER_SECRETS = {
    **dict.fromkeys(("IMAGEGEN_WEBHOOK_SECRETS", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "SOME_API_KEY"), "x"),
    **dict.fromkeys(("DB_PASSWORD", "GOOGLE_APPLICATION_CREDENTIALS", "GITHUB_TOKEN", "secret", "APIKEY"), "x"),
    **dict.fromkeys(("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_ENDPOINT"), "authorization=Bearer x"),
    "A_MIRROR": WITH_PASSWORD,
}
NO_SECRETS = {
    **dict.fromkeys(("PATH", "HOME", "LANG", "HF_HOME", "HF_HUB_CACHE", "TOKENIZERS_PARALLELISM", "KEYBOARD"), "/x"),
    "PIP_INDEX_URL": "https://mirror.internal/simple",
}


def test_a_worker_gets_no_secret_and_nothing_to_reach_the_hub_with() -> None:
    told = worker_engine.worker_environment(FOR_THE_HUB | OTHER_SECRETS | NO_SECRETS)
    assert not told.keys() & (FOR_THE_HUB | OTHER_SECRETS).keys()
    assert told.items() >= NO_SECRETS.items()
    assert WITH_PASSWORD not in told.values()


def test_the_download_process_gets_what_it_needs_for_the_hub_and_no_other_secret() -> None:
    told = downloader_environment(FOR_THE_HUB | OTHER_SECRETS | NO_SECRETS)
    assert not told.keys() & OTHER_SECRETS.keys()
    assert told.items() >= (FOR_THE_HUB | NO_SECRETS).items()
