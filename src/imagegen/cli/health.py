"""`imagegen health`. Without options, `__main__` calls the probe itself: importing this package takes longer."""

from typing import Annotated

import typer

from imagegen import probe


def health(
    server: Annotated[
        str | None,
        typer.Option(
            envvar="IMAGEGEN_SERVER",
            show_envvar=True,
            help="URL of the service; default: the address and the port of IMAGEGEN_HOST and IMAGEGEN_PORT.",
        ),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask whether it answers, not whether it accepts tasks.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds without a byte after which it is not reachable.")
    ] = probe.TIMEOUT_S,
) -> None:
    """Ask a running service whether it accepts tasks. Exits with 0 if it does, with 1 if not. Needs no key."""
    raise typer.Exit(probe.main(server, probe.LIVE if live else probe.READY, timeout))
