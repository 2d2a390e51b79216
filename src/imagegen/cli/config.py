"""`imagegen config check` and `imagegen config schema`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from imagegen.catalog.schema import json_schema
from imagegen.cli.common import open_catalog
from imagegen.loaders import SPECS

config_app = typer.Typer(help="Check models.yaml, or print its schema for editors.", no_args_is_help=True)


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A models.yaml.")]) -> None:
    """Report every problem of a models.yaml as file:line:column: problem, and the fix."""
    catalog = open_catalog(file)
    typer.echo(f"{file}: {len(catalog.models)} models, default {catalog.default_model}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of models.yaml. Editors use it: save it as models.schema.json beside models.yaml."""
    typer.echo(json.dumps(json_schema(SPECS), indent=2))
