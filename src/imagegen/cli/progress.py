"""Bar: shows the events of a task in a terminal."""

import base64
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from imagegen.cli.terminal import Picture, Protocol


class Bar:
    """A bar of a task's steps, with its previews above it. A context."""

    def __init__(self, model: str, steps: int, protocol: Protocol, *, quiet: bool = False) -> None:
        """`quiet`: shows nothing."""
        self._model = model
        self._protocol = Protocol.NONE if quiet else protocol
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=quiet)
        self._bar = self._progress.add_task(f"loading {model}", total=steps)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show an event, in the form of the API."""
        match event["type"]:
            case "queued" | "position":
                ahead = event["position"]
                self._describe(f"waiting, {ahead} before it" if ahead else "waiting")
            case "downloading":
                self._describe(f"pulling {self._model}{_percent(event)}")
            case "loading":
                self._describe(f"loading {self._model}{_percent(event)}")
            case "step":
                self._progress.update(self._bar, completed=event["step"], total=event["total"], description=self._model)
            case "preview":
                self.picture(base64.b64decode(event["image"]))

    def picture(self, data: bytes) -> None:
        """Show a picture, if the terminal can."""
        if self._protocol is not Protocol.NONE:
            self._progress.console.print(Picture(data, self._protocol))

    def _describe(self, text: str) -> None:
        self._progress.update(self._bar, description=text)


def _percent(event: Mapping[str, Any]) -> str:
    done, total = event["bytes_done"], event["bytes_total"]
    return f" {100 * done // total} %" if total else ""
