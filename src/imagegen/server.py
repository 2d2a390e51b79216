"""DrainingServer: uvicorn, ending cleanly. SIGTERM drains and exits 0; a crash of the service exits 70."""

import asyncio
import gc
import signal
import socket
from types import FrameType

import structlog
import uvicorn

from imagegen.app import Service, create_app
from imagegen.catalog.catalog import Catalog
from imagegen.settings import Settings
from imagegen.storage.database import check
from imagegen.storage.lock import exclusive

log = structlog.get_logger(__name__)

#: sysexits.h: EX_SOFTWARE, an internal error. Whoever supervises the process starts it again.
EXIT_CRASHED = 70

#: Connections that a client still holds open do not hold the process longer than this.
CONNECTION_GRACE_S = 5


class DrainingServer(uvicorn.Server):
    """Drains at the signal and goes on answering meanwhile: uvicorn itself would stop listening first."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        # Daemons read their files again at it; a closed terminal is no reason to leave.
        self._loop.add_signal_handler(signal.SIGHUP, self._service.reload)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log.info("listening", address=address, docs=f"{address}/docs")

    async def on_tick(self, counter: int) -> bool:
        """Keep answering while the service drains: probes and those who wait for a task need it most then."""
        return self._service.ended or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one hurries, a third one ends at once.

        It is not raised again: a drained end is a good one.
        """
        self._signals += 1
        if self._loop is None or self._signals > 2:
            self.should_exit = True
            self.force_exit = self._signals > 2
        else:
            act = self._service.begin_drain if self._signals == 1 else self._service.hurry
            self._loop.call_soon_threadsafe(act)


def _collect_seldom() -> None:
    """A third of the loop's time went into looking for cycles among what stays for ever, and in each request's values.

    What is there now is not looked at again, and what comes is looked at 30 times less often: measured, with no memory
    lost.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def serve(settings: Settings, catalog: Catalog) -> int:
    """Run until a signal; the exit code. Raises DataDirInUse, DataDirUnusable or JournalDamaged."""
    app = create_app(settings, catalog)
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=CONNECTION_GRACE_S,
        server_header=False,
    )
    server = DrainingServer(config, service)
    _collect_seldom()
    with exclusive(settings.data_dir):
        check(settings.journal_path)
        server.run()
    if not server.started:
        return 1
    return EXIT_CRASHED if service.crashed else 0
