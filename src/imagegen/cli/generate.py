"""`imagegen generate`, `inspect` and `replay`: make pictures on this machine, without a server."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from imagegen import logs
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import missing
from imagegen.cli.common import (
    EX_CANTCREAT,
    EX_DATAERR,
    EX_DIFFERENT,
    EX_INTERRUPTED,
    EX_UNAVAILABLE,
    ConfigOption,
    fail,
    families_of,
    open_catalog,
    settings_with,
)
from imagegen.cli.models import download
from imagegen.core.errors import ImagegenError
from imagegen.core.events import TaskStep
from imagegen.core.owner import ANYONE
from imagegen.core.provenance import differences
from imagegen.core.receipt import Receipt
from imagegen.core.sizes import AspectRatio
from imagegen.core.task import (
    MAX_SEED,
    MAX_STEPS,
    GenerationTask,
    ImageFormat,
    InputPictures,
    Output,
    TaskStatus,
    TaskType,
)
from imagegen.settings import Settings
from imagegen.storage.encoding import read_receipt
from imagegen.storage.files import write_whole
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.inputs import check_mask, check_picture

#: The format of each suffix.
FORMATS = {".jpg": ImageFormat.JPEG} | {f".{word}": word for word in ImageFormat}

PictureFile = typer.Argument(exists=True, dir_okay=False, help="A picture that imagegen made.")


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write: .png, .jpg, .webp or .avif; a batch gets -0, -1, ..."),
    ] = Path("out.png"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id; default: default_model.")] = None,
    seed: Annotated[int | None, typer.Option(min=-1, max=MAX_SEED, help="Same seed, same picture; -1: random.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps; default: the model's.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-n", min=1, max=64, help="Number of pictures.")] = 1,
    aspect_ratio: Annotated[
        AspectRatio | None, typer.Option(help="Shape of the picture; default: that of --image, else 1:1.")
    ] = None,
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Start from this picture.")] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="With --image: the white part is repainted.")
    ] = None,
    strength: Annotated[float, typer.Option(min=0.01, max=1, help="With --image: how much of it to replace.")] = 0.8,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Quality of .jpg, .webp and .avif.")] = None,
    metadata: Annotated[bool, typer.Option(help="Whether the file contains its receipt.")] = True,
    config: ConfigOption = None,
) -> None:
    """Make pictures on this machine, without a server."""
    draft = TaskDraft(
        type=TaskType.IMAGE2IMAGE if image else TaskType.TEXT2IMAGE,
        model=model,
        prompt=prompt,
        seed=None if seed == -1 else seed,
        steps=steps,
        batch_size=batch_size,
        aspect_ratio=aspect_ratio,
        strength=strength if image else None,
        output=Output(format=_format_of(output), quality=quality, metadata=metadata),
        pictures=_read_pictures(image, mask),
    )
    _, files = _make(draft, settings_with(config=config), families_of(context), output)
    for path in _write(files, output):
        typer.echo(path)


def inspect(file: Annotated[Path, PictureFile]) -> None:
    """Print a picture's receipt: everything that its pixels depend on."""
    typer.echo(json.dumps(_receipt(file).model_dump(mode="json", exclude_none=True), ensure_ascii=False, indent=2))


def replay(
    context: typer.Context,
    file: Annotated[Path, PictureFile],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: the name of FILE with -replay.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The input picture, if there was one.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The mask, if there was one.")] = None,
    config: ConfigOption = None,
) -> None:
    """Make a picture again from its receipt. Exits with 0 if every pixel is the same, with 1 if not."""
    receipt = _receipt(file)
    output = output or file.with_stem(f"{file.stem}-replay")
    draft = TaskDraft(
        type=receipt.type,
        model=receipt.model,
        **dict(receipt.request),
        output=Output(format=_format_of(output)),
        pictures=_read_pictures(image, mask),
    )
    task, files = _make(draft, settings_with(config=config), families_of(context), output, receipt)
    typer.echo(_write(files, output)[0])
    assert task.provenance is not None
    changes = differences(receipt.provenance, task.provenance)
    if [image.pixels_sha256 for image in task.images] == [receipt.pixels_sha256]:
        typer.echo("Every pixel is the same.")
        return
    known = "\n".join(f"  {change}" for change in changes) or "  nothing that a receipt contains"
    fail(f"The pixels are not the same. What has changed:\n{known}", EX_DIFFERENT)


def _format_of(output: Path) -> ImageFormat:
    if output.suffix.lower() not in FORMATS:
        fail(f"cannot write {output}: its suffix must be one of {', '.join(FORMATS)}", EX_DATAERR)
    return FORMATS[output.suffix.lower()]


def _read_pictures(image: Path | None, mask: Path | None) -> InputPictures:
    return InputPictures(
        init_image=image.read_bytes() if image else None, mask_image=mask.read_bytes() if mask else None
    )


def _receipt(file: Path) -> Receipt:
    try:
        found = read_receipt(file.read_bytes())
    except OSError:
        fail(f"{file} is not a readable picture.", EX_DATAERR)
    if found is None:
        fail(f"{file} has no receipt: it was not made by imagegen, or it was made without metadata.", EX_DATAERR)
    try:
        return Receipt.model_validate(found)
    except ValidationError:
        fail(f"{file} has a receipt that this version cannot read.", EX_DATAERR)


def _make(
    draft: TaskDraft, settings: Settings, families: str, output: Path, receipt: Receipt | None = None
) -> tuple[GenerationTask, list[bytes]]:
    """Run one task in a temporary service. Returns the task and the files of its pictures."""
    catalog = open_catalog(settings.config, families)
    if not output.parent.is_dir():
        fail(f"cannot write {output}: there is no folder {output.parent}", EX_CANTCREAT)
    if receipt is not None:
        _check_inputs(draft.pictures, receipt)
    try:
        if draft.pictures.init_image:
            check_picture(draft.pictures.init_image, settings.max_input_pixels)
        if draft.pictures.mask_image:
            check_mask(draft.pictures.mask_image, settings.max_input_pixels)
    except ImagegenError as error:
        fail(error.detail, EX_DATAERR)
    _download_if_configured(draft.model or catalog.default_model, catalog, settings)
    # The progress bar and the error message are enough, unless models.yaml sets log_level to DEBUG.
    logs.configure("DEBUG" if catalog.settings.log_level == "DEBUG" else "CRITICAL")
    with TemporaryDirectory(prefix="imagegen-", ignore_cleanup_errors=True) as folder:
        own = {
            "data_dir": Path(folder),
            "models_dir": settings.models_path,
            "loras_dir": settings.loras_path,
            "compiled_dir": settings.compiled_path,
            "isolation": "thread",
            "store": "",
            "drain_timeout_s": 0,
        }
        try:
            return asyncio.run(_run(draft, settings.model_copy(update=own), catalog, families))
        except KeyboardInterrupt:
            fail("Cancelled.", EX_INTERRUPTED)


def _download_if_configured(model: str, catalog: Catalog, settings: Settings) -> None:
    """Pull missing weights, with a progress bar in bytes, if `auto_download` is on."""
    if catalog.settings.auto_download and model in catalog.models:
        wanted = missing(catalog.models[model], settings.models_path)
        if wanted:
            download(model, wanted)


def _check_inputs(pictures: InputPictures, receipt: Receipt) -> None:
    given = {"image": (pictures.init_image, receipt.init_image_sha256)}
    given["mask"] = (pictures.mask_image, receipt.mask_image_sha256)
    for option, (picture, expected) in given.items():
        if (sha256(picture).hexdigest() if picture else None) != expected:
            what = "was made from another file" if picture else "was made from a file: give it"
            fail(f"--{option}: the picture {what} (sha256: {expected or 'none'})", EX_DATAERR)


async def _run(
    draft: TaskDraft, settings: Settings, catalog: Catalog, families: str
) -> tuple[GenerationTask, list[bytes]]:
    # Imported here: the other commands do not need FastAPI.
    from imagegen.app import Service

    made = Service(settings, catalog, families)
    service, images = made.services.service, made.services.images
    async with made.lifecycle.run():
        try:
            task = (await service.submit(ANYONE, draft)).task
        except ImagegenError as error:
            fail(error.detail, EX_DATAERR)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"loading {task.model}", total=task.request.steps * task.request.batch_size)
            async for published in service.events(ANYONE, task.id):
                if published is not None and isinstance(step := published.event, TaskStep):
                    progress.update(bar, completed=step.step, total=step.total, description=task.model)
        task = await service.task(ANYONE, task.id)
        if task.status is not TaskStatus.COMPLETED:
            fail(task.failure.message if task.failure else "Cancelled.", EX_UNAVAILABLE)
        for warning in task.warnings:
            typer.echo(f"warning: {warning}", err=True)
        return task, [b"".join([piece async for piece in images.pieces(it, 0, it.bytes)]) for it in task.images]


def _write(files: list[bytes], output: Path) -> list[Path]:
    paths = _names(output, len(files))
    try:
        for path, data in zip(paths, files, strict=True):
            write_whole(path, data)
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}", EX_CANTCREAT)
    except ImagegenError as error:
        fail(error.detail, EX_CANTCREAT)
    return paths


def _names(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(count)]
