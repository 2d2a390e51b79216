"""What a flood of long prompts leaves on the disk; python -m bench.disk [--megabytes 32] [--journal-mb 16].

One client sends prompts of 8 KiB and cancels its tasks, as fast as the journal takes them, and retention runs now and
then. The journal must not become larger than its limit and what it keeps free, however long that goes on.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from string import ascii_lowercase

from sqlalchemy import Connection
from tests.conftest import request_for
from tests.unit.conftest import task_of

from bench._shared import machine, table
from imagegen.core.events import EventBus
from imagegen.core.task import InputPictures, TaskStatus
from imagegen.storage.database import sizes
from imagegen.storage.images import ImageStore
from imagegen.storage.journal import Retention, TaskJournal
from imagegen.tasks.records import Records

PROMPT_BYTES = 8192

#: Different words in the prompts. With each more the index of trigrams takes longer and is larger.
VOCABULARY = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=32, help="sent in all")
    parser.add_argument("--journal-mb", type=int, default=16, help="the limit of the journal")
    parser.add_argument("--between-mb", type=int, default=4, help="sent between two runs of retention")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(flood(Path(folder), options.megabytes, options.journal_mb, options.between_mb))
    print(f"{machine()}, a limit of {options.journal_mb} MiB:\n")
    print(table("sent, MB | tasks kept | counted, MB | in use, MB | on disk, MB", rows))


async def flood(folder: Path, megabytes: int, journal_mb: int, between_mb: int) -> list[list[str]]:
    """The size of the journal after each run of retention."""
    path, rows, chance, number = folder / "imagegen.sqlite3", list[list[str]](), Random(1), 0
    words = ["".join(chance.choices(ascii_lowercase, k=chance.randrange(2, 12))) for _ in range(VOCABULARY)]
    journal = TaskJournal(path)
    records = Records(journal, ImageStore(folder / "images"), EventBus())
    try:
        for sent in range(between_mb, megabytes + 1, between_mb):
            for prompts in batches(between_mb * 10**6, words, chance):
                tasks = [task_of(number + i).evolve(request=request_for(prompt=it)) for i, it in enumerate(prompts)]
                number += len(tasks)
                await asyncio.gather(*(journal.insert(task, InputPictures()) for task in tasks))
                await asyncio.gather(*(journal.update(task.evolve(status=TaskStatus.CANCELLED)) for task in tasks))
            await records.expire(Retention(journal=journal_mb * 2**20))
            await journal.tidy()
            rows.append([f"{sent:,}", *await measured(journal, path)])
    finally:
        await journal.close()
    return rows


def batches(size: int, words: list[str], chance: Random) -> Iterator[list[str]]:
    """Prompts of PROMPT_BYTES, in batches of 50."""
    for _ in range(size // PROMPT_BYTES // 50):
        yield [" ".join(chance.choices(words, k=PROMPT_BYTES // 5))[:PROMPT_BYTES] for _ in range(50)]


async def measured(journal: TaskJournal, path: Path) -> list[str]:
    """Tasks, the bytes that retention counts, the bytes in use, and those of the files."""

    def look(connection: Connection) -> tuple[int, int, int]:
        kept, counted = connection.exec_driver_sql("SELECT count(*), total(journal_bytes) FROM tasks").one()
        return int(kept), int(counted), sizes(connection).used

    kept, counted, in_use = await journal._database.look_up(look)
    on_disk = sum(file.stat().st_size for file in path.parent.glob("imagegen.sqlite3*"))
    return [f"{kept:,}", *(f"{size / 1e6:.1f}" for size in (counted, in_use, on_disk))]


if __name__ == "__main__":
    main()
