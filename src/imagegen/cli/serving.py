"""`imagegen serve`."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from imagegen import logs
from imagegen.cli.common import (
    EX_CANTCREAT,
    EX_CONFIG,
    EX_DATAERR,
    EX_TEMPFAIL,
    ConfigOption,
    fail,
    families_of,
    open_catalog,
    settings_with,
)
from imagegen.core.errors import (
    DataDirInUse,
    DataDirUnusable,
    JournalDamaged,
    KeysFileInvalid,
    NotProtected,
    StorageFailed,
    StorageFull,
    StoreMisconfigured,
)
from imagegen.settings import Settings

log = structlog.get_logger(__name__)


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 chooses one.  [default: 5050]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the tasks and pictures.")] = None,
    config: ConfigOption = None,
    isolation: Annotated[str | None, typer.Option(help="`process` (default) or `thread`.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow access from other machines although there is no API key.")
    ] = None,
) -> None:
    """Start the HTTP service. Every setting is also an IMAGEGEN_* variable."""
    # Until the server installs its handlers, a signal ends the process: there is nothing to drain yet.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    settings = settings_with(
        host=host, port=port, data_dir=data_dir, config=config, isolation=isolation, insecure=insecure or None
    )
    catalog = open_catalog(settings.config, families_of(context))
    logs.configure(catalog.settings.log_level)
    logs.log_unhandled()
    _log_odd_variables(settings)
    # Imported here: the other commands do not need FastAPI.
    from imagegen.server import serve as run

    try:
        code = run(settings, catalog, families_of(context))
    except DataDirInUse as error:
        fail(error.detail, EX_TEMPFAIL)
    except DataDirUnusable as error:
        fail(error.detail, EX_CANTCREAT)
    except JournalDamaged as error:
        fail(error.detail, EX_DATAERR)
    except (StoreMisconfigured, KeysFileInvalid, NotProtected) as error:
        fail(error.detail, EX_CONFIG)
    except StorageFull:
        fail(f"the disk of the data directory {settings.data_dir} is full", EX_CANTCREAT)
    except StorageFailed as error:
        fail(f"cannot use the journal {settings.journal_path}: {error.detail}", EX_DATAERR)
    sys.stderr.flush()
    # In thread mode, the GPU thread may hang in a call to the device. It must not keep the process alive.
    os._exit(code)


def _log_odd_variables(settings: Settings) -> None:
    for name, hint in settings.unknown_variables(os.environ).items():
        log.warning("unknown_setting", message=f"No setting has the name {name}{hint or '.'}")
    if linked := settings.linked_variables(os.environ):
        log.info("service_links_ignored", variables=linked)
