"""DrainingServer: uvicorn with a drain. SIGTERM drains and exits with 0; a crash of the service exits with 70."""

import asyncio
import gc
import os
import platform
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import FrameType, MappingProxyType

import structlog
import uvicorn
from fastapi import FastAPI

import imagegen
from imagegen.api.connections import BoundedProtocol, Bounds, Connections
from imagegen.api.guard import is_local
from imagegen.app import create_app
from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import KeysFileInvalid, NotProtected
from imagegen.core.keys import Scope, new_key
from imagegen.lifecycle import Lifecycle
from imagegen.service.access import Access
from imagegen.service.keys_file import read_keys
from imagegen.settings import Settings
from imagegen.storage.database import Database, check
from imagegen.storage.keys import KeyStore
from imagegen.storage.lock import exclusive

log = structlog.get_logger(__name__)

#: EX_SOFTWARE of sysexits.h: an internal error. A service manager then restarts the process.
EXIT_CRASHED = 70

#: EX_IOERR: the journal is lost.
EXIT_LOST = 74

#: Seconds that uvicorn waits at the end for connections that are still open.
CONNECTION_GRACE_S = 5

#: The limit of open files that the process sets for itself, if the system allows it.
FILES = 65_536

#: Open files that are not used for connections: for the journal, the pictures, the worker, and the connections that are
#: accepted in one turn of the event loop.
KEPT_FILES = 256

#: Connections that the system accepts before the event loop does.
BACKLOG = 128

#: The exit code of uvicorn for an address that it cannot listen on, and for a start that failed.
EXIT_NOT_LISTENING = 3


class DrainingServer(uvicorn.Server):
    """Drains at a signal and answers requests meanwhile. uvicorn itself would stop listening at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        connections: Connections,
        probe_port: int | None = None,
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`about`: what the line of the log about the address also has."""
        super().__init__(config)
        self._about = about
        self._connections = connections
        self._probe_port = probe_port
        self._lifecycle = lifecycle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        # As in other daemons, SIGHUP reloads the configuration. By default it would end the process.
        self._loop.add_signal_handler(signal.SIGHUP, self._lifecycle.reload)
        if self.started:
            await self._listen_for_probes()
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log.info("listening", address=address, docs=f"{address}/docs", **self._about)

    async def _listen_for_probes(self) -> None:
        if self._probe_port is None:
            return
        protocol = partial(
            BoundedProtocol,
            shared=self._connections,
            probes_only=True,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        try:
            probes = await asyncio.get_running_loop().create_server(protocol, self.config.host, self._probe_port)
        except OSError as error:
            log.error("probes_not_listening", port=self._probe_port, reason=str(error))
            await self.lifespan.shutdown()
            sys.exit(EXIT_NOT_LISTENING)
        self.servers.append(probes)
        log.info("probes_listening", port=probes.sockets[0].getsockname()[1])

    async def on_tick(self, counter: int) -> bool:
        """Answer requests until the drain has ended: probes and callers that wait for a task need the answers."""
        if counter % 10 == 0:  # every second
            self._connections.check()
        return self._lifecycle.ended or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, put the running task back at the second, close all connections at the third.

        uvicorn's own method records the signal, and uvicorn raises it again at the end. This one does not, so that the
        exit code is 0.
        """
        self._signals += 1
        if self._loop is None or self._signals > 2:
            self.should_exit = True
            self.force_exit = self._signals > 2
        else:
            drain = partial(self._lifecycle.begin_drain, signal.Signals(sig).name)
            self._loop.call_soon_threadsafe(drain if self._signals == 1 else self._lifecycle.hurry)


def _collect_seldom() -> None:
    """Collect garbage less often: under load, the search for cycles took a third of the event loop's time.

    Objects that exist now are not examined again, and new ones 30 times less often. In measurements memory did not
    grow.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def _dump_no_core() -> None:
    """Keep memory off the disk if this process or a child crashes: it holds keys, tokens, prompts and pictures.

    `prlimit --core=unlimited --pid PID` allows a core again, to look for the cause of a crash.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def bounds_of(settings: Settings) -> Bounds:
    """The bounds of connections, within the number of files that this process may open, which it raises if it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    files = wanted if soft == resource.RLIM_INFINITY else soft
    if files < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            files = wanted
    most = min(settings.max_connections, max(16, files - KEPT_FILES))
    # One address never takes all of them.
    per_address = min(settings.max_connections_per_address, most * 3 // 4)
    return Bounds(most, per_address, settings.max_uploading_bytes, settings.max_unsent_bytes)


def http_config(app: FastAPI, settings: Settings, connections: Connections) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(BoundedProtocol, shared=connections),  # type: ignore[arg-type]
        ws="none",
        backlog=BACKLOG,
        log_config=None,  # logs.py formats uvicorn's messages like those of other libraries
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # api/forwarding.py applies them; uvicorn would trust every program on this machine
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=CONNECTION_GRACE_S,
        server_header=False,
    )


async def protect(settings: Settings) -> str | None:
    """Make the first key if the settings ask for one and there is no key. Returns its text, or None.

    Raises NotProtected if there is no key, other machines reach the address, and `insecure` does not allow that. Also
    raises KeysFileInvalid, StorageFull and StorageFailed.
    """
    filed = read_keys(settings.keys_file) if settings.keys_file else ()
    database = Database(settings.journal_path)
    try:
        store = KeyStore(database)
        access = Access(store, filed)
        if twice := await store.named_twice():
            names = ", ".join(f"'{name}'" for name in twice)
            raise KeysFileInvalid(
                f"{settings.keys_file}: {names}: the journal has, or had, a key of this name, whose tasks and budget "
                "belong to it. Choose another name in the file; `imagegen keys list` shows those of the journal."
            )
        if await access.closed():
            return None
        if settings.first_key:
            key, text = new_key(settings.first_key, tuple(Scope))
            await store.create(key)
            return text
    finally:
        await database.close()
    if not is_local(settings.host) and not settings.insecure:
        raise NotProtected(
            f"Other machines reach {settings.host}, and there is no API key: make one with `imagegen keys create NAME "
            "--scope admin`, or allow this with --insecure."
        )
    return None


def serve(settings: Settings, catalog: Catalog, families: str) -> int:
    """Run until a signal and return the exit code.

    Raises StoreMisconfigured, KeysFileInvalid, NotProtected, DataDirInUse, DataDirUnusable or JournalDamaged.
    """
    _dump_no_core()
    about, began = start_line(settings), time.monotonic()
    app = create_app(settings, catalog, families)
    lifecycle: Lifecycle = app.state.lifecycle
    connections = Connections(bounds_of(settings), time.monotonic, settings.trusted_proxies, settings.prefix)
    server = DrainingServer(http_config(app, settings, connections), lifecycle, connections, settings.probe_port, about)
    _collect_seldom()
    with exclusive(settings.data_dir):
        check(settings.journal_path)
        if (text := asyncio.run(protect(settings))) is not None:
            sys.stdout.write(f"The API key '{settings.first_key}', shown only once: {text}\n")
            sys.stdout.flush()
        log.info("starting", **about, pid=os.getpid(), python=platform.python_version())
        try:
            server.run()
        except SystemExit:  # of uvicorn, which has logged why
            log.info("stopped", exit_code=EXIT_NOT_LISTENING, seconds=round(time.monotonic() - began, 1))
            return EXIT_NOT_LISTENING
    code = EXIT_LOST if lifecycle.lost else EXIT_CRASHED if lifecycle.crashed else 0
    log.info("stopped", exit_code=code, seconds=round(time.monotonic() - began, 1))
    return code


def start_line(settings: Settings) -> dict[str, str]:
    """What an operator asks first about a service: its version, configuration, data directory and device."""
    places = {"config": str(settings.config.absolute()), "data_dir": str(settings.data_dir.absolute())}
    return {"version": imagegen.__version__, **places, "device": settings.device}
