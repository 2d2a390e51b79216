"""What this machine has for torch: cards, driver, libraries.

torch is examined in a process of its own, because a broken driver or library can crash or hang the process that asks.
`python -m imagegen.gpu.machine` is that process: one line of JSON for each part, as soon as it is known.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from imagegen.core.errors import EngineMissing
from imagegen.core.value import Value
from imagegen.gpu.devices import choose, only_card
from imagegen.gpu.worker_engine import worker_environment
from imagegen.loaders.host_memory import available_bytes, machine_bytes

#: Time limit for the imports and the cards' answers, in seconds.
LOOK_S = 120

DRIVER = Path("/proc/driver/nvidia/version")
DEVICES = Path("/dev")


class Card(Value):
    """A CUDA device. Bytes."""

    index: int
    name: str
    #: As `8.9`.
    capability: str
    total: int
    #: Free memory, as a process with a CUDA context sees it. The context itself takes some hundred MiB.
    free: int = 0
    #: Why its memory could not be read.
    trouble: str = ""


class Torch(Value):
    version: str
    #: The CUDA version that torch was built for; None: the CPU build.
    built_for: str | None = None
    #: The newest CUDA version that the driver supports; None: there is no driver, or it was not asked.
    driver_runs: str | None = None
    #: The cards that the worker would see: all, or the one that IMAGEGEN_DEVICE names.
    cards: tuple[Card, ...] = ()
    #: The device that models would run on: `cuda` or `cpu`.
    device: str = "cpu"
    #: Why it is `cpu` although a card was asked for or seems to be there.
    problem: str | None = None


class Library(Value):
    """A library that some models need."""

    #: `another`: a different package has the same name.
    state: Literal["here", "absent", "broken", "another"]
    version: str = ""
    #: The message of the failed import.
    trouble: str = ""


class Machine(Value):
    """What this machine has for torch. A part is None if the process ended before it could report it."""

    torch: Torch | None = None
    triton: Library | None = None
    torchao: Library | None = None
    nunchaku: Library | None = None
    torchvision: Library | None = None
    #: How that process ended, if it failed.
    ended: str = ""
    #: Version of the NVIDIA driver; None: it is not loaded.
    driver: str | None = None
    #: Whether the system has a device file of an NVIDIA card, whatever torch says.
    has_card: bool = False
    #: Bytes of host memory.
    memory_total: int = 0
    memory_available: int = 0


# -- in the calling process -------------------------------------------------------------------------------------------


def look(asked: str) -> Machine:
    """Examine torch and the system, as a worker with this IMAGEGEN_DEVICE sees them.

    Takes as long as an import of torch, and briefly opens a CUDA context on each card.
    """
    device, card = only_card(asked, os.environ)
    command = [sys.executable, "-P", "-m", "imagegen.gpu.machine", device]
    environment = worker_environment(os.environ) | card
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=LOOK_S, check=False)
        written, ended = done.stdout, _how_it_ended(done.returncode, done.stderr)
    except subprocess.TimeoutExpired as error:
        written, ended = error.stdout or b"", f"no answer within {LOOK_S} seconds"
    except OSError as error:
        written, ended = b"", f"no process could be started: {error.strerror}"
    known: dict[str, object] = {"ended": ended}
    for line in written.splitlines(keepends=True):
        if line.endswith(b"\n"):  # a partial line: the process was killed while it wrote
            known |= json.loads(line)
    has_card = any(DEVICES.glob("nvidia[0-9]*"))
    memory = {"memory_total": machine_bytes(), "memory_available": available_bytes()}
    return Machine.model_validate(known | memory | {"driver": driver(), "has_card": has_card})


def _how_it_ended(status: int, stderr: bytes) -> str:
    if status < 0:
        return f"the process died ({signal.Signals(-status).name})"
    lines = stderr.decode(errors="replace").strip().splitlines()
    return "" if status == 0 else (lines or [f"exit code {status}"])[-1]


def driver() -> str | None:
    """Version of the NVIDIA driver; None: it is not loaded."""
    try:
        found = re.search(r"(?:Kernel Module(?: for \S+)?)\s+(\d+[\d.]*)", DRIVER.read_text())
    except OSError:
        return None
    return found[1] if found else None


# -- in the examining process ------------------------------------------------------------------------------------------


def torch_facts(asked: str) -> Torch:
    """What torch reports about itself and the cards."""
    import torch

    cards = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    known = tuple(map(_card, cards))  # read first, because a kernel takes memory
    device = choose(asked)
    runs = getattr(torch._C, "_cuda_getDriverVersion", int)()  # 13010 means 13.1; 0 means no driver
    return Torch(
        version=torch.__version__,
        built_for=torch.version.cuda,
        driver_runs=f"{runs // 1000}.{runs % 1000 // 10}" if runs else None,
        cards=known,
        device=device.name,
        problem=device.problem,
    )


def _card(index: int) -> Card:
    import torch

    card = torch.cuda.get_device_properties(index)
    about = Card(index=index, name=card.name, capability=f"{card.major}.{card.minor}", total=card.total_memory)
    try:
        free, _ = torch.cuda.mem_get_info(index)
    except RuntimeError as error:  # broken, completely full, or reserved for another process
        return about.evolve(trouble=_first_line(error))
    return about.evolve(free=free)


def library(name: str) -> Library:
    """Whether a library can be imported."""
    if find_spec(name) is None:
        return Library(state="absent")
    try:
        module = __import__(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return Library(state="broken", trouble=_first_line(error))
    return Library(state="here", version=str(getattr(module, "__version__", "")))


def nunchaku() -> Library:
    """The engine, or another package of that name."""
    from imagegen.loaders.nunchaku import find_engine

    found = library("nunchaku")
    if found.state == "here":
        try:
            find_engine()
        except EngineMissing:
            return found.evolve(state="another")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


#: In this order: an import that crashes the process hides only the later ones.
PARTS: Mapping[str, Callable[[str], Value]] = MappingProxyType(
    {
        "torch": torch_facts,
        "triton": lambda asked: library("triton"),
        "torchao": lambda asked: library("torchao"),
        "nunchaku": lambda asked: nunchaku(),
        "torchvision": lambda asked: library("torchvision"),
    }
)


def main(asked: str) -> None:
    """Report each part as soon as it is known."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print must not mix with the report
        for name, ask in PARTS.items():
            answers.write(json.dumps({name: ask(asked).model_dump(mode="json")}) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
