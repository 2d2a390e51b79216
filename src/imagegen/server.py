"""DrainingServer: uvicorn, ending cleanly. SIGTERM drains and exits 0; a crash of the service exits 70."""

import asyncio
import socket
from types import FrameType

import structlog
import uvicorn

from imagegen.app import Service, create_app
from imagegen.catalog.catalog import Catalog
from imagegen.settings import Settings
from imagegen.storage.lock import exclusive

log = structlog.get_logger(__name__)

#: sysexits.h: EX_SOFTWARE, an internal error. Whoever supervises the process starts it again.
EXIT_CRASHED = 70

#: Connections that a client still holds open do not hold the process longer than this.
CONNECTION_GRACE_S = 5


class DrainingServer(uvicorn.Server):
    """Begins the drain at the signal: uvicorn itself would first wait for open connections to close."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            log.info("listening", address=address, docs=f"{address}/docs")

    async def on_tick(self, counter: int) -> bool:
        return self._service.crashed or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one hurries. It is not raised again: a drained end is a good one."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._service.begin_drain)


def serve(settings: Settings, catalog: Catalog) -> int:
    """Run until a signal; the exit code. Raises DataDirInUse."""
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
    with exclusive(settings.data_dir):
        server.run()
    if not server.started:
        return 1
    return EXIT_CRASHED if service.crashed else 0
