"""The `imagegen` command: serve, mcp, generate, inspect, replay, models, config, keys, doctor, version."""

import typer

import imagegen
from imagegen.cli.config import config_app
from imagegen.cli.doctor import doctor
from imagegen.cli.generate import generate, inspect, replay
from imagegen.cli.keys import keys_app
from imagegen.cli.mcp import mcp
from imagegen.cli.models import models_app
from imagegen.cli.serving import serve
from imagegen.loaders import PRODUCT

app = typer.Typer(
    help="Self-hosted image generation: many models, one GPU, an HTTP API that never loses a task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, mcp, generate, inspect, replay, doctor):
    app.command()(command)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")


def main(families: str = PRODUCT) -> None:
    """Entry point. `families`: the table of model families, as `module:attribute`."""
    app(obj=families)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(imagegen.__version__)
