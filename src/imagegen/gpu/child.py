"""ChildEngine: a LocalEngine in a worker process of its own, spoken to over one socket pair."""

import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from multiprocessing.connection import Connection
from typing import TypeVar

from msgpack.exceptions import UnpackException

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
    Unload,
    Unloaded,
    pack,
    unpack_answer,
)
from imagegen.loaders.base import OnStep, StopFlag

AnswerT = TypeVar("AnswerT", Loaded, Unloaded, Measured, Generated | Stopped)

#: How often a waiting thread looks at the stop flag and the clock, in seconds.
TICK_S = 0.02

#: Seconds between attempts to start a worker.
START_DELAYS_S = (0.5, 1, 2, 4)

#: The worker never downloads, so it gets no token and no network.
HIDDEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
WORKER_VARIABLES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DIFFUSERS_DISABLE_REMOTE_CODE": "1"}

#: Else torch takes the next power of two for each piece of pinned memory, and keeps what is freed of it. An older torch
#: does not know them, and refuses to start for that.
ALLOCATOR_SETTINGS = {"pinned_max_round_threshold_mb": "1", "pinned_max_cached_size_mb": "1"}

ALLOCATOR_SETTINGS_SINCE = (2, 13)

#: Where torch looks for them. It reads one of those that are set, so each gets all settings.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


class ChildEngine:
    """An Engine whose models die with its worker, not with the service. A dead worker is replaced at the next call."""

    def __init__(self, options: EngineOptions, *, load_timeout_s: float = 900, step_timeout_s: float = 300) -> None:
        """The timeouts bound the silence while loading and between two steps; a worker that exceeds one is killed."""
        self._options = options
        self._load_timeout_s = load_timeout_s
        self._step_timeout_s = step_timeout_s
        self._worker: _Worker | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is one."""
        return self._worker.process.pid if self._worker else None

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
        return answer if isinstance(answer, Generated | Stopped | Failed) else self._bury(FailureCode.WORKER_CRASHED)

    def abort(self) -> bool:
        worker = self._worker
        if worker is not None:
            # The thread that waits for an answer sees the pipe close and cleans up.
            worker.process.kill()
        return worker is not None

    def close(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _ask(self, command: Value, expected: type[AnswerT], timeout_s: float) -> AnswerT | Failed:
        answer = self._converse(command, timeout_s, lambda worker: None, lambda step, total, *preview: None)
        return answer if isinstance(answer, expected | Failed) else self._bury(FailureCode.WORKER_CRASHED)

    def _converse(self, command: Value, timeout_s: float, tick: "Callable[[_Worker], None]", on_step: OnStep) -> Answer:
        """Send a command and pass its steps on until the answer that ends it. The worker's death is an answer, too."""
        try:
            worker = self._worker = self._worker or self._start()
        except OSError:  # no descriptor, no process, no memory to be had
            return Failed(code=FailureCode.WORKER_CRASHED, message="The worker process could not be started.")
        try:
            worker.send(command)
            while True:
                answer = worker.receive(timeout_s, tick)
                if not isinstance(answer, Step):
                    break
                on_step(answer.step, answer.total, *filter(None, [answer.preview]))
        except TimeoutError:
            return self._bury(FailureCode.WORKER_HUNG)
        except (EOFError, OSError, ValueError, UnpackException):  # or words that are none: another version's worker
            return self._bury(FailureCode.WORKER_CRASHED)
        if isinstance(answer, Failed) and answer.code is FailureCode.DEVICE_FAULT:
            # A broken context poisons every later call in that process.
            failed = self._bury(FailureCode.WORKER_CRASHED, answer.traceback)
            return failed.evolve(message="The GPU's context broke; the worker process was replaced.")
        return answer

    def _start(self) -> "_Worker":
        """A new worker; what the system refuses now it may grant a little later."""
        for delay_s in START_DELAYS_S:
            try:
                return _Worker(self._options, self._step_timeout_s)
            except OSError:
                time.sleep(delay_s)
        return _Worker(self._options, self._step_timeout_s)

    def _bury(self, code: FailureCode, traceback: str = "") -> Failed:
        assert self._worker is not None
        status = self._worker.kill() if code is FailureCode.WORKER_HUNG else self._worker.end(patience_s=1)
        self._worker = None
        how = "stopped answering" if code is FailureCode.WORKER_HUNG else f"died ({_describe(status)})"
        return Failed(code=code, message=f"The worker process {how} and was replaced.", traceback=traceback)


class _Worker:
    """One worker process and the parent's end of its socket pair."""

    def __init__(self, options: EngineOptions, io_timeout_s: float) -> None:
        ours, theirs = socket.socketpair()
        for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            # A worker that stops in the middle of a frame is as dead as one whose pipe is closed.
            ours.setsockopt(socket.SOL_SOCKET, direction, struct.pack("@ll", math.ceil(io_timeout_s), 0))
        device, card = only_card(options.device, os.environ)
        told = options.evolve(device=device).model_dump_json()
        with ours, theirs:
            # -P: no module is taken from the folder that the service happens to start in.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "imagegen.gpu.worker", str(theirs.fileno()), told],
                pass_fds=[theirs.fileno()],
                env=worker_environment(os.environ) | card,
                # Closes with this process, however it ends: the worker then leaves, even in the middle of a load.
                stdin=subprocess.PIPE,
            )
            self._connection = Connection(ours.detach())

    def send(self, command: Value) -> None:
        self._connection.send_bytes(pack(command))

    def receive(self, timeout_s: float, tick: "Callable[[_Worker], None]") -> Answer:
        """The next answer. Raises TimeoutError after so much silence, EOFError or OSError when the worker is gone."""
        deadline = time.monotonic() + timeout_s
        tick(self)  # also when steps come so fast that nobody ever waits for one
        while not self._connection.poll(TICK_S):
            tick(self)
            if time.monotonic() > deadline:
                raise TimeoutError
        return unpack_answer(self._connection.recv_bytes())

    def end(self, patience_s: float = 5) -> int:
        """Ask to leave, by closing both pipes; kill what does not. Its exit status, as in `kill`."""
        self._close_pipes()
        try:
            return self.process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it now; its exit status (negative: the signal)."""
        self.process.kill()
        status = self.process.wait()
        self._close_pipes()
        return status

    def _close_pipes(self) -> None:
        self._connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def worker_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a worker finds in its environment. Of the settings of torch's allocator, the operator's own win."""
    kept = {name: value for name, value in ours.items() if not _hidden(name)}
    if tuple(map(int, metadata.version("torch").split(".")[:2])) < ALLOCATOR_SETTINGS_SINCE:
        return kept | WORKER_VARIABLES
    told = {name: kept[name] for name in ALLOCATOR_VARIABLES if name in kept} or {ALLOCATOR_VARIABLES[0]: ""}
    return kept | {name: _with_ours(settings) for name, settings in told.items()} | WORKER_VARIABLES


def _with_ours(settings: str) -> str:
    """`settings` are `key:value,key:value`; a value may be a list in brackets, whose parts look alike."""
    known = set(re.findall(r"(\w+)\s*:", settings))
    ours = [f"{key}:{value}" for key, value in ALLOCATOR_SETTINGS.items() if key not in known]
    return ",".join([*ours, *filter(None, [settings])])


def _hidden(name: str) -> bool:
    return name in HIDDEN_VARIABLES or is_secret(name)


def _describe(status: int) -> str:
    if status < 0:
        return signal.Signals(-status).name
    return f"exit code {status}"
