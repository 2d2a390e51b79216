"""The commands about the tasks of a service: submit, watch, cancel, tasks, ps, logs."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from imagegen.cli import options
from imagegen.cli.common import EX_DATAERR, EX_INTERRUPTED, fail, print_table
from imagegen.cli.made import body_of, finish, follow, format_of
from imagegen.cli.made import submit as submit_there
from imagegen.cli.remote import Remote, connect
from imagegen.cli.terminal import Protocol, chosen
from imagegen.core.task import ImageFormat, TaskStatus


def submit(
    context: typer.Context,
    prompt: options.Prompt,
    model: options.Model = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = 1,
    aspect_ratio: options.Aspect = None,
    image: options.Image = None,
    mask: options.Mask = None,
    strength: options.Strength = 0.8,
    format_: Annotated[ImageFormat, typer.Option("--format", help="Format of the files.")] = ImageFormat.PNG,
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="Quality of jpeg, webp and avif.")] = None,
    metadata: options.Metadata = True,
    priority: Annotated[int, typer.Option(min=-1000, max=1000, help="Lower numbers run first.")] = 0,
    server: options.Server = options.LOCAL,
    key: options.Key = None,
    as_json: options.Json = False,
) -> None:
    """Submit a task to a service and print its id, without waiting for the pictures."""
    body = body_of(
        prompt=prompt,
        model=model,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        aspect_ratio=aspect_ratio,
        priority=priority,
        format=format_,
        quality=quality,
        metadata=metadata,
        image=image,
        mask=mask,
        strength=strength,
    )
    accepted = submit_there(connect(context, server, key), body)
    _show(accepted, as_json, lambda it: typer.echo(it["task_id"]))


def watch(
    context: typer.Context,
    task_id: options.TaskId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write the picture to; a batch gets -0, -1, ...")
    ] = None,
    preview: Annotated[Protocol, typer.Option(help="Show pictures in the terminal.")] = Protocol.AUTO,
    server: options.Server = options.LOCAL,
    key: options.Key = None,
    as_json: options.Json = False,
) -> None:
    """Follow a task until it has ended. Ctrl+C stops following; the task goes on."""
    remote, protocol = connect(context, server, key), chosen(preview, Console(stderr=True))
    if output is not None and (wanted := format_of(output)) != (format_ := remote.get(f"/task/{task_id}")["format"]):
        fail(f"cannot write {output}: the task makes {format_} files, not {wanted}", EX_DATAERR)
    if as_json and output is None:
        _print_events(remote, f"/task/{task_id}/events", as_json=True)
        return
    try:
        made = follow(remote, task_id, protocol, quiet=as_json)
    except KeyboardInterrupt:
        fail("The task goes on; `imagegen cancel` ends it.", EX_INTERRUPTED)
    if output is not None:
        finish(made, output, protocol, as_json=as_json)
    else:
        typer.echo(f"{task_id} is completed; `imagegen watch {task_id} -o FILE` writes its pictures.")


def cancel(
    context: typer.Context,
    task_id: options.TaskId,
    server: options.Server = options.LOCAL,
    key: options.Key = None,
    as_json: options.Json = False,
) -> None:
    """Cancel a task: at once while it waits, after the present step while it runs."""
    task = connect(context, server, key).post(f"/task/{task_id}/cancel")
    ending = "is cancelled" if task["status"] == "cancelled" else "ends after the present step"
    _show(task, as_json, lambda it: typer.echo(f"{it['task_id']} {ending}."))


def tasks(
    context: typer.Context,
    status: Annotated[TaskStatus | None, typer.Option(help="Only tasks with this status.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only tasks of this model.")] = None,
    search: Annotated[str | None, typer.Option("--search", "-q", help="Only prompts with this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The most tasks to list.")] = 20,
    server: options.Server = options.LOCAL,
    key: options.Key = None,
    as_json: options.Json = False,
) -> None:
    """List the newest tasks of a service."""
    page = connect(context, server, key).get("/tasks", status=status, model=model, q=search, limit=limit)
    _show(page, as_json, lambda it: print_table(_task_table(it["tasks"])))


def ps(
    context: typer.Context,
    server: options.Server = options.LOCAL,
    key: options.Key = None,
    as_json: options.Json = False,
) -> None:
    """Show what a service does: its device, the models in memory, the running tasks and the queue."""
    remote = connect(context, server, key)
    seen = {
        "health": remote.get("/health"),
        "models": remote.get("/models/current"),
        "running": remote.get("/tasks", status="processing", limit=100)["tasks"],
    }
    _show(seen, as_json, _print_state)


def logs(
    context: typer.Context,
    task_id: Annotated[str | None, typer.Argument(help="Only the events of this task, from its beginning.")] = None,
    server: options.Server = options.LOCAL,
    key: options.Key = None,
    as_json: options.Json = False,
) -> None:
    """Print the events of a service as they happen, or those of one task until it has ended."""
    _print_events(connect(context, server, key), f"/task/{task_id}/events" if task_id else "/events", as_json=as_json)


def list_models(remote: Remote, *, as_json: bool) -> None:
    """Print the models of a service and their states."""
    _show(remote.get("/models"), as_json, lambda it: print_table(_model_table(it["models"])))


# -- what is printed ---------------------------------------------------------------------------------------------------


def _show(body: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        typer.echo(json.dumps(body, ensure_ascii=False))
    else:
        show(body)


def _table(*columns: str | Column) -> Table:
    """A table whose last column gets the room that the others leave: ids are whole, so that they can be copied."""
    titles = [Column(it, no_wrap=True) if isinstance(it, str) else it for it in columns]
    return Table(*titles, box=None, pad_edge=False)


def _cut(text: str) -> Text:
    """A cell of the last column: one line. The column itself may wrap, because rich narrows only those that may."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


def _task_table(tasks: list[dict[str, Any]]) -> Table:
    table = _table("task", "status", Column("model", no_wrap=True, max_width=16), "age", Column("prompt"))
    for task in tasks:
        table.add_row(task["task_id"], task["status"], task["model"], _age(task["created_at"]), _cut(task["prompt"]))
    return table


def _model_table(models: list[dict[str, Any]]) -> Table:
    table = _table("id", "type", "state", Column("description"))
    for model in models:
        table.add_row(model["id"], model["type"], model["state"], _cut(model["description"]))
    return table


def _print_state(seen: dict[str, Any]) -> None:
    health, gpu = seen["health"], seen["health"]["gpu_info"]
    free = f", {gpu['gpu_memory_free']:.1f} of {gpu['gpu_memory_total']:.1f} GiB free" if gpu["gpu_available"] else ""
    typer.echo(f"{health['status']}, imagegen {health['version']}, on {gpu['gpu_name'] or 'the CPU'}{free}")
    typer.echo(
        f"{health['queue_size']} waiting, {len(seen['running'])} running, {health['total_tasks']} in the history"
    )
    for problem in health.get("problems", ()):  # older services do not say them
        typer.echo(f"{problem['code']}: {problem['detail']}")
    for model in seen["models"]["models"]:
        typer.echo(f"{model['model']}: {model['device_bytes'] / 2**30:.2f} GiB, used {_age(model['last_used'])} ago")
    if seen["running"]:
        print_table(_task_table(seen["running"]))


def _age(time: str) -> str:
    """How long ago a time was: `12s`, `5m`, `3h`, `2d`."""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _print_events(remote: Remote, path: str, *, as_json: bool) -> None:
    try:
        for event in remote.events(path):
            typer.echo(json.dumps(event, ensure_ascii=False) if as_json else _line(event))
    except KeyboardInterrupt:
        raise typer.Exit(EX_INTERRUPTED) from None


def _line(event: Mapping[str, Any]) -> str:
    """An event in one line: its name, its task or model, and its other fields."""
    about = event.get("task_id") or event.get("model") or ""
    hidden = {"type", "task_id", "image", "images", *(() if "task_id" in event else ("model",))}
    fields = (f"{name}={_short(it)}" for name, it in event.items() if name not in hidden and it is not None)
    return " ".join(filter(None, (f"{event['type']:<12}", about, *fields))).rstrip()


def _short(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("code", "")) or json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
