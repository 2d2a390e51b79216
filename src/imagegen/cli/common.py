"""What the commands share: settings, the catalog, errors, exit codes."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import ConfigError, load_catalog
from imagegen.core.wording import explained
from imagegen.loaders import PRODUCT
from imagegen.loaders.base import families_named, specs_of
from imagegen.settings import Settings

#: A replay whose pixels differ.
EX_DIFFERENT = 1

# sysexits.h
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_CANTCREAT = 73
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78
#: The exit code that a shell gives a command after Ctrl-C.
EX_INTERRUPTED = 130

DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the tasks and pictures.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="models.yaml; default: the one in the package.")]


def settings_with(**given: Any) -> Settings:
    """The settings of the environment, overridden by the options of the command. Ends the command on an error."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fail(problems_of(error), EX_CONFIG)


def problems_of(error: ValidationError) -> str:
    """A line for each problem. One about several fields names none."""
    found = [(".".join(map(str, e["loc"])), explained(e)) for e in error.errors(include_url=False)]
    return "\n".join(f"{place}: {what}" if place else what for place, what in found)


def families_of(context: typer.Context) -> str:
    """The table of model families, as `module:attribute`, that `main` was called with."""
    return str(context.find_root().obj or PRODUCT)


def open_catalog(path: Path, families: str) -> Catalog:
    """Read models.yaml. Ends the command if it is invalid."""
    try:
        return load_catalog(path, specs_of(families_named(families)))
    except ConfigError as error:
        fail(str(error), EX_CONFIG)


def print_table(table: Table) -> None:
    """Print a table with its cells as they are: `[red]` and `:star:` in a prompt are text."""
    Console(markup=False, emoji=False).print(table)


def fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
