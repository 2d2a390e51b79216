"""The path of four requests through the source: calls, functions, files and changes of package.

python -m bench.walk [--top]

The service runs in this process, in thread mode, with a model that only waits. A profiler records each call of a
function of imagegen. A package is a folder or a file directly below `src/imagegen`. A change of package is counted when
a call is in another package than the call before it in the same thread. Fewer changes are easier to read.
"""

import argparse
import asyncio
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import httpx

import imagegen
from bench._shared import table
from imagegen.app import create_app
from imagegen.catalog.loading import load_catalog
from imagegen.settings import Settings
from imagegen.testing import SPECS, WITH_FAKE
from imagegen.testing.config import fake_config

ROOT = str(Path(imagegen.__file__).parent) + "/"

#: Slow enough to be cancelled in the middle, fast enough not to matter.
STEP_S = 0.05


class Place(NamedTuple):
    """A function of imagegen."""

    file: str
    name: str
    line: int

    @property
    def package(self) -> str:
        return self.file.partition("/")[0].removesuffix(".py")


class Walk:
    """Records the calls between `begin` and `end`, those of every thread in their own order."""

    def __init__(self) -> None:
        self.on = False
        self._ways: dict[int, list[Place]] = {}

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        # Of generators and coroutines, each resumption is a call as well: only the first one counts.
        if self.on and event == "call" and code.co_filename.startswith(ROOT) and frame.f_lasti <= 0:
            place = Place(code.co_filename.removeprefix(ROOT), code.co_qualname, code.co_firstlineno)
            self._ways.setdefault(threading.get_ident(), []).append(place)

    def begin(self) -> None:
        self._ways.clear()
        self.on = True

    def end(self) -> list[list[Place]]:
        self.on = False
        return list(self._ways.values())


async def submit(client: httpx.AsyncClient, model: str, **fields: Any) -> str:
    answer = await client.post("/text2image", json={"prompt": "a picture", "model": model, "steps": 4, **fields})
    return str(answer.raise_for_status().json()["task_id"])


async def ended(client: httpx.AsyncClient, task_id: str) -> None:
    """Listens instead of polling, so that the number of calls does not depend on the machine's speed."""
    bus = client.app.state.services.bus  # type: ignore[attr-defined]
    with bus.subscribe(task_id, after=0) as subscription:
        async for published in subscription:
            if published.event.final:
                return


async def generate(client: httpx.AsyncClient) -> None:
    await ended(client, await submit(client, "a"))


async def switch(client: httpx.AsyncClient) -> None:
    await ended(client, await submit(client, "b"))


async def change(client: httpx.AsyncClient) -> None:
    (await client.put("/models/a", json={"steps": 5})).raise_for_status()


#: What is walked, and what is done before it, unrecorded.
WALKS: dict[str, tuple[Callable[[httpx.AsyncClient], Awaitable[None]], str]] = {
    "POST /text2image, until it is completed": (generate, "a"),
    "the same, with a switch of the model": (switch, "a"),
    "PUT /models/{id}": (change, "a"),
}


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    config = folder / "models.yaml"
    config.write_text(fake_config(a={}, b={}, slow={"step_seconds": STEP_S}))
    settings = Settings(config=config, data_dir=folder / "data", isolation="thread", device="cpu", housekeeping_s=3600)
    app = create_app(settings, load_catalog(config, SPECS), WITH_FAKE)
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
        client.app = app  # type: ignore[attr-defined]
        async with client:
            yield client


async def cancel(client: httpx.AsyncClient, walk: Walk) -> list[list[Place]]:
    """The calls of the one request, while the task makes its steps: the steps are not its own."""
    task_id = await submit(client, "slow", steps=200)
    bus = client.app.state.services.bus  # type: ignore[attr-defined]
    with bus.subscribe(task_id, after=0) as subscription:
        async for published in subscription:
            if type(published.event).__name__ == "TaskStep":
                break
    walk.begin()
    (await client.post(f"/task/{task_id}/cancel")).raise_for_status()
    ways = walk.end()
    await ended(client, task_id)
    return ways


def row(what: str, ways: list[list[Place]]) -> tuple[object, ...]:
    places = [place for way in ways for place in way]
    changes = sum(one.package != other.package for way in ways for one, other in pairwise(way))
    return what, len(places), len(set(places)), len({place.file for place in places}), changes


async def main(*, top: bool) -> None:
    walk, rows, seen = Walk(), [], Counter[Place]()
    with tempfile.TemporaryDirectory() as folder:
        threading.setprofile(walk.see)
        sys.setprofile(walk.see)
        async with service(Path(folder)) as client:
            await generate(client)  # imports, first uses
            await change(client)
            for what, (request, before) in WALKS.items():
                await ended(client, await submit(client, before))
                walk.begin()
                await request(client)
                await asyncio.sleep(0.2)  # work that follows the reported end
                ways = walk.end()
                seen.update(place for way in ways for place in way)
                rows.append(row(what, ways))
            rows.append(row("POST /task/{id}/cancel of a running task", await cancel(client, walk)))
        sys.setprofile(None)
        threading.setprofile(None)
    print(table("request | calls | functions | files | changes of package", rows))
    if top:
        print(table("calls | function | file", ((n, it.name, it.file) for it, n in seen.most_common(40))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top", action="store_true", help="name the functions that are called most")
    asyncio.run(main(top=parser.parse_args().top))
