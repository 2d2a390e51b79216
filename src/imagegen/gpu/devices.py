"""Which device a process uses: the card that IMAGEGEN_DEVICE names, and why torch cannot use one."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imagegen.gpu.memory import run_kernel

VISIBLE = "CUDA_VISIBLE_DEVICES"

#: Characters of torch's explanation that are passed on.
MAX_REASON = 300


class Device(NamedTuple):
    """The device of an engine."""

    #: What torch calls it: `cpu`, `cuda`, `cuda:1`.
    name: str
    #: Why it is `cpu` although a card was asked for or seems to be there.
    problem: str | None = None


def only_card(asked: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """torch's name for the card, and the environment variables that hide all other cards from a process.

    A process with these variables opens no context on another card. It calls its card `cuda`, because diffusers reads
    weights straight to a device only if it has this name. `cuda:1` is the second of the cards that `environment` makes
    visible.
    """
    if asked in ("auto", "cpu", "cuda"):
        return asked, {}
    if not asked.startswith("cuda:"):
        return "cuda", {VISIBLE: asked}  # a UUID
    number = int(asked.removeprefix("cuda:"))
    if VISIBLE not in environment:
        return "cuda", {VISIBLE: str(number)}
    cards = [card.strip() for card in environment[VISIBLE].split(",") if card.strip()]
    return ("cuda", {VISIBLE: cards[number]}) if number < len(cards) else (asked, {})


def see_only_card(asked: str) -> str:
    """Like `only_card`, but sets the variables in this process. No effect once CUDA has been initialised."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return asked
    name, variables = only_card(asked, os.environ)
    os.environ.update(variables)
    return name


def choose(asked: str) -> Device:
    """The device to use: `auto` takes a card if torch can use one. Imports torch, unless `cpu` was asked for."""
    if asked == "cpu":
        return Device("cpu")
    problem = _why_no_cuda("cuda" if asked == "auto" else asked)
    if problem is None:
        return Device("cuda" if asked == "auto" else asked)
    return Device("cpu", problem if asked != "auto" or _signs_of_a_card() else None)


def _cards() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def _signs_of_a_card() -> bool:
    import torch

    return bool(torch.version.cuda or torch.version.hip or _cards())


def _why_no_cuda(device: str) -> str | None:
    """Why torch cannot use that card; None: it can."""
    import torch

    if torch.cuda.is_available():
        return _why_not_this_card(device)
    cards = _cards()
    if not (torch.version.cuda or torch.version.hip):
        beside = f" although there is {cards[0]}" if cards else ""
        return f"torch {torch.__version__} is a build without CUDA{beside}; install the CUDA build."
    if cards and not any(os.access(card, os.R_OK | os.W_OK) for card in cards):
        return f"This process has no permission to open {cards[0]}."
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return _in_torchs_words(error)
    return f"torch {torch.__version__} finds no CUDA device."


def _why_not_this_card(device: str) -> str | None:
    import torch

    if not device.startswith("cuda"):
        return f"CUDA was already initialised when {device} was to be selected; use cuda:N."
    count, index = torch.cuda.device_count(), torch.device(device).index or 0
    if index >= count:
        return f"There is no {device}: torch sees {count} CUDA device(s){_visible()}."
    try:
        run_kernel(device)
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            return None  # it may be temporary, for example a full card: then the load reports it
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return f"torch {torch.__version__} has no kernels for {name} (compute capability {major}.{minor})."
    return None


def _in_torchs_words(error: Exception) -> str:
    words = " ".join(str(error).split())
    return (words if len(words) <= MAX_REASON else f"{words[:MAX_REASON]}...") + _visible()


def _visible() -> str:
    return f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
