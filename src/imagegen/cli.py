"""The `imagegen` command: serve, generate, models, config, version."""

import asyncio
import json
import os
import secrets
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table

import imagegen
from imagegen import logs
from imagegen.catalog.catalog import Catalog, HubFiles
from imagegen.catalog.loading import ConfigError, load_catalog
from imagegen.catalog.schema import json_schema
from imagegen.catalog.sources import Folders, missing, weights_here
from imagegen.core.errors import DataDirInUse, DataDirUnusable, FailureCode, ImagegenError, JournalDamaged
from imagegen.core.sizes import AspectRatio
from imagegen.core.task import MAX_SEED, GenerationRequest, InputPictures, TaskType
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Load
from imagegen.hub.messages import Fetch, Refused
from imagegen.hub.messages import Progress as Fetching
from imagegen.hub.process import fetch_in_process
from imagegen.loaders import SPECS
from imagegen.settings import Settings
from imagegen.storage.files import write_whole
from imagegen.storage.png import encode_png
from imagegen.tasks.admission import Limits, TaskDraft, admit
from imagegen.tasks.inputs import check_picture

# sysexits.h
EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_CANTCREAT = 73
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78
#: What a shell says of a command that Ctrl-C ended.
EX_INTERRUPTED = 130

#: How a download's failures end the command; 69 for the others.
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

app = typer.Typer(
    help="Self-hosted image generation: many models, one GPU, an HTTP API that never loses a task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="List the models; fetch their weights.")
app.add_typer(models_app, name="models")
config_app = typer.Typer(help="Check models.yaml; its schema for editors.", no_args_is_help=True)
app.add_typer(config_app, name="config")


ConfigOption = Annotated[Path | None, typer.Option("--config", help="models.yaml; default: the one that ships.")]


def main() -> None:
    """Entry point."""
    app()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 chooses one.  [default: 5050]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where tasks and pictures are kept.")] = None,
    config: ConfigOption = None,
    isolation: Annotated[str | None, typer.Option(help="`process` (default) or `thread`.")] = None,
) -> None:
    """Start the HTTP service. Every setting is also an IMAGEGEN_* variable."""
    settings = _settings(host=host, port=port, data_dir=data_dir, config=config, isolation=isolation)
    catalog = _catalog(settings.config)
    logs.configure(catalog.settings.log_level)
    # Imported here: the other commands do not need FastAPI.
    from imagegen.server import serve as run

    try:
        code = run(settings, catalog)
    except DataDirInUse as error:
        _fail(error.detail, EX_TEMPFAIL)
    except DataDirUnusable as error:
        _fail(error.detail, EX_CANTCREAT)
    except JournalDamaged as error:
        _fail(error.detail, EX_DATAERR)
    sys.stderr.flush()
    # A thread that no one can end (thread mode, a hanging device) must not hold the process.
    os._exit(code)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write; a batch gets -0, -1, ...")] = Path(
        "out.png"
    ),
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id; default: default_model.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Same seed, same picture.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=200, help="Denoising steps; default: the model's.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-n", min=1, max=64, help="Pictures to make.")] = 1,
    aspect_ratio: Annotated[AspectRatio, typer.Option(help="Shape of the picture.")] = "1:1",
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Start from this picture.")] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="With --image: its white part is drawn anew.")
    ] = None,
    strength: Annotated[float, typer.Option(min=0.01, max=1, help="With --image: how much of it to replace.")] = 0.8,
    config: ConfigOption = None,
) -> None:
    """Make a picture here and now; no server is needed."""
    settings = _settings(config=config)
    catalog = _catalog(settings.config)
    if not output.parent.is_dir():
        _fail(f"cannot write {output}: there is no folder {output.parent}", EX_CANTCREAT)
    draft = TaskDraft(
        type=TaskType.IMAGE2IMAGE if image else TaskType.TEXT2IMAGE,
        model=model,
        prompt=prompt,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        aspect_ratio=aspect_ratio,
        strength=strength if image else None,
        pictures=InputPictures(
            init_image=image.read_bytes() if image else None, mask_image=mask.read_bytes() if mask else None
        ),
    )
    limits = Limits(max_queue=1, max_batch_size=settings.max_batch_size, max_pixels=settings.max_pixels)
    try:
        for picture in filter(None, (draft.pictures.init_image, draft.pictures.mask_image)):
            check_picture(picture, settings.max_input_pixels)
        chosen, request = admit(draft, catalog, limits, lambda: secrets.randbelow(MAX_SEED + 1))
    except ImagegenError as error:
        _fail(error.detail, EX_DATAERR)
    for path in _render(chosen, request, draft.pictures, catalog, settings, output):
        typer.echo(path)


def _render(
    model: str,
    request: GenerationRequest,
    pictures: InputPictures,
    catalog: Catalog,
    settings: Settings,
    output: Path,
) -> list[Path]:
    """Fetch the weights if that is wished for, load, generate with a progress bar, write; the files."""
    wanted = missing(catalog.model(model), settings.models_path) if catalog.settings.auto_download else ()
    if wanted:
        _download(model, wanted)
    options = EngineOptions(device=settings.device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"loading {model}", total=request.steps * request.batch_size)

        def on_step(step: int, total: int, *preview: bytes) -> None:
            progress.update(bar, completed=step, total=total, description=model)

        engine = LocalEngine(options)
        loaded = engine.load(Load.entry(catalog, model, Folders(settings.models_path, settings.loras_path)))
        command = Generate(model=model, request=request, init_image=pictures.init_image, mask_image=pictures.mask_image)
        outcome = loaded if isinstance(loaded, Failed) else engine.generate(command, threading.Event(), on_step)
    if not isinstance(outcome, Generated):
        _fail(outcome.message if isinstance(outcome, Failed) else "stopped", EX_UNAVAILABLE)
    paths = _names(output, len(outcome.images))
    try:
        for path, pixels in zip(paths, outcome.images, strict=True):
            write_whole(path, encode_png(pixels.rgb, pixels.width, pixels.height))
    except OSError as error:
        _fail(f"cannot write {output}: {error.strerror}", EX_CANTCREAT)
    return paths


def _names(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(count)]


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, config: ConfigOption = None) -> None:
    """List the configured models and whether their weights are in place; `pull` fetches weights."""
    context.obj = config
    if context.invoked_subcommand is None:
        _list_models(config)


def _list_models(config: Path | None) -> None:
    settings = _settings(config=config)
    catalog = _catalog(settings.config)
    # A name that is broken in two cannot be copied or searched for.
    names = [Column(title, no_wrap=True) for title in ("id", "type", "weights")]
    table = Table(*names, "description", box=None)
    for model_id, spec in catalog.models.items():
        here = "here" if weights_here(spec, settings.models_path) else "not here"
        name = f"{model_id} (default)" if model_id == catalog.default_model else model_id
        table.add_row(name, spec.type, here, spec.description)
    Console().print(table)


@models_app.command("pull")
def models_pull(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A model's id, as `imagegen models` lists them.")],
    config: ConfigOption = None,
) -> None:
    """Fetch a model's weights from the hub into its cache (HF_HOME); HF_TOKEN opens gated and private ones.

    What is there already, whole or in part, is not fetched again.
    """
    settings = _settings(config=config or context.obj)
    spec = _catalog(settings.config).models.get(name)
    if spec is None:
        _fail(f"There is no model '{name}'; `imagegen models` lists them.", EX_DATAERR)
    if weights_here(spec, settings.models_path):
        typer.echo(f"The weights of {name} are already here.")
        return
    if not spec.hub_files():
        _fail(f"The entry of {name} names no repository to fetch weights from.", EX_DATAERR)
    _download(name, missing(spec, settings.models_path))
    typer.echo(f"The weights of {name} are here.")


def _download(name: str, files: tuple[HubFiles, ...]) -> None:
    """Fetch with a progress bar. Ends the command where that fails."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"fetching {name}", total=None)

            def on_progress(now: Fetching) -> None:
                progress.update(bar, completed=now.bytes_done, total=now.bytes_total)

            outcome = asyncio.run(fetch_in_process(Fetch(files=files), on_progress))
    except KeyboardInterrupt:
        _fail("Cancelled. What arrived is kept: the same command goes on from there.", EX_INTERRUPTED)
    if isinstance(outcome, Refused):
        _fail(outcome.message, PULL_EXITS.get(outcome.code, EX_UNAVAILABLE))


@config_app.command("check")
def config_check(file: Annotated[Path, typer.Argument(help="A models.yaml.")]) -> None:
    """Report every problem of a models.yaml as file:line:column: what, and the fix."""
    catalog = _catalog(file)
    typer.echo(f"{file}: {len(catalog.models)} models, default {catalog.default_model}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of models.yaml, for editors: `imagegen config schema > models.schema.json` beside it."""
    typer.echo(json.dumps(json_schema(SPECS), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(imagegen.__version__)


def _settings(**given: Any) -> Settings:
    """The environment's settings under what the command line says."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        _fail("\n".join(lines), EX_CONFIG)


def _catalog(path: Path) -> Catalog:
    try:
        return load_catalog(path, SPECS)
    except ConfigError as error:
        _fail(str(error), EX_CONFIG)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
