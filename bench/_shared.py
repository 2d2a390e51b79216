"""What the benchmarks share: the machine in a line, quantiles, Markdown tables, plots, a lean HTTP client."""

import asyncio
import json
import os
import platform
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self
from xml.sax.saxutils import escape

import psutil
from tests.server import Server

#: Where `docs/benchmarks.md` finds its plots.
DOCS = Path(__file__).parents[1] / "docs"

BAR, GAP, LABEL, WIDTH = 22, 8, 230, 760


def machine() -> str:
    """Where this was measured."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; `head` is its first line without the outer bars."""
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def bars(title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """An SVG of horizontal bars: one group for each thing that was tried, each scaled to its own longest bar."""
    parts, y = [_text(0, 20, title, "bold")], 48
    for group, values in groups.items():
        parts.append(_text(0, y, f"{group}, {unit}"))
        longest = max(values.values())
        for label, value in values.items():
            y += BAR + GAP
            length = (WIDTH - LABEL - 80) * value / longest
            parts.append(_text(12, y, label))
            parts.append(f'<rect x="{LABEL}" y="{y - 16}" width="{length:.1f}" height="{BAR}" fill="#4477aa"/>')
            parts.append(_text(LABEL + length + 6, y, f"{value:,.3g}" if value < 100 else f"{value:,.0f}"))
        y += 2 * BAR
    style = "font: 13px sans-serif; background: white"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" style="{style}">'
    return "\n".join([head, *parts, "</svg>", ""])


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" fill="#222">{escape(words)}</text>'


class Connection:
    """One kept-alive HTTP connection that costs little itself: what is measured is the other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    @classmethod
    async def open(cls, address: str) -> Self:
        host = address.removeprefix("http://")
        name, port = host.split(":")
        return cls(*await asyncio.open_connection(name, int(port)), host)

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body."""
        self.send(method, path, body)
        status, head = await self.head()
        return status, await self._reader.readexactly(int(_LENGTH.search(head)[1]))  # type: ignore[index]

    def send(self, method: str, path: str, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)

    async def head(self) -> tuple[int, bytes]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head[9:12]), head

    async def events(self, path: str) -> AsyncIterator[str]:
        """The names of a stream's events, as they come."""
        self.send("GET", path)
        status, _ = await self.head()
        assert status == 200
        while (line := await self._reader.readline()) not in (b"0\r\n", b""):  # the last chunk, or the end
            if line.startswith(b"event: "):
                yield line[7:].strip().decode()
        await self._reader.readline()

    def close(self) -> None:
        self._writer.close()


_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def cpu_s(server: Server) -> float:
    """Seconds of processor time that the service itself has used so far, its worker not counted."""
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)
