"""`imagegen config check` and `imagegen config schema`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import read_text
from imagegen.catalog.schema import json_schema
from imagegen.catalog.sources import Folders, local_folder
from imagegen.catalog.yaml import read
from imagegen.cli.common import EX_CONFIG, fail, families_of, open_catalog, settings_with
from imagegen.core.errors import EngineError
from imagegen.loaders.base import Family, families_named, specs_of

config_app = typer.Typer(help="Check models.yaml, or print its schema for editors.", no_args_is_help=True)


@config_app.command("check")
def config_check(context: typer.Context, file: Annotated[Path, typer.Argument(help="A models.yaml.")]) -> None:
    """Report every problem of a models.yaml as file:line:column: problem, and the fix."""
    families = families_of(context)
    catalog = open_catalog(file, families)
    settings = settings_with(config=file)
    folders = Folders(settings.models_path, settings.loras_path)
    if lines := list(_incomplete(catalog, file, folders, families_named(families))):
        fail("\n".join(lines), EX_CONFIG)
    typer.echo(f"{file}: {len(catalog.models)} models, default {catalog.default_model}")


def _incomplete(catalog: Catalog, file: Path, folders: Folders, families: Mapping[str, Family]) -> Iterator[str]:
    """A line for each `local_path` that is there and cannot be loaded. One that is not there may come later."""
    document = read(read_text(file, name=str(file)))
    for model_id, spec in catalog.models.items():
        path = local_folder(spec, folders.models)
        if path is None or not path.exists() or spec.hf_path is not None:
            continue
        try:
            families[spec.type].loader.check(spec, folders)
        except EngineError as error:
            line, column = document.position(("models", model_id, "local_path"))
            yield f"{file}:{line}:{column}: {error.detail}"


@config_app.command("schema")
def config_schema(context: typer.Context) -> None:
    """Print the JSON schema of models.yaml. Editors use it: save it as models.schema.json beside models.yaml."""
    typer.echo(json.dumps(json_schema(specs_of(families_named(families_of(context)))), indent=2))
