"""`imagegen keys`: make, list, revoke and rotate API keys. Each change is in force at once in a running service."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from rich.table import Table

from imagegen.cli.common import EX_CANTCREAT, EX_CONFIG, EX_DATAERR, fail, print_table, problems_of, settings_with
from imagegen.core.errors import InvalidRequest, KeyExists, KeyNotFound, KeysFileInvalid, StorageFailed, StorageFull
from imagegen.core.keys import KeyLimits, Scope, new_key, new_webhook_secret
from imagegen.service.keys_file import read_keys
from imagegen.storage.database import Database
from imagegen.storage.keys import KeyStore

keys_app = typer.Typer(help="Make, list, revoke and rotate API keys.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option(help="Folder of the journal, which has the keys.")]
Name = Annotated[str, typer.Argument(help="The key's name, as `imagegen keys list` shows it.")]

T = TypeVar("T")


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="A name: letters, digits, '.', '_' and '-'. Tasks belong to it.")],
    scope: Annotated[
        list[Scope] | None,
        # Without `metavar` the list of the scopes leaves no room for the longest option.
        typer.Option(metavar="SCOPE", help="`generate` (default), `read`, `admin`; may be given several times."),
    ] = None,
    models: Annotated[str | None, typer.Option(help="Comma-separated ids of the models that it may use.")] = None,
    priority_floor: Annotated[int | None, typer.Option(help="The lowest `priority` that its tasks may have.")] = None,
    queued: Annotated[int | None, typer.Option(help="Tasks that may wait.")] = None,
    images_per_day: Annotated[int | None, typer.Option(help="Pictures in a day (UTC).")] = None,
    device_seconds_per_day: Annotated[float | None, typer.Option(help="Seconds of the device in a day (UTC).")] = None,
    rate: Annotated[str | None, typer.Option(help="Requests, as `60/min`.")] = None,
    expires: Annotated[str | None, typer.Option(help="The day (UTC), or the time, from which it is invalid.")] = None,
    webhook_secret: Annotated[
        bool, typer.Option("--webhook-secret", help="Sign the webhooks of its tasks with a secret of their own.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it. It is not stored, so it cannot be shown again."""
    try:
        limits = KeyLimits(
            queued=queued,
            images_per_day=images_per_day,
            device_seconds_per_day=device_seconds_per_day,
            rate_per_minute=None if rate is None else _per_minute(rate),
        )
        key, text = new_key(
            name,
            tuple(dict.fromkeys(scope or (Scope.GENERATE,))),
            models=tuple(filter(None, map(str.strip, (models or "").split(",")))),
            priority_floor=priority_floor,
            limits=limits,
            expires_at=None if expires is None else _time(expires),
            webhook_secret=new_webhook_secret() if webhook_secret else None,
        )
    except ValidationError as error:
        fail(problems_of(error), EX_DATAERR)
    _with_store(data_dir, lambda store: store.create(key))
    _show(text)
    if key.webhook_secret is not None:
        typer.echo(f"webhook secret: {key.webhook_secret}")


@keys_app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List the keys without their texts."""
    table = Table("name", "key", "scopes", "state", "expires", "last used", box=None)
    for key in _with_store(data_dir, lambda store: store.all()):
        state = "revoked" if key.revoked_at else "valid" if key.is_valid(datetime.now(UTC)) else "expired"
        scopes = ", ".join(key.scopes)
        table.add_row(key.name, f"{key.prefix}...", scopes, state, _day(key.expires_at), _day(key.last_used_at))
    print_table(table)


@keys_app.command("revoke")
def revoke(name: Name, data_dir: DataDir = None) -> None:
    """Make a key invalid. No other key can get its name, and its tasks still run."""
    _with_store(data_dir, lambda store: store.revoke(name))
    typer.echo(f"The key '{name}' is revoked.")


@keys_app.command("rotate")
def rotate(name: Name, data_dir: DataDir = None) -> None:
    """Give a key a new text with the same name, scopes and limits, and print it. The old text is invalid at once."""
    _, text = _with_store(data_dir, lambda store: store.rotate(name))
    _show(text)


def _show(text: str) -> None:
    typer.echo(text)
    typer.echo("This is the only time that the key is shown.", err=True)


def _with_store(data_dir: Path | None, work: Callable[[KeyStore], Awaitable[T]]) -> T:
    """Do `work` with the keys of the data directory. Ends the command on an error."""
    settings = settings_with(data_dir=data_dir)

    async def run() -> T:
        filed = read_keys(settings.keys_file) if settings.keys_file else ()
        database = Database(settings.journal_path)
        try:
            store = KeyStore(database)
            store.reserved = frozenset(key.name for key in filed)
            return await work(store)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except KeysFileInvalid as error:
        fail(error.detail, EX_CONFIG)
    except (KeyExists, KeyNotFound, InvalidRequest) as error:
        fail(error.detail, EX_DATAERR)
    except StorageFull:
        fail(f"The disk of {settings.data_dir} is full.", EX_CANTCREAT)
    except StorageFailed as error:
        fail(f"Cannot use the journal {settings.journal_path}: {error.detail}", EX_CANTCREAT)


def _per_minute(rate: str) -> int:
    if (match := re.fullmatch(r"(\d{1,7})/min", rate)) is None:
        raise typer.BadParameter("write it as 60/min", param_hint="--rate")
    return int(match[1])


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("write it as 2027-01-31 or 2027-01-31T12:00Z", param_hint="--expires") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _day(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else ""
