"""The download process: one command in its arguments, JSON lines on stdout. Only this process uses HF_TOKEN.

Downloads need a process because the threads of the hub's library cannot be stopped: killing it cancels a download.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

import httpx2
from huggingface_hub import constants, get_session, set_client_factory

from imagegen import logs
from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.hub_cache import cache_root
from imagegen.core.children import follow_parent, ignore_signals
from imagegen.core.errors import FailureCode
from imagegen.hub.protocol import Answer, Fetch, Fetched, Progress
from imagegen.hub.refusals import EXPECTED, Refusal, disk_refused, rate_limited, refusal, refused, retry_after
from imagegen.hub.repository import RemoteFile, Repository

Tell = Callable[[Answer], None]

#: Concurrent downloads of files.
CONNECTIONS = 4

#: Seconds between two reports of progress.
TICK_S = 0.25

#: Seconds that the library may sleep when the hub asks it to wait. A longer wait is reported instead.
MAX_WAIT_S = 30

#: Bytes between two writes. With the library's default, 10 MiB, a broken connection loses more and progress jumps.
WRITE_BYTES = 2**18


class _Wanted(NamedTuple):
    """A repository, what is needed from it, and the files that it has for that."""

    repository: Repository
    needed: HubFiles
    files: list[RemoteFile]

    @property
    def bytes_total(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def bytes_done(self) -> int:
        return sum(self.repository.on_disk(file) for file in self.files)


def fetch(command: Fetch, tell: Tell) -> None:
    """Run the command. Raises Refusal."""
    wanted = [_choose(needed) for needed in command.files]
    _check_space(wanted, command.reserve_bytes)
    _download(wanted, tell)
    for repository, needed, files in wanted:
        try:
            repository.publish(needed, files)
        except OSError as error:
            raise disk_refused(error) from error
    tell(Fetched())


def _choose(needed: HubFiles) -> _Wanted:
    try:
        repository = Repository.open(needed)
        return _Wanted(repository, needed, repository.choose(needed))
    except EXPECTED as error:
        raise refused(error, needed.repo) from error


def _check_space(wanted: list[_Wanted], reserve_bytes: int) -> None:
    missing = sum(each.bytes_total - each.bytes_done for each in wanted)
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_root()).free
    except OSError as error:
        raise disk_refused(error) from error
    if missing and missing + reserve_bytes > free:
        message = (
            f"{_gb(missing)} must be fetched and {_gb(reserve_bytes)} must stay free, "
            f"but the disk with the hub's cache has {_gb(free)}."
        )
        raise refusal(FailureCode.STORAGE_FULL, message)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _download(wanted: list[_Wanted], tell: Tell) -> None:
    """Download all files and report progress. Raises Refusal; threads that still run end with the process."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    # The largest first: they decide the total time.
    files = [(each.repository, file) for each in wanted for file in each.files]
    files.sort(key=lambda pair: -pair[1].size)
    waiting = {pool.submit(_fetch_one, repository, file) for repository, file in files}
    reported = None
    while waiting:
        done, waiting = wait(waiting, TICK_S, FIRST_EXCEPTION)
        for future in done:
            future.result()
        progress = _progress(wanted)
        if progress != reported:
            tell(progress)
            reported = progress
    pool.shutdown()


def _fetch_one(repository: Repository, file: RemoteFile) -> None:
    try:
        repository.fetch(file)
    except EXPECTED as error:
        raise refused(error, repository.repo) from error


def _progress(wanted: list[_Wanted]) -> Progress:
    return Progress(
        bytes_done=sum(each.bytes_done for each in wanted), bytes_total=sum(each.bytes_total for each in wanted)
    )


def adjust_library() -> None:
    """Make the library write often, not sleep for minutes when the hub is busy, and log as the service does."""
    logging.getLogger("huggingface_hub").handlers.clear()  # its own one would show a password in a URL
    constants.DOWNLOAD_CHUNK_SIZE = WRITE_BYTES
    hooks = {**get_session().event_hooks, "response": [_refuse_long_waits]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None))


def _refuse_long_waits(response: httpx2.Response) -> None:
    seconds = retry_after(response.headers) if response.status_code == 429 else None
    if seconds is not None and seconds > MAX_WAIT_S:
        raise rate_limited(seconds)


def tell(answer: Answer) -> None:
    sys.stdout.write(answer.model_dump_json() + "\n")
    sys.stdout.flush()


def main(command: Fetch) -> None:
    """Download and exit, even if threads still wait for bytes."""
    logs.configure(libraries=logging.ERROR)
    logs.log_unhandled()
    follow_parent()
    adjust_library()
    try:
        fetch(command, tell)
    except Refusal as error:
        tell(error.answer)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    ignore_signals()
    main(Fetch.model_validate_json(sys.argv[1]))
