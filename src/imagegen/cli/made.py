"""Pictures that a command has made: by a service, or on this machine. It writes and shows them."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.console import Console

from imagegen.cli.common import EX_CANTCREAT, EX_DATAERR, EX_INTERRUPTED, EX_UNAVAILABLE, fail
from imagegen.cli.progress import Bar
from imagegen.cli.remote import Remote
from imagegen.cli.terminal import Picture, Protocol
from imagegen.core.errors import ImagegenError
from imagegen.core.task import ImageFormat
from imagegen.storage.files import write_whole

Json = dict[str, Any]

#: The format of each suffix.
FORMATS = {".jpg": ImageFormat.JPEG} | {f".{word}": word for word in ImageFormat}

#: Pixels of the longest side of a finished picture in the terminal.
_SHOWN = 512


class Made(NamedTuple):
    """The pictures of a task."""

    task_id: str
    model: str
    seeds: list[int]
    warnings: list[str]
    #: The file of each picture.
    files: list[bytes]


def format_of(output: Path) -> ImageFormat:
    """The format of a file's suffix. Ends the command if there is none."""
    if output.suffix.lower() not in FORMATS:
        fail(f"cannot write {output}: its suffix must be one of {', '.join(FORMATS)}", EX_DATAERR)
    return FORMATS[output.suffix.lower()]


def body_of(*, image: Path | None, mask: Path | None, strength: float, **fields: Any) -> Json:
    """The body of a request with these fields; None: not given. With `image`, of image2image."""
    if image is not None:
        fields |= {"image": _base64(image), "strength": strength, "mask": _base64(mask) if mask else None}
    elif mask is not None:
        raise typer.BadParameter("needs --image", param_hint="--mask")
    return {name: value for name, value in fields.items() if value is not None}


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def submit(remote: Remote, body: Json) -> Json:
    """Submit a task and return what the service answered."""
    return remote.post("/image2image" if "image" in body else "/text2image", body)


def run_there(remote: Remote, body: Json, protocol: Protocol, *, quiet: bool) -> Made:
    """Let a service make pictures. Ctrl+C cancels the task."""
    task_id = submit(remote, body)["task_id"]
    try:
        return follow(remote, task_id, protocol, quiet=quiet)
    except KeyboardInterrupt:
        remote.post(f"/task/{task_id}/cancel")
        fail("Cancelled.", EX_INTERRUPTED)


def follow(remote: Remote, task_id: str, protocol: Protocol, *, quiet: bool) -> Made:
    """Follow a task of a service to its end. Ends the command if the task makes no pictures."""
    task = remote.get(f"/task/{task_id}")
    with Bar(task["model"], task["steps"] * task["batch_size"], protocol, quiet=quiet) as bar:
        for event in remote.events(f"/task/{task_id}/events"):
            bar.show(event)
    task = remote.get(f"/task/{task_id}")
    if task["status"] != "completed":
        fail(task.get("error_message") or "The task was cancelled.", EX_UNAVAILABLE)
    files = [remote.file(f"/images/{file}") for file in task["result_files"]]
    return Made(task_id, task["model"], [it["seed"] for it in task["images"]], task.get("warnings", []), files)


def finish(made: Made, output: Path, protocol: Protocol, *, as_json: bool) -> None:
    """Write the files, and print their names or, with `as_json`, one object."""
    paths = write(made.files, output)
    if as_json:
        files = [str(path) for path in paths]
        about = {"task_id": made.task_id, "model": made.model, "seeds": made.seeds, "warnings": made.warnings}
        typer.echo(json.dumps({**about, "files": files}, ensure_ascii=False))
        return
    for warning in made.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if protocol is not Protocol.NONE:
        for file in made.files:
            Console(stderr=True).print(Picture(file, protocol, _SHOWN))
    for path in paths:
        typer.echo(path)


def write(files: list[bytes], output: Path) -> list[Path]:
    """Write the files of a task's pictures. Returns their paths."""
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
