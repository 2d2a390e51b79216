"""`imagegen init`: writes a models.yaml of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from imagegen.builtin import default_config
from imagegen.cli.common import EX_CANTCREAT, fail


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("models.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
) -> None:
    """Write a models.yaml of one's own, with the models that imagegen ships with, to edit."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as written:
            written.write(default_config().read_text(encoding="utf-8"))
    except FileExistsError:
        fail(f"{file} is there already; --force replaces it.", EX_CANTCREAT)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}", EX_CANTCREAT)
    typer.echo(
        f"{file} is written. `imagegen config check {file}` checks it, `imagegen serve --config {file}` uses it."
    )
