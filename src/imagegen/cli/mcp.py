"""`imagegen mcp`: the tools of the Model Context Protocol over standard input and output, for hosts that start them."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from imagegen import logs
from imagegen.cli.common import (
    EX_INTERRUPTED,
    EX_UNAVAILABLE,
    ConfigOption,
    fail,
    families_of,
    open_catalog,
    settings_with,
)


def mcp(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(envvar="IMAGEGEN_SERVER", help="Use the service at this URL, not an engine of its own."),
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="IMAGEGEN_KEY", help="Its API key.")] = None,
    config: ConfigOption = None,
) -> None:
    """Serve a host of the Model Context Protocol over standard input and output."""
    try:
        if server is not None:
            _forward(server, key)
        else:
            _serve(context, config)
    except KeyboardInterrupt:
        raise typer.Exit(EX_INTERRUPTED) from None


def _forward(url: str, key: str | None) -> None:
    # Imported here and below: no other command needs the SDK.
    from mcp.shared.exceptions import MCPError

    from imagegen.api.mcp_server import forward_stdio

    logs.configure("WARNING")
    try:
        asyncio.run(forward_stdio(url, key))
    except MCPError as error:
        fail(f"cannot use the service at {url}: {error}", EX_UNAVAILABLE)


def _serve(context: typer.Context, config: Path | None) -> None:
    from imagegen.api.mcp_server import serve_stdio
    from imagegen.app import Service

    settings, families = settings_with(config=config), families_of(context)
    catalog = open_catalog(settings.config, families)
    logs.configure(catalog.settings.log_level)
    with TemporaryDirectory(prefix="imagegen-", ignore_cleanup_errors=True) as folder:
        own = {
            "data_dir": Path(folder),
            "models_dir": settings.models_path,
            "loras_dir": settings.loras_path,
            "compiled_dir": settings.compiled_path,
            "store": "",
            "drain_timeout_s": 0,
        }
        made = Service(settings.model_copy(update=own), catalog, families)
        asyncio.run(serve_stdio(made.services, made.lifecycle.run()))
