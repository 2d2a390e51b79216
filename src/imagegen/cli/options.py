"""The arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from imagegen.core.sizes import AspectRatio
from imagegen.core.task import MAX_SEED, MAX_STEPS

#: Where the service listens by default.
LOCAL = "http://127.0.0.1:5050"

Prompt = Annotated[str, typer.Argument(help="What the picture shows.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model id; default: default_model.")]
Seed = Annotated[int | None, typer.Option(min=-1, max=MAX_SEED, help="Same seed, same picture; -1: random.")]
Steps = Annotated[int | None, typer.Option(min=1, max=MAX_STEPS, help="Denoising steps; default: the model's.")]
BatchSize = Annotated[int, typer.Option("--batch-size", "-n", min=1, max=64, help="Number of pictures.")]
Aspect = Annotated[AspectRatio | None, typer.Option(help="Shape of the picture; default: that of --image, else 1:1.")]
Image = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Start from this picture.")]
Mask = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="With --image: the white part is repainted.")
]
Strength = Annotated[float, typer.Option(min=0.01, max=1, help="With --image: how much of it to replace.")]
Quality = Annotated[int | None, typer.Option(min=1, max=100, help="Quality of .jpg, .webp and .avif.")]
Metadata = Annotated[bool, typer.Option(help="Whether the file contains its receipt.")]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="File to write: .png, .jpg, .webp or .avif; a batch gets -0, -1, ..."),
]

TaskId = Annotated[str, typer.Argument(help="A task's id, as `imagegen tasks` lists them.")]

Server = Annotated[
    str, typer.Option("--server", envvar="IMAGEGEN_SERVER", show_envvar=True, help="URL of the service.")
]
OptionalServer = Annotated[
    str | None,
    typer.Option("--server", envvar="IMAGEGEN_SERVER", show_envvar=True, help="URL of a service; default: none."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", envvar="IMAGEGEN_KEY", show_envvar=True, help="Its API key; others see the command line, so use:"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
