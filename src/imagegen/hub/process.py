"""The service's side of a download: starts the download process, reads its answers, and kills it to cancel."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType

from imagegen.core.children import is_secret
from imagegen.core.errors import FailureCode
from imagegen.hub.protocol import Fetch, Fetched, Progress, Refused, read_answer

OnProgress = Callable[[Progress], None]

#: Runs a download: `fetch_in_process`, or a test's replacement. Cancelling it ends the download.
Fetcher = Callable[[Fetch, OnProgress], Awaitable[Fetched | Refused]]

#: Plain HTTP: Xet, the hub's other protocol, keeps nothing of an interrupted download.
_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_VERBOSITY": "error",
    }
)

_CRASHED = Refused(code=FailureCode.PULL_CRASHED, message="The download process ended unexpectedly.")


async def fetch_in_process(command: Fetch, on_progress: OnProgress) -> Fetched | Refused:
    """Download in a separate process. Cancelling kills the process; the bytes that arrived are kept."""
    process = await asyncio.create_subprocess_exec(
        # -P: import no module from the current folder.
        *(sys.executable, "-P", "-m", "imagegen.hub.downloader", command.model_dump_json()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=downloader_environment(os.environ),
    )
    try:
        return await _read_answers(process, on_progress)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def downloader_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of the download process: what it needs for the hub, and no other secret."""
    kept = {name: value for name, value in ours.items() if _is_for_the_hub(name) or not is_secret(name, value)}
    return kept | dict(_VARIABLES)


def _is_for_the_hub(name: str) -> bool:
    """Whether it is the token, the address of a mirror, or a proxy, which may have a password."""
    return name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy")


async def _read_answers(process: asyncio.subprocess.Process, on_progress: OnProgress) -> Fetched | Refused:
    """Pass on the progress until the last answer, and return that."""
    assert process.stdout is not None
    with suppress(ValueError):  # not an answer, or too long a line
        async for line in process.stdout:
            answer = read_answer(line)
            if not isinstance(answer, Progress):
                return answer
            on_progress(answer)
    return _CRASHED
