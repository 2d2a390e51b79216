"""`imagegen config check` and `imagegen config schema`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import read_text
from imagegen.catalog.schema import json_schema
from imagegen.catalog.sources import Folders, local_folder
from imagegen.catalog.yaml import read
from imagegen.cli.common import EX_CONFIG, fail, open_catalog, settings_with
from imagegen.core.errors import EngineError
from imagegen.loaders import FAMILIES, SPECS

config_app = typer.Typer(help="Check models.yaml, or print its schema for editors.", no_args_is_help=True)


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A models.yaml.")]) -> None:
    """Report every problem of a models.yaml as file:line:column: problem, and the fix."""
    catalog = open_catalog(file)
    settings = settings_with(config=file)
    if lines := list(_incomplete(catalog, file, Folders(settings.models_path, settings.loras_path))):
        fail("\n".join(lines), EX_CONFIG)
    typer.echo(f"{file}: {len(catalog.models)} models, default {catalog.default_model}")


def _incomplete(catalog: Catalog, file: Path, folders: Folders) -> Iterator[str]:
    """A line for each `local_path` that is there and cannot be loaded. One that is not there may come later."""
    document = read(read_text(file, name=str(file)))
    for model_id, spec in catalog.models.items():
        path = local_folder(spec, folders.models)
        if path is None or not path.exists() or spec.hf_path is not None:
            continue
        try:
            FAMILIES[spec.type].loader.check(spec, folders)
        except EngineError as error:
            line, column = document.position(("models", model_id, "local_path"))
            yield f"{file}:{line}:{column}: {error.detail}"


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of models.yaml. Editors use it: save it as models.schema.json beside models.yaml."""
    typer.echo(json.dumps(json_schema(SPECS), indent=2))
