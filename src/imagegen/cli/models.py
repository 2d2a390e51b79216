"""`imagegen models` and `imagegen models pull`."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from imagegen.catalog.catalog import HubFiles, ModelSpec
from imagegen.catalog.sources import missing, weights_here
from imagegen.cli import options
from imagegen.cli.common import (
    EX_CANTCREAT,
    EX_DATAERR,
    EX_INTERRUPTED,
    EX_NOPERM,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    ConfigOption,
    fail,
    families_of,
    open_catalog,
    print_table,
    settings_with,
)
from imagegen.cli.remote import connect
from imagegen.cli.tasks import list_models
from imagegen.core.errors import FailureCode
from imagegen.gpu.machine import look
from imagegen.hub.process import fetch_in_process
from imagegen.hub.protocol import Fetch, Refused
from imagegen.hub.protocol import Progress as Fetching
from imagegen.loaders.nunchaku import precision_of
from imagegen.settings import Settings

#: The exit codes of failed pulls; 69 for all others.
PULL_EXITS: Mapping[FailureCode, int] = MappingProxyType(
    {
        FailureCode.HUB_GATED: EX_NOPERM,
        FailureCode.HUB_UNAUTHORIZED: EX_NOPERM,
        FailureCode.HUB_RATE_LIMITED: EX_TEMPFAIL,
        FailureCode.HUB_UNREACHABLE: EX_TEMPFAIL,
        FailureCode.CHECKSUM_MISMATCH: EX_TEMPFAIL,
        FailureCode.STORAGE_FULL: EX_CANTCREAT,
        FailureCode.STORAGE_FAILED: EX_CANTCREAT,
    }
)

models_app = typer.Typer(help="List the models, or pull their weights.")


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    server: options.OptionalServer = None,
    key: options.Key = None,
    as_json: options.Json = False,
    config: ConfigOption = None,
) -> None:
    """List the configured models and whether their weights are on this machine; with --server, those of a service."""
    context.obj = config
    if context.invoked_subcommand is None and server is not None:
        list_models(connect(context, server, key), as_json=as_json)
    elif context.invoked_subcommand is None:
        _list_models(config, families_of(context), as_json=as_json)


def _list_models(config: Path | None, families: str, *, as_json: bool) -> None:
    settings = settings_with(config=config)
    catalog = open_catalog(settings.config, families)
    if as_json:
        shown = [
            {
                "id": model_id,
                "type": spec.type,
                "weights_here": weights_here(spec, settings.models_path),
                "description": spec.description,
            }
            for model_id, spec in catalog.models.items()
        ]
        typer.echo(json.dumps({"models": shown, "default": catalog.default_model}, ensure_ascii=False))
        return
    # Names do not wrap, so that they can be copied and searched for.
    names = [Column(title, no_wrap=True) for title in ("id", "type", "weights")]
    table = Table(*names, "description", box=None)
    for model_id, spec in catalog.models.items():
        here = "here" if weights_here(spec, settings.models_path) else "not here"
        name = f"{model_id} (default)" if model_id == catalog.default_model else model_id
        table.add_row(name, spec.type, here, spec.description)
    print_table(table)


@models_app.command("pull")
def models_pull(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's id, as `imagegen models` lists them.")],
    config: ConfigOption = None,
) -> None:
    """Pull a model's weights from the hub into its cache (HF_HOME). Gated and private models need HF_TOKEN.

    A pull that was interrupted is resumed.
    """
    settings = settings_with(config=config or context.obj)
    spec = open_catalog(settings.config, families_of(context)).models.get(name)
    if spec is None:
        fail(f"There is no model '{name}'; `imagegen models` lists them.", EX_DATAERR)
    precision = _precision(spec, settings)
    if weights_here(spec, settings.models_path, precision):
        typer.echo(f"The weights of {name} are already here.")
        return
    if not spec.hub_files():
        fail(f"The entry of {name} names no repository to pull weights from.", EX_DATAERR)
    download(name, missing(spec, settings.models_path, precision))
    typer.echo(f"The weights of {name} are here.")


def _precision(spec: ModelSpec, settings: Settings) -> str | None:
    """The precision of the weights that the card needs. None: the entry has no files that depend on it."""
    if not any(files.by_precision for files in spec.hub_files()):
        return None
    torch = look(settings.device).torch
    cards = torch.cards if torch is not None else ()
    return precision_of(tuple(map(int, cards[0].capability.split("."))) if cards else None)


def download(name: str, files: tuple[HubFiles, ...]) -> None:
    """Pull weights with a progress bar. Ends the command if the pull fails."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"pulling {name}", total=None)

            def on_progress(now: Fetching) -> None:
                progress.update(bar, completed=now.bytes_done, total=now.bytes_total)

            outcome = asyncio.run(fetch_in_process(Fetch(files=files), on_progress))
    except KeyboardInterrupt:
        fail("Cancelled. The bytes that arrived are kept: the same command resumes the pull.", EX_INTERRUPTED)
    if isinstance(outcome, Refused):
        fail(outcome.message, PULL_EXITS.get(outcome.code, EX_UNAVAILABLE))
