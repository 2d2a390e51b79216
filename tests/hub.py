"""A local fake of the hub: it has the part of the HTTP API that huggingface_hub uses, and fails as a test sets it."""

import hashlib
import json
import socket
import threading
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

#: What the hub stores in git itself; everything else is in its large file storage, on another host.
_SMALL = (".json", ".txt", ".md", ".model", ".jinja")


class Asked(NamedTuple):
    """A request that was made."""

    method: str
    path: str
    #: Where a resumed download begins.
    first_byte: int
    token: str | None
    #: `user:password`, as an address may have them.
    password: str | None = None


@dataclass
class Repo:
    """A repository at its only commit."""

    files: dict[str, bytes]
    private: bool = False
    gated: bool = False
    #: Paths whose contents differ from their description; same length.
    damaged: set[str] = field(default_factory=set)
    #: Paths of which the last bytes are gone.
    truncated: set[str] = field(default_factory=set)
    #: Paths that do not end where their description says.
    longer: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        names = [f"{path} {_sha256(content)}" for path, content in sorted(self.files.items())]
        return hashlib.sha1("\n".join(names).encode()).hexdigest()

    def content(self, path: str) -> bytes:
        content = self.files[path]
        if path in self.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        content += bytes(10_000_000) if path in self.longer else b""
        return content[:-100] if path in self.truncated else content


class Hub:
    """The fake hub. Its attributes may be changed while it serves."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        #: The one valid token.
        self.token = "hf_stand_in_token"
        self.asked: list[Asked] = []
        #: Bytes of files that were sent.
        self.sent = 0
        #: How often to cut the connection, and after how many bytes of a file.
        self.cuts = 0
        self.cut_after = 0
        #: Set: answer. Cleared: stop in the middle of large files until it is set.
        self.flowing = threading.Event()
        self.flowing.set()
        #: Seconds that everybody is asked to wait; None: nobody is.
        self.rate_limit: int | None = None
        #: A status for everything, instead of what was asked for.
        self.status: int | None = None
        #: Statuses for the next requests for large files, before they are answered as they should be.
        self.stumbles: list[int] = []
        #: Seconds to wait that those answers ask for.
        self.stumble_wait = 0

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flowing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment with which huggingface_hub uses this hub and keeps its cache in `home`."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_TOKEN": token or ""}

    def add(self, name: str, files: Mapping[str, bytes], **faults: Any) -> Repo:
        self.repos[name] = Repo(dict(files), **faults)
        return self.repos[name]

    def add_folder(self, name: str, folder: Path, **faults: Any) -> Repo:
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return self.add(name, files, **faults)

    def downloads(self, path: str) -> list[Asked]:
        """The requests for a file's content."""
        return [asked for asked in self.asked if asked.path.startswith("/cdn/") and asked.path.endswith("/" + path)]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        scheme, _, given = (self.headers.get("authorization") or "").partition(" ")
        token = given or None if scheme == "Bearer" else None
        password = b64decode(given).decode() if scheme == "Basic" else None
        self.hub.asked.append(Asked(self.command, path, self._first_byte(), token, password))
        steps = path.strip("/").split("/")
        if self.hub.rate_limit is not None:
            self._refuse(429, **{"Retry-After": str(self.hub.rate_limit)})
        elif self.hub.status is not None:
            self._refuse(self.hub.status)
        elif token not in (None, self.hub.token):
            self._refuse(401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        elif steps[:2] == ["api", "models"]:
            self._describe("/".join(steps[2:4]), steps[5] if len(steps) > 5 else "main", token)
        elif steps[0] == "cdn" and self.hub.stumbles:
            self._refuse(self.hub.stumbles.pop(), **{"Retry-After": str(self.hub.stumble_wait)})
        elif steps[0] == "cdn":
            self._send_file("/".join(steps[1:3]), "/".join(steps[3:]))
        elif len(steps) > 4 and steps[2] == "resolve":
            self._resolve("/".join(steps[:2]), steps[3], "/".join(steps[4:]), token)
        else:
            self._refuse(404)

    def _first_byte(self) -> int:
        return int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def _repo(self, name: str, revision: str, token: str | None) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and token is None):
            status = 404 if token else 401
            self._refuse(status, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in ("main", "v1", repo.commit):
            self._refuse(404, **{"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
        else:
            return repo
        return None

    def _describe(self, name: str, revision: str, token: str | None) -> None:
        repo = self._repo(name, revision, token)
        if repo is None:
            return
        siblings = [_sibling(path, content) for path, content in repo.files.items()]
        body = {"_id": "1", "id": name, "modelId": name, "sha": repo.commit, "private": repo.private, "tags": []}
        self._send(200, json.dumps(body | {"siblings": siblings}).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, path: str, token: str | None) -> None:
        repo = self._repo(name, revision, token)
        if repo is None:
            return
        if repo.gated:
            status = 403 if token else 401
            self._refuse(
                status, **{"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted."}
            )
        elif path not in repo.files:
            self._refuse(404, **{"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif path.endswith(_SMALL):
            self._send_file(name, path, {"X-Repo-Commit": repo.commit, "ETag": f'"{_git_sha1(repo.files[path])}"'})
        else:
            # On the hub this is another host; here another name of this one.
            headers = {
                "Location": f"http://localhost:{self.hub.port}/cdn/{name}/{path}",
                "X-Repo-Commit": repo.commit,
                "X-Linked-Etag": f'"{_sha256(repo.files[path])}"',
                "X-Linked-Size": str(len(repo.files[path])),
            }
            self._send(302, b"", headers)

    def _send_file(self, name: str, path: str, headers: Mapping[str, str] | None = None) -> None:
        content, first = self.hub.repos[name].content(path), self._first_byte()
        if first >= len(content) and first > 0:
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        ranged = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if first else {}
        self._send(206 if first else 200, content[first:], {**(headers or {}), **ranged})

    def _refuse(self, status: int, **headers: str) -> None:
        self._send(status, b"{}", {"Content-Type": "application/json", **headers})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self._pour(body, content=status in (200, 206) and "/cdn/" in self.path)
        except OSError:
            self.close_connection = True  # whoever asked has gone

    def _pour(self, body: bytes, *, content: bool) -> None:
        size = 2**16
        for start in range(0, len(body), size):
            if content and self.hub.cuts and start >= self.hub.cut_after:
                self.hub.cuts -= 1
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if content and start >= len(body) // 2:
                self.hub.flowing.wait()
            self.wfile.write(body[start : start + size])
            self.hub.sent += min(size, len(body) - start) if content else 0


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    described: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_sha1(content)}
    if not path.endswith(_SMALL):
        described["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}
    return described


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
