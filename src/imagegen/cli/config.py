"""`imagegen config`: check models.yaml, print its schema, list and restore its versions."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.file import ConfigFile
from imagegen.catalog.loading import ConfigError, parse_catalog, read_text
from imagegen.catalog.schema import json_schema
from imagegen.catalog.sources import Folders, local_folder
from imagegen.catalog.versions import Versions
from imagegen.catalog.yaml import read
from imagegen.cli.common import (
    EX_CANTCREAT,
    EX_CONFIG,
    EX_DATAERR,
    EX_TEMPFAIL,
    ConfigOption,
    DataDirOption,
    fail,
    families_of,
    open_catalog,
    print_table,
    settings_with,
)
from imagegen.core.errors import (
    ConfigReadOnly,
    DataDirInUse,
    DataDirUnusable,
    EngineError,
    StorageFailed,
    StorageFull,
    VersionNotFound,
)
from imagegen.loaders.base import Family, families_named, specs_of
from imagegen.storage.lock import exclusive

config_app = typer.Typer(
    help="Check models.yaml, print its schema for editors, list and restore its versions.", no_args_is_help=True
)


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


@config_app.command("versions")
def config_versions(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """List the configurations that were in force, newest first. The data directory keeps them."""
    settings = settings_with(config=config, data_dir=data_dir)
    table = Table("version", "made", "source", box=None)
    for it in Versions.of(settings.config, settings.data_dir).newest_first():
        table.add_row(str(it.version), f"{it.created_at:%Y-%m-%d %H:%M:%S}", it.source)
    print_table(table)


@config_app.command("rollback")
def config_rollback(
    context: typer.Context,
    version: Annotated[int, typer.Argument(min=1, help="As `imagegen config versions` lists it.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write a version to models.yaml, also if the file is broken or was deleted. The service must not run.

    While it runs, `POST /config/rollback` does the same.
    """
    settings = settings_with(config=config, data_dir=data_dir)
    versions, file = Versions.of(settings.config, settings.data_dir), ConfigFile(settings.config)
    try:
        with exclusive(settings.data_dir):
            text = versions.text(version)
            parse_catalog(text, specs_of(families_named(families_of(context))), name=f"version {version}")
            if file.path.exists():
                versions.add(file.path.read_text(errors="replace"), "file")
            file.replace(text)
            versions.add(text, "rollback")
    except DataDirInUse as error:
        fail(f"{error.detail} `POST /config/rollback` restores a version while it runs.", EX_TEMPFAIL)
    except VersionNotFound as error:
        fail(error.detail, EX_DATAERR)
    except ConfigError as error:
        fail(str(error), EX_CONFIG)
    except (ConfigReadOnly, DataDirUnusable, StorageFailed, StorageFull) as error:
        fail(error.detail, EX_CANTCREAT)
    typer.echo(f"{settings.config} is version {version}.")
