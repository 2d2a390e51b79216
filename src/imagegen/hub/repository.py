"""One repository on the hub at one commit: lists its files, chooses the needed ones, and downloads them."""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

import imagegen
from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.hub_cache import HubCache, paths_in
from imagegen.catalog.pipeline_files import INDEX, lacking, needed, part_paths
from imagegen.core.errors import FailureCode
from imagegen.hub.refusals import refusal

#: Timeout of one request to the hub's API, in seconds.
API_TIMEOUT_S = 30

#: The most calls of http_get in a row without a new byte. Each call tries six times.
ATTEMPTS = 2

#: Bytes that are hashed in one step.
_CHUNK = 2**20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


class RemoteFile(NamedTuple):
    """A file as the hub describes it."""

    path: str
    #: In bytes.
    size: int
    #: SHA-256 of a large file, git's SHA-1 of a small one. It is the name of the blob and its checksum.
    digest: str


class Repository:
    """A repository at the commit of its revision when it was opened."""

    def __init__(self, repo: str, commit: str, files: dict[str, RemoteFile]) -> None:
        self.repo = repo
        self.commit = commit
        self.files = files
        self.cache = HubCache(repo)

    @classmethod
    def open(cls, wanted: HubFiles) -> "Repository":
        """Ask the hub for the commit of a revision, and for its files. Raises one of refusals.EXPECTED."""
        api = HfApi(library_name="imagegen", library_version=imagegen.__version__)
        try:
            info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=API_TIMEOUT_S)
            files = {file.rfilename: _described(file) for file in info.siblings or ()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no description of a repository") from error
        if info.sha is None or not _SHA1.fullmatch(info.sha):
            raise ValueError("no commit")
        return cls(wanted.repo, info.sha, files)

    def choose(self, wanted: HubFiles) -> list[RemoteFile]:
        """The files to download. Downloads model_index.json, which names them. Raises Refusal."""
        named = [*wanted.files, *(file for _, file in wanted.by_precision)]
        paths = named or (self._part(wanted) if wanted.part else self._pipeline(wanted))
        for path in paths:
            if path not in self.files:
                raise refusal(FailureCode.HUB_NOT_FOUND, f"'{self.repo}' has no file '{path}' on the hub.")
        return [self.files[path] for path in paths]

    def _part(self, wanted: HubFiles) -> list[str]:
        assert wanted.part is not None
        paths = part_paths(self.files, wanted.part, wanted.dtype)
        if paths is None:
            message = f"'{self.repo}' has no complete part '{wanted.part}' with safetensors weights."
            raise refusal(FailureCode.WEIGHTS_REFUSED, message)
        return paths

    def _pipeline(self, wanted: HubFiles) -> list[str]:
        if INDEX not in self.files:
            message = f"'{self.repo}' is no diffusers pipeline: it has no {INDEX}."
            raise refusal(FailureCode.WEIGHTS_REFUSED, message)
        self.fetch(self.files[INDEX])
        index = json.loads(self.cache.blob(self.files[INDEX].digest).read_bytes())
        part = lacking(self.files, index, wanted.without, wanted.dtype)
        if part is not None:
            message = f"'{self.repo}' has no safetensors weights for its part '{part}'."
            raise refusal(FailureCode.WEIGHTS_REFUSED, message)
        return needed(self.files, index, wanted.without, wanted.dtype)

    def on_disk(self, file: RemoteFile) -> int:
        """The bytes of a file that are on disk."""
        sizes = (_size(place) for place in (self.cache.blob(file.digest), self.cache.part(file.digest)))
        return min(file.size, max(0, *sizes))

    def fetch(self, file: RemoteFile) -> None:
        """Download a file, resuming an earlier attempt, and verify it. Raises one of EXPECTED."""
        blob, part = self.cache.blob(file.digest), self.cache.part(file.digest)
        if _size(blob) == file.size:
            return
        with _alone(part) as out:
            if _size(blob) == file.size:
                return  # another process has downloaded it
            try:
                self._receive(file, out)
            except _TooLong:
                part.unlink()
                message = f"'{file.path}' of '{self.repo}' is longer than the hub has declared; it was not kept."
                raise refusal(FailureCode.CHECKSUM_MISMATCH, message) from None
            self._verify(file, part, out)
            part.replace(blob)

    def _receive(self, file: RemoteFile, out: BinaryIO) -> None:
        """Append the missing bytes. http_get resumes after a broken connection as long as bytes arrive."""
        if out.seek(0, os.SEEK_END) > file.size:
            out.truncate(0)
        url = hf_hub_url(self.repo, file.path, revision=self.commit)
        # Compressed responses do not support ranges.
        headers = build_hf_headers(library_name="imagegen", library_version=imagegen.__version__)
        headers["Accept-Encoding"] = "identity"
        failures = 0
        bounded = _Bounded(out, file.size)
        while (had := out.seek(0, os.SEEK_END)) < file.size and failures < ATTEMPTS:
            fault = _get(url, bounded, had, headers)
            grown = out.seek(0, os.SEEK_END) > had
            if fault is None and not grown:
                return  # the file is complete: `_verify` checks it
            failures = 0 if grown else failures + 1
            if fault is not None and failures == ATTEMPTS:
                raise fault
            time.sleep(failures)

    def _verify(self, file: RemoteFile, part: Path, out: BinaryIO) -> None:
        """Remove a file whose checksum is wrong, so that the next attempt starts from zero."""
        out.flush()
        os.fsync(out.fileno())
        if _digest_of(out, file) != file.digest:
            part.unlink()
            message = f"'{file.path}' of '{self.repo}' arrived damaged or incomplete, and was removed; try again."
            raise refusal(FailureCode.CHECKSUM_MISMATCH, message)

    def publish(self, wanted: HubFiles, files: list[RemoteFile]) -> None:
        """Make the files visible to loaders. The index of a pipeline is linked last, and then the revision."""
        revision = wanted.revision or "main"
        known = {file.path: file for file in [*self._unchanged(revision), *files]}
        for file in sorted(known.values(), key=lambda file: file.path == INDEX):
            self.cache.link(self.commit, file.path, file.digest)
        self.cache.set_ref(revision, self.commit)

    def _unchanged(self, revision: str) -> list[RemoteFile]:
        """The files of an earlier snapshot that this commit still has: other models may use them."""
        snapshot = self.cache.snapshot(revision)
        paths = paths_in(snapshot) if snapshot else ()
        files = [self.files[path] for path in paths if path in self.files]
        return [file for file in files if _size(self.cache.blob(file.digest)) == file.size]


def _described(file: Any) -> RemoteFile:
    """The file as the hub describes it. Raises ValueError for a path out of the repository, or a malformed digest."""
    large = file.lfs is not None
    digest, form = (file.lfs.sha256, _SHA256) if large else (file.blob_id, _SHA1)
    size = file.lfs.size if large else file.size
    path = str(file.rfilename)
    if "\\" in path or any(step in ("", ".", "..") for step in path.split("/")):
        raise ValueError("not a path")
    if not isinstance(size, int) or not isinstance(digest, str) or not form.fullmatch(digest):
        raise ValueError("not a description of a file")
    return RemoteFile(path, size, digest)


def _size(path: Path) -> int:
    """The size in bytes; -1 for a missing file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class _TooLong(Exception):
    """The hub has sent more than it declared."""


class _Bounded:
    """A file that takes no more bytes than the hub has declared. It has the methods that http_get uses."""

    def __init__(self, out: BinaryIO, size: int) -> None:
        self._size = size
        self.tell, self.seek, self.truncate, self._write = out.tell, out.seek, out.truncate, out.write

    def write(self, chunk: bytes) -> int:
        """Raises _TooLong instead of the first byte too many."""
        if self.tell() + len(chunk) > self._size:
            raise _TooLong
        return self._write(chunk)


def _get(url: str, out: BinaryIO | _Bounded, had: int, headers: dict[str, str]) -> Exception | None:
    """Append the bytes after the first `had`. Returns an error that a retry may solve, and raises all others."""
    try:
        http_get(url, cast(BinaryIO, out), resume_size=had, headers=headers)
    except httpx2.TransportError as fault:
        return fault
    except HfHubHTTPError as error:
        answered: Exception = error
        if error.response.status_code >= 500:
            return answered
        if error.response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
    except OSError as error:
        if error.errno is not None:  # None: http_get received more or fewer bytes than the hub announced
            raise
    return None


def _digest_of(out: BinaryIO, file: RemoteFile) -> str:
    size = out.seek(0, os.SEEK_END)
    # git hashes a header before the content.
    digest = hashlib.sha256() if _SHA256.fullmatch(file.digest) else hashlib.sha1(b"blob %d\0" % size)
    out.seek(0)
    while chunk := out.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """Open and lock a partial file: the service and `imagegen models pull` may download it at the same time."""
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with part.open("a+b") as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            if not part.exists() or not os.path.samestat(os.fstat(out.fileno()), part.stat()):
                continue  # the other process finished or removed it
            yield out
            return
