"""WorkerEngine: runs models in a worker process, over one socket pair. This module runs in the parent process."""

import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from multiprocessing.connection import Connection
from typing import TypeVar

import structlog
from msgpack.exceptions import UnpackException
from structlog.contextvars import get_contextvars

from imagegen.core.children import is_secret
from imagegen.core.errors import FailureCode
from imagegen.core.value import Value
from imagegen.gpu.devices import only_card
from imagegen.gpu.protocol import (
    Answer,
    EngineOptions,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Measure,
    Measured,
    Step,
    StopGenerating,
    Stopped,
    Traced,
    Unload,
    Unloaded,
    pack,
    unpack_answer,
)
from imagegen.gpu.reading import Reading
from imagegen.loaders.base import OnStep, StopFlag

log = structlog.get_logger(__name__)

AnswerT = TypeVar("AnswerT", Loaded, Unloaded, Measured, Generated | Stopped)

#: Interval at which a waiting thread checks the stop flag and the clock, in seconds.
TICK_S = 0.02

#: Seconds between attempts to start a worker.
START_DELAYS_S = (0.5, 1, 2, 4)

#: How many times within a timeout the engine checks whether a silent worker reads.
LOOKS = 10

#: Seconds that a killed worker may take to die. The kernel frees its memory first: 0.5 s for each GiB on two busy
#: cores, measured. A worker that waits in the kernel for a driver or a disk may never die.
KILL_PATIENCE_S = 30

#: The worker never downloads, so it gets no token and no network access.
HIDDEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "HF_ENDPOINT")
WORKER_VARIABLES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DIFFUSERS_DISABLE_REMOTE_CODE": "1"}

#: By default, torch rounds each allocation of pinned memory up to a power of two, keeps freed pinned memory, and lets
#: the driver map its pages one by one. With these settings it allocates and frees exact sizes above 1 MiB, and
#: threads map the pages. An older torch does not know all of them, and refuses to start.
ALLOCATOR_SETTINGS = {
    "pinned_max_round_threshold_mb": "1",
    "pinned_max_cached_size_mb": "1",
    "pinned_use_cuda_host_register": "True",
    "pinned_num_register_threads": "8",
}

ALLOCATOR_SETTINGS_SINCE = (2, 13)

#: The variables that torch reads. It reads only one of those that are set, so each gets all settings.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


class WorkerEngine:
    """An Engine that runs models in a worker process. A worker that died is replaced at the next call."""

    def __init__(self, options: EngineOptions, *, load_timeout_s: float = 900, step_timeout_s: float = 300) -> None:
        """`load_timeout_s`, `step_timeout_s`: how long a worker may be silent, during a load or between two steps.

        A silent worker neither answers nor reads. It is killed after the timeout.
        """
        self._options = options
        self._load_timeout_s = load_timeout_s
        self._step_timeout_s = step_timeout_s
        self._worker: _Worker | None = None
        #: Workers that were killed and have not died yet.
        self._lingering: list[subprocess.Popen[bytes]] = []

    def __repr__(self) -> str:
        state = f"RUNNING, PID: {self.pid}" if self._worker else "NO WORKER"
        return f"<WorkerEngine [{state}, Lingering: {len(self._lingering)}]>"

    @property
    def pid(self) -> int | None:
        """The process id of the worker; None: there is none."""
        worker = self._worker  # the engine's thread may end it now
        return worker.process.pid if worker else None

    @property
    def bytes_read(self) -> int:
        worker = self._worker
        return worker.reading.bytes if worker else 0

    def load(self, command: Load) -> Loaded | Failed:
        return self._ask(command, Loaded, self._load_timeout_s)

    def unload(self, command: Unload) -> Unloaded | Failed:
        return self._ask(command, Unloaded, self._step_timeout_s)

    def measure(self) -> Measured | Failed:
        return self._ask(Measure(), Measured, self._load_timeout_s)

    def generate(self, command: Generate, stop: StopFlag, on_step: OnStep) -> Generated | Stopped | Failed:
        asked_to_stop = False

        def tick(worker: _Worker) -> None:
            nonlocal asked_to_stop
            if stop.is_set() and not asked_to_stop:
                asked_to_stop = True
                worker.send(StopGenerating())

        answer = self._converse(command, self._step_timeout_s, tick, on_step)
        return answer if isinstance(answer, Generated | Stopped | Failed) else self._end(FailureCode.WORKER_CRASHED)

    def abort(self) -> bool:
        worker = self._worker
        if worker is not None:
            worker.abort()
        return worker is not None

    def close(self) -> None:
        if self._worker is not None:
            self._forget(self._worker.end())
        self._reap()

    def _ask(self, command: Value, expected: type[AnswerT], timeout_s: float) -> AnswerT | Failed:
        answer = self._converse(command, timeout_s, lambda worker: None, lambda step, total, preview=b"": None)
        return answer if isinstance(answer, expected | Failed) else self._end(FailureCode.WORKER_CRASHED)

    def _converse(self, command: Value, timeout_s: float, tick: "Callable[[_Worker], None]", on_step: OnStep) -> Answer:
        """Send a command, pass on its steps, and return its answer; Failed if the worker dies or hangs."""
        try:
            worker = self._worker = self._worker or self._start()
        except OSError:  # no descriptor, process or memory available
            return Failed(code=FailureCode.WORKER_CRASHED, message="The worker process could not be started.")
        try:
            worker.reading = Reading(worker.process.pid)
            worker.send(_traced(command))
            while True:
                answer = worker.receive(timeout_s, tick)
                if not isinstance(answer, Step):
                    break
                on_step(answer.step, answer.total, answer.preview)
        except TimeoutError:
            return self._end(FailureCode.WORKER_HUNG)
        except (EOFError, OSError, ValueError, UnpackException):  # the socket is closed, or a frame is not a message
            return self._end(FailureCode.WORKER_CRASHED)
        if isinstance(answer, Failed) and answer.code is FailureCode.DEVICE_FAULT:
            # After that, every later call in the worker would fail.
            failed = self._end(FailureCode.WORKER_CRASHED, answer.traceback)
            return failed.evolve(message="The GPU's context broke; the worker process was replaced.")
        if isinstance(answer, Failed) and answer.spoiled:
            self._forget(self._worker.end(patience_s=1))
            return answer.evolve(worker_replaced=True, message=f"{answer.message} The worker process was replaced.")
        return answer

    def _start(self) -> "_Worker":
        """Start a worker. If the system refuses, try again a little later."""
        self._reap()
        for delay_s in START_DELAYS_S:
            try:
                return _Worker(self._options, self._step_timeout_s)
            except OSError:
                time.sleep(delay_s)
        return _Worker(self._options, self._step_timeout_s)

    def _end(self, code: FailureCode, traceback: str = "") -> Failed:
        """End the worker, which is replaced at the next call. Returns the failure of the running call."""
        assert self._worker is not None
        pid = self._worker.process.pid
        status = self._worker.kill() if code is FailureCode.WORKER_HUNG else self._worker.end(patience_s=1)
        self._forget(status)
        if status is None:
            how = f"({pid}) was killed and does not end: it may still hold device memory. It"
        else:
            how = "stopped answering and" if code is FailureCode.WORKER_HUNG else f"died ({_describe(status)}) and"
        return Failed(code=code, message=f"The worker process {how} was replaced.", traceback=traceback)

    def _forget(self, status: int | None) -> None:
        """Note that the worker has ended with this status; None: it was killed and still lives."""
        assert self._worker is not None
        if status is None:
            process = self._worker.process
            log.error("worker_does_not_end", pid=process.pid, waited_s=KILL_PATIENCE_S, may_hold="device memory")
            self._lingering.append(process)
        self._worker = None

    def _reap(self) -> None:
        """Collect the status of killed workers that have died meanwhile, so that they do not remain as zombies."""
        self._lingering = [process for process in self._lingering if process.poll() is None]


class _Worker:
    """One worker process and the parent's end of its socket pair."""

    def __init__(self, options: EngineOptions, io_timeout_s: float) -> None:
        ours, theirs = socket.socketpair()
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            # A worker that stops in the middle of a frame is treated like one whose pipe is closed.
            ours.setsockopt(socket.SOL_SOCKET, direction, struct.pack("@ll", math.ceil(io_timeout_s), 0))
        device, card = only_card(options.device, os.environ)
        options_json = options.evolve(device=device).model_dump_json()
        temporary = {}
        if options.temporary_dir and "TMPDIR" not in os.environ:
            _make_empty(options.temporary_dir)
            temporary = {"TMPDIR": options.temporary_dir}
        with ours, theirs:
            # -P: no module is imported from the working directory.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "imagegen.gpu.worker", str(theirs.fileno()), options_json],
                pass_fds=[theirs.fileno()],
                env=worker_environment(os.environ) | card | temporary,
                # This pipe closes when this process ends for any reason. The worker then exits, even during a load.
                stdin=subprocess.PIPE,
            )
            self._connection = Connection(ours.detach())
        #: What it has read since the last command was sent.
        self.reading = Reading(self.process.pid)
        #: When it must have ended, in seconds of the monotonic clock.
        self._gone_by = math.inf

    def send(self, command: Value) -> None:
        self._wake()
        self._connection.send_bytes(pack(command))

    def receive(self, timeout_s: float, tick: "Callable[[_Worker], None]") -> Answer:
        """The next answer. Raises EOFError or OSError if the worker has ended.

        Raises TimeoutError after `timeout_s` of silence, and if the worker was aborted and does not end.
        """
        began = time.monotonic()
        deadline, look_at = began + timeout_s, began + timeout_s / LOOKS
        tick(self)  # also if steps arrive so fast that this never waits
        while not self._connection.poll(TICK_S):
            tick(self)
            self._wake()
            now = time.monotonic()
            if now > min(look_at, deadline):
                look_at = now + timeout_s / LOOKS
                deadline = now + timeout_s if self.reading.grew() else deadline
            if now > min(deadline, self._gone_by):
                raise TimeoutError
        return unpack_answer(self._connection.recv_bytes())

    def _wake(self) -> None:
        """Continue the worker if it was stopped (SIGSTOP), because it could neither answer nor read a command."""
        with suppress(ChildProcessError):  # it has ended
            if os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG) is not None:
                log.warning("worker_woken", pid=self.process.pid)
                self.process.send_signal(signal.SIGCONT)

    def end(self, patience_s: float = 5) -> int | None:
        """Close both pipes, so that it exits; kill it if it does not. Returns the exit status, as `kill` does."""
        self._close_pipes()
        try:
            return self.process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int | None:
        """Kill it. Returns the exit status (negative: the signal); None: it still lives after KILL_PATIENCE_S."""
        self.abort()
        try:
            return self.process.wait(timeout=max(0, self._gone_by - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._close_pipes()

    def abort(self) -> None:
        """Kill it, from any thread. The thread that waits for an answer sees the pipe close and cleans up."""
        self._gone_by = min(self._gone_by, time.monotonic() + KILL_PATIENCE_S)
        self.process.kill()

    def _close_pipes(self) -> None:
        self._connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def _make_empty(folder: str) -> None:
    """Make an empty folder for temporary files. An earlier worker that was killed may have left files in it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)


def _traced(command: Value) -> Value:
    """The command with the ids of this context, so that the worker's lines of the log have them, too."""
    if not isinstance(command, Traced):
        return command
    return command.evolve(log_context={key: str(value) for key, value in get_contextvars().items()})


def worker_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker. The operator's settings of torch's allocator take precedence over ours."""
    kept = {name: value for name, value in ours.items() if not (_is_of_the_hub(name) or is_secret(name, value))}
    if tuple(map(int, metadata.version("torch").split(".")[:2])) < ALLOCATOR_SETTINGS_SINCE:
        return kept | WORKER_VARIABLES
    given = {name: kept[name] for name in ALLOCATOR_VARIABLES if name in kept} or {ALLOCATOR_VARIABLES[0]: ""}
    return kept | {name: _with_ours(settings) for name, settings in given.items()} | WORKER_VARIABLES


def _with_ours(settings: str) -> str:
    """Add ALLOCATOR_SETTINGS to `settings` of the form `key:value,key:value`, which keep their values."""
    known = set(re.findall(r"(\w+)\s*:", settings))
    ours = [f"{key}:{value}" for key, value in ALLOCATOR_SETTINGS.items() if key not in known]
    return ",".join([*ours, *filter(None, [settings])])


def _is_of_the_hub(name: str) -> bool:
    return name in HIDDEN_VARIABLES or name.lower().endswith("_proxy")


def _describe(status: int) -> str:
    """An exit status in words; a negative one is a signal."""
    if status < 0:
        return signal.Signals(-status).name
    return f"exit code {status}"
