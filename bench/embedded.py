"""The embedded model behind the service, at concurrency 16, against a plain loop; python -m bench.embedded.

The loop is what a script does: `pipe(prompt).images[0].save(file)`, on all cores and on as many as the service's worker
takes. Service and loops take turns, with the same prompts, steps and sizes. On a machine that others use as well, one
on all cores takes minutes (decision 6); `--threads 1` does without.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from tests.server import Server

from bench._embedded import CALL, SIDE, STEPS
from bench._shared import Connection, machine, table
from imagegen.builtin import builtin_model

PROMPT = "a red circle on a blue background"
CONCURRENCY = 16

#: Speaks on its pipes: reads how many pictures to make, makes them, says how many seconds that took.
LOOP = f"""
import sys, time, torch
from diffusers import FluxPipeline
torch.set_num_threads(int(sys.argv[3]))
pipe = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
for line in sys.stdin:
    began = time.perf_counter()
    for seed in range(int(line)):
        image = pipe({PROMPT!r}, generator=torch.Generator().manual_seed(seed), **{CALL!r}).images[0]
        image.save(f"{{sys.argv[2]}}/{{seed}}.png")
    print(time.perf_counter() - began, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=32)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({cores, max(1, cores - 1)}))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, Server(Path(folder) / "data") as server:
        loops = {threads: Loop(folder, threads) for threads in options.threads}
        server.until(server.submit())
        paces: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for threads, loop in loops.items():
                name = f"a plain loop, {threads} thread{'s' * (threads > 1)}"
                paces.setdefault(name, []).append(options.pictures / loop.seconds(options.pictures))
            paces.setdefault("imagegen, 16 clients", []).append(options.pictures / ask(server, options.pictures))
        for loop in loops.values():
            loop.end()
        server.terminate()
    print(
        f"{machine()}, {options.rounds} interleaved rounds of {options.pictures} pictures of {SIDE}x{SIDE}, medians:\n"
    )
    print(table("who | pictures a second | imagegen / this", compared(paces)))


class Loop:
    """A script in a process of its own."""

    def __init__(self, folder: str, threads: int) -> None:
        command = [sys.executable, "-c", LOOP, str(builtin_model("tiny")), folder, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.seconds(2)

    def seconds(self, pictures: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{pictures}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


def ask(server: Server, pictures: int) -> float:
    """Seconds until CONCURRENCY clients have all of the pictures in hand."""
    began = time.perf_counter()
    uvloop.run(share(str(server.http.base_url), iter(range(pictures))))
    return time.perf_counter() - began


async def share(address: str, seeds: Iterator[int]) -> None:
    await asyncio.gather(*(client(address, seeds) for _ in range(CONCURRENCY)))


async def client(address: str, seeds: Iterator[int]) -> None:
    connection = await Connection.open(address)
    for seed in seeds:
        body = {"prompt": PROMPT, "seed": seed, "steps": STEPS, "width": SIDE, "height": SIDE}
        links = json.loads((await connection.ask("POST", "/text2image", body))[1])["links"]
        assert "completed" in [name async for name in connection.events(links["events"])]
        task = json.loads((await connection.ask("GET", links["self"]))[1])
        await connection.ask("GET", task["images"][0]["url"])
    connection.close()


def compared(paces: dict[str, list[float]]) -> Iterator[list[str]]:
    *_, ours = paces.values()
    for name, measured in paces.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, measured, strict=True))
        yield [name, f"{statistics.median(measured):.1f}", f"{ratio:.2f}"]


if __name__ == "__main__":
    main()
