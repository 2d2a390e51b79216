"""`imagegen run`, `inspect` and `replay`: make pictures, and make them again."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from imagegen import logs
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import missing
from imagegen.cli import options
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
from imagegen.cli.made import Made, body_of, finish, format_of, run_there, write
from imagegen.cli.models import download
from imagegen.cli.progress import Bar
from imagegen.cli.remote import connect
from imagegen.cli.terminal import Protocol, chosen
from imagegen.core.errors import ImagegenError
from imagegen.core.owner import ANYONE
from imagegen.core.provenance import differences
from imagegen.core.receipt import Receipt
from imagegen.core.task import GenerationTask, InputPictures, Output, TaskStatus, TaskType
from imagegen.settings import Settings
from imagegen.storage.encoding import read_receipt
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.inputs import check_mask, check_picture

#: Previews of each picture, where they are shown.
_PREVIEWS = 4

PictureFile = typer.Argument(exists=True, dir_okay=False, help="A picture that imagegen made.")


def run(
    context: typer.Context,
    prompt: options.Prompt,
    output: options.Output = Path("out.png"),
    model: options.Model = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = 1,
    aspect_ratio: options.Aspect = None,
    image: options.Image = None,
    mask: options.Mask = None,
    strength: options.Strength = 0.8,
    quality: options.Quality = None,
    metadata: options.Metadata = True,
    preview: Annotated[
        Protocol, typer.Option(help="Show pictures in the terminal; auto: if it is known to be able to.")
    ] = Protocol.AUTO,
    server: options.OptionalServer = None,
    key: options.Key = None,
    as_json: options.Json = False,
    config: ConfigOption = None,
) -> None:
    """Make pictures and write them to files: by a service, or without --server on this machine."""
    if mask is not None and image is None:
        raise typer.BadParameter("needs --image", param_hint="--mask")
    format_, protocol = format_of(output), chosen(preview, Console(stderr=True))
    previews = 0 if protocol is Protocol.NONE or as_json else _PREVIEWS
    if not output.parent.is_dir():
        fail(f"cannot write {output}: there is no folder {output.parent}", EX_CANTCREAT)
    fields: dict[str, Any] = {
        "prompt": prompt,
        "model": model,
        "steps": steps,
        "batch_size": batch_size,
        "aspect_ratio": aspect_ratio,
        "previews": previews,
    }
    if server is not None:
        fields |= {"seed": seed, "format": format_, "quality": quality, "metadata": metadata}
        body = body_of(image=image, mask=mask, strength=strength, **fields)
        made = run_there(connect(context, server, key), body, protocol, quiet=as_json)
    else:
        draft = TaskDraft(
            type=TaskType.IMAGE2IMAGE if image else TaskType.TEXT2IMAGE,
            seed=None if seed == -1 else seed,
            strength=strength if image else None,
            output=Output(format=format_, quality=quality, metadata=metadata),
            pictures=_read_pictures(image, mask),
            **fields,
        )
        settings = settings_with(config=config)
        task, files = _make(draft, settings, families_of(context), protocol=protocol, quiet=as_json)
        made = Made(task.id, task.model, [it.seed for it in task.images], list(task.warnings), files)
    finish(made, output, protocol, as_json=as_json)


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
        output=Output(format=format_of(output)),
        pictures=_read_pictures(image, mask),
    )
    if not output.parent.is_dir():
        fail(f"cannot write {output}: there is no folder {output.parent}", EX_CANTCREAT)
    task, files = _make(draft, settings_with(config=config), families_of(context), receipt)
    typer.echo(write(files, output)[0])
    assert task.provenance is not None
    changes = differences(receipt.provenance, task.provenance)
    if [image.pixels_sha256 for image in task.images] == [receipt.pixels_sha256]:
        typer.echo("Every pixel is the same.")
        return
    known = "\n".join(f"  {change}" for change in changes) or "  nothing that a receipt contains"
    fail(f"The pixels are not the same. What has changed:\n{known}", EX_DIFFERENT)


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
    draft: TaskDraft,
    settings: Settings,
    families: str,
    receipt: Receipt | None = None,
    *,
    protocol: Protocol = Protocol.NONE,
    quiet: bool = False,
) -> tuple[GenerationTask, list[bytes]]:
    """Run one task in a temporary service. Returns the task and the files of its pictures."""
    catalog = open_catalog(settings.config, families)
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
            made = _run(draft, settings.model_copy(update=own), catalog, families, protocol, quiet=quiet)
            return asyncio.run(made)
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
    draft: TaskDraft, settings: Settings, catalog: Catalog, families: str, protocol: Protocol, *, quiet: bool
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
        steps = task.request.steps * task.request.batch_size
        with Bar(task.model, steps, protocol, quiet=quiet) as bar:
            async for published in service.events(ANYONE, task.id):
                if published is not None:
                    event = published.event
                    bar.show({"type": event.name, **event.model_dump(mode="json")})
        task = await service.task(ANYONE, task.id)
        if task.status is not TaskStatus.COMPLETED:
            fail(task.failure.message if task.failure else "Cancelled.", EX_UNAVAILABLE)
        return task, [b"".join([piece async for piece in images.pieces(it, 0, it.bytes)]) for it in task.images]
