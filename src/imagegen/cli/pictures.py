"""`imagegen generate`, `inspect` and `replay`: pictures here and now, without a server."""

import json
import secrets
import threading
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.sources import Folders, lora_files, missing
from imagegen.cli.common import (
    EX_CANTCREAT,
    EX_DATAERR,
    EX_DIFFERENT,
    EX_UNAVAILABLE,
    ConfigOption,
    fail,
    open_catalog,
    settings_with,
)
from imagegen.cli.models import download
from imagegen.core.errors import ImagegenError
from imagegen.core.provenance import differences
from imagegen.core.receipt import Receipt
from imagegen.core.sizes import AspectRatio
from imagegen.core.task import MAX_SEED, MAX_STEPS, GenerationTask, ImageFormat, InputPictures, Output, Pixels, TaskType
from imagegen.gpu.devices import see_only_card
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import EngineOptions, Failed, Generate, Generated, Load
from imagegen.settings import Settings
from imagegen.storage.encoding import encoder_of, read_receipt
from imagegen.storage.files import write_whole
from imagegen.tasks.admission import Limits, TaskDraft, admit, new_task
from imagegen.tasks.inputs import check_picture

#: By a file's suffix.
FORMATS = {".jpg": ImageFormat.JPEG} | {f".{word}": word for word in ImageFormat}

PictureFile = typer.Argument(exists=True, dir_okay=False, help="A picture that imagegen made.")


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write: .png, .jpg, .webp or .avif; a batch gets -0, -1, ..."),
    ] = Path("out.png"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model id; default: default_model.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Same seed, same picture.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps; default: the model's.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-n", min=1, max=64, help="Pictures to make.")] = 1,
    aspect_ratio: Annotated[AspectRatio, typer.Option(help="Shape of the picture.")] = "1:1",
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Start from this picture.")] = None,
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="With --image: its white part is drawn anew.")
    ] = None,
    strength: Annotated[float, typer.Option(min=0.01, max=1, help="With --image: how much of it to replace.")] = 0.8,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Of .jpg, .webp and .avif.")] = None,
    metadata: Annotated[bool, typer.Option(help="Whether the file holds its receipt.")] = True,
    config: ConfigOption = None,
) -> None:
    """Make a picture here and now; no server is needed."""
    draft = TaskDraft(
        type=TaskType.IMAGE2IMAGE if image else TaskType.TEXT2IMAGE,
        model=model,
        prompt=prompt,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        aspect_ratio=aspect_ratio,
        strength=strength if image else None,
        output=Output(format=_format_of(output), quality=quality, metadata=metadata),
        pictures=_read_pictures(image, mask),
    )
    task, pictures = _make(draft, settings_with(config=config), output)
    for path in _write(task, pictures, output):
        typer.echo(path)


def inspect(file: Annotated[Path, PictureFile]) -> None:
    """Print a picture's receipt: what it was made of and by."""
    typer.echo(json.dumps(_receipt(file).model_dump(mode="json", exclude_none=True), ensure_ascii=False, indent=2))


def replay(
    file: Annotated[Path, PictureFile],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: beside it, with -replay.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The picture that it was made from, if it was.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The mask, if there was one.")] = None,
    config: ConfigOption = None,
) -> None:
    """Make a picture once more from its receipt, and say whether every pixel is the same (exit code 0, else 1)."""
    receipt = _receipt(file)
    output = output or file.with_stem(f"{file.stem}-replay")
    draft = TaskDraft(
        type=receipt.type,
        model=receipt.model,
        **dict(receipt.request),
        output=Output(format=_format_of(output)),
        pictures=_read_pictures(image, mask),
    )
    task, pictures = _make(draft, settings_with(config=config), output, receipt)
    typer.echo(_write(task, pictures, output)[0])
    assert task.provenance is not None
    changes = differences(receipt.provenance, task.provenance)
    if [it.sha256 for it in pictures] == [receipt.pixels_sha256]:
        typer.echo("Every pixel is the same.")
        return
    known = "\n".join(f"  {change}" for change in changes) or "  nothing that a receipt knows of"
    fail(f"The pixels are not the same. What is not as it was:\n{known}", EX_DIFFERENT)


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
        fail(f"{file} is no picture that can be read.", EX_DATAERR)
    if found is None:
        fail(f"{file} holds no receipt: it was not made by imagegen, or without metadata.", EX_DATAERR)
    try:
        return Receipt.model_validate(found)
    except ValidationError:
        fail(f"{file} holds a receipt that this version cannot read.", EX_DATAERR)


def _make(
    draft: TaskDraft, settings: Settings, output: Path, receipt: Receipt | None = None
) -> tuple[GenerationTask, list[Pixels]]:
    """Check, fetch the weights if that is wished for, load, generate with a progress bar."""
    catalog = open_catalog(settings.config)
    if not output.parent.is_dir():
        fail(f"cannot write {output}: there is no folder {output.parent}", EX_CANTCREAT)
    limits = Limits(max_queue=1, max_batch_size=settings.max_batch_size, max_pixels=settings.max_pixels)
    try:
        for picture in filter(None, (draft.pictures.init_image, draft.pictures.mask_image)):
            check_picture(picture, settings.max_input_pixels)
        task = new_task(draft, *admit(draft, catalog, limits, lambda: secrets.randbelow(MAX_SEED + 1)))
        loras = lora_files(task.request.loras, settings.loras_path)
    except ImagegenError as error:
        fail(error.detail, EX_DATAERR)
    if receipt is not None:
        _check_inputs(task, receipt)
    wanted = missing(catalog.model(task.model), settings.models_path) if catalog.settings.auto_download else ()
    if wanted:
        download(task.model, wanted)
    made = _run(task, draft.pictures, loras, catalog, settings)
    return task.evolve(provenance=made.provenance), list(made.images)


def _check_inputs(task: GenerationTask, receipt: Receipt) -> None:
    for option in ("image", "mask"):
        name = "init_image_sha256" if option == "image" else "mask_image_sha256"
        if getattr(task, name) != getattr(receipt, name):
            what = "was made from another file" if getattr(task, name) else "was made from a file: give it"
            fail(f"--{option}: the picture {what} (sha256 {getattr(receipt, name) or 'of none'})", EX_DATAERR)


def _run(
    task: GenerationTask, pictures: InputPictures, loras: list[Path], catalog: Catalog, settings: Settings
) -> Generated:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"loading {task.model}", total=task.request.steps * task.request.batch_size)

        def on_step(step: int, total: int, *preview: bytes) -> None:
            progress.update(bar, completed=step, total=total, description=task.model)

        engine = LocalEngine(EngineOptions(device=see_only_card(settings.device)))
        loaded = engine.load(Load.entry(catalog, task.model, Folders(settings.models_path, settings.loras_path)))
        command = Generate(
            model=task.model,
            request=task.request,
            init_image=pictures.init_image,
            mask_image=pictures.mask_image,
            lora_files=tuple(map(str, loras)),
        )
        outcome = loaded if isinstance(loaded, Failed) else engine.generate(command, threading.Event(), on_step)
    if not isinstance(outcome, Generated):
        fail(outcome.message if isinstance(outcome, Failed) else "stopped", EX_UNAVAILABLE)
    return outcome


def _write(task: GenerationTask, pictures: list[Pixels], output: Path) -> list[Path]:
    paths, encode = _names(output, len(pictures)), encoder_of(task)
    try:
        for path, pixels in zip(paths, pictures, strict=True):
            write_whole(path, encode(pixels))
    except OSError as error:
        fail(f"cannot write {output}: {error.strerror}", EX_CANTCREAT)
    except ImagegenError as error:
        fail(error.detail, EX_CANTCREAT)
    return paths


def _names(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(count)]
