"""The `imagegen` command: its commands, and the order in which the help shows them."""

from typing import Annotated

import typer

import imagegen
from imagegen.cli.backup import backup, restore
from imagegen.cli.config import config_app
from imagegen.cli.doctor import doctor
from imagegen.cli.health import health
from imagegen.cli.init import init
from imagegen.cli.keys import keys_app
from imagegen.cli.mcp import mcp
from imagegen.cli.models import models_app
from imagegen.cli.run import inspect, replay, run
from imagegen.cli.serving import serve
from imagegen.cli.tasks import cancel, logs, ps, submit, tasks, watch
from imagegen.loaders import PRODUCT

app = typer.Typer(
    help="Self-hosted image generation: many models, one GPU, an HTTP API that never loses a task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    serve,
    run,
    submit,
    watch,
    cancel,
    tasks,
    ps,
    logs,
    inspect,
    replay,
    mcp,
    init,
    doctor,
    health,
    backup,
    restore,
):
    app.command()(command)
#: The name of `run` in older versions.
app.command("generate", hidden=True)(run)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(imagegen.__version__)
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Self-hosted image generation: many models, one GPU, an HTTP API that never loses a task."""


def main(families: str = PRODUCT) -> None:
    """Entry point. `families`: the table of model families, as `module:attribute`."""
    app(obj=families)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(imagegen.__version__)
