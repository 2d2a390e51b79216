"""ModelPuller with a scripted download: the order of pulls, their progress, and their ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.loading import parse_catalog
from imagegen.core.errors import (
    Draining,
    FailureCode,
    ImagegenError,
    ModelNotFound,
    NoRepository,
    NotPulling,
    WeightsHere,
)
from imagegen.core.events import EventBus, ModelPulling
from imagegen.hub.process import OnProgress
from imagegen.hub.protocol import Fetch, Fetched, Progress, Refused
from imagegen.hub.puller import ModelPuller, Pull, PullState
from imagegen.loaders import SPECS
from tests.conftest import fake_catalog

GATED = Refused(code=FailureCode.HUB_GATED, message="Accept the licence.", retry_after=7)


class Downloads:
    """Replaces the process: waits until the test sets how it ends."""

    def __init__(self) -> None:
        self.commands: list[Fetch] = []
        self.cancelled = 0
        self.tell: OnProgress = lambda progress: None
        self.end: asyncio.Future[Fetched | Refused] = asyncio.Future()
        self.begun = asyncio.Event()

    async def __call__(self, command: Fetch, on_progress: OnProgress) -> Fetched | Refused:
        self.commands.append(command)
        self.tell, self.end = on_progress, asyncio.Future()
        self.begun.set()
        try:
            return await self.end
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def begin(self) -> None:
        await self.begun.wait()
        self.begun.clear()


class House:
    """A puller of the models a, b (on the hub), here (in a folder) and none (no repository)."""

    def __init__(self, models_dir: Path) -> None:
        (models_dir / "folder").mkdir()
        models = {name: {"hf_path": f"org/{name}"} for name in "ab"}
        models["here"] = {"hf_path": "org/here", "local_path": "folder"}
        catalog = fake_catalog(**models, none={})
        self.bus = EventBus(first_id=1)
        self.downloads = Downloads()
        self.puller = ModelPuller(lambda: catalog, models_dir, self.bus, self.downloads)

    async def until(self, model: str, state: PullState) -> Pull:
        async for pull in self.puller.follow(model):
            if pull.state is state:
                return pull
        raise AssertionError


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    built = House(tmp_path)
    running = asyncio.create_task(built.puller.run())
    yield built
    running.cancel()
    await asyncio.wait([running])


async def test_a_cache_that_cannot_be_read_fails_the_pull_and_not_all_later_ones(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("imagegen.hub.puller.missing", refuse)
        house.puller.start("a")
        failed = await house.until("a", PullState.FAILED)
    assert failed.failure is not None
    assert failed.failure.code is FailureCode.PULL_CRASHED
    house.puller.start("b")
    await house.downloads.begin()


async def test_a_pull_reports_bytes_until_it_is_ready(house: House) -> None:
    with house.bus.subscribe() as events:
        assert house.puller.start("a").state is PullState.WAITING
        await house.downloads.begin()
        assert house.downloads.commands == [Fetch(files=(HubFiles(repo="org/a"),))]
        for done in (10, 11, 900):
            house.downloads.tell(Progress(bytes_done=done, bytes_total=1000))
        assert house.puller.pull("a") == Pull(model="a", state=PullState.DOWNLOADING, bytes_done=900, bytes_total=1000)
        house.downloads.end.set_result(Fetched())
        assert (await house.until("a", PullState.READY)).bytes_total == 1000
        house.bus.close()
        told = [each.event async for each in events]
    assert [(event.state, event.bytes_done) for event in told if isinstance(event, ModelPulling)] == [
        ("waiting", 0),
        ("downloading", 0),
        ("downloading", 10),
        ("downloading", 900),  # 11 of 1000 is still one percent
        ("ready", 900),
    ]


@pytest.mark.parametrize("precision", ["int4", "fp4"])
async def test_of_files_for_several_cards_the_one_for_this_card_is_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    entry = {"name": "A", "type": "nunchaku", "base_model": "builtin:tiny"}
    entry |= {"hf_path": "org/four", "weight_name": "svdq-{precision}.safetensors"}
    catalog, downloads = parse_catalog(json.dumps({"models": {"a": entry}}), SPECS), Downloads()
    puller = ModelPuller(lambda: catalog, tmp_path, EventBus(first_id=1), downloads, precision=lambda: precision)
    running = asyncio.create_task(puller.run())
    puller.start("a")
    await downloads.begin()
    assert downloads.commands == [Fetch(files=(HubFiles(repo="org/four", files=(f"svdq-{precision}.safetensors",)),))]
    running.cancel()
    await asyncio.wait([running])


async def test_a_pull_replaces_a_local_file_that_cannot_be_read_and_does_not_stop_the_pulls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "a" * 290 + ".gguf"  # longer than a file system allows
    entry = {"name": "A", "type": "gguf", "base_model": "builtin:tiny", "local_path": ".", "gguf_file": name}
    catalog = parse_catalog(json.dumps({"models": {"a": entry | {"hf_path": "org/a"}}}), SPECS)
    downloads = Downloads()
    puller = ModelPuller(lambda: catalog, tmp_path, EventBus(first_id=1), downloads)
    running = asyncio.create_task(puller.run())
    puller.start("a")
    begun = asyncio.create_task(downloads.begin())
    await asyncio.wait([running, begun], return_when=asyncio.FIRST_COMPLETED)
    assert downloads.commands == [Fetch(files=(HubFiles(repo="org/a", files=(name,)),))]
    running.cancel()
    await asyncio.wait([running])


async def test_a_refusal_is_kept_with_its_message(house: House) -> None:
    house.puller.start("a")
    await house.downloads.begin()
    house.downloads.end.set_result(GATED)
    pull = await house.until("a", PullState.FAILED)
    assert pull.failure is not None
    assert (pull.failure.code, pull.failure.message, pull.retry_after) == (GATED.code, GATED.message, 7)
    assert house.puller.start("a").failure is None  # and it may be tried again


async def test_one_model_at_a_time_and_asking_again_changes_nothing(house: House) -> None:
    house.puller.start("a")
    house.puller.start("b")
    await house.downloads.begin()
    assert house.puller.start("a").state is PullState.DOWNLOADING
    assert house.puller.start("b").state is PullState.WAITING
    house.downloads.end.set_result(Fetched())
    await house.downloads.begin()
    assert [command.files[0].repo for command in house.downloads.commands] == ["org/a", "org/b"]


async def test_cancelling_ends_the_process_and_starts_the_next_pull(house: House) -> None:
    house.puller.start("a")
    house.puller.start("b")
    await house.downloads.begin()
    cancelled = house.puller.cancel("a")
    assert cancelled.failure is not None
    assert cancelled.failure.code is FailureCode.PULL_CANCELLED
    await house.downloads.begin()
    assert house.downloads.cancelled == 1
    assert house.puller.pull("a") == cancelled
    with pytest.raises(NotPulling):
        house.puller.cancel("a")


async def test_one_that_waits_is_cancelled_before_it_begins(house: House) -> None:
    house.puller.start("a")
    house.puller.start("b")
    house.puller.cancel("b")
    await house.downloads.begin()
    house.downloads.end.set_result(Fetched())
    await house.until("a", PullState.READY)
    assert len(house.downloads.commands) == 1


async def test_one_that_is_started_again_while_it_is_being_cancelled_gets_a_new_turn(house: House) -> None:
    house.puller.start("a")
    await house.downloads.begin()
    house.puller.cancel("a")
    assert house.puller.start("a").state is PullState.WAITING
    await house.downloads.begin()
    house.downloads.end.set_result(Fetched())
    await house.until("a", PullState.READY)
    assert len(house.downloads.commands) == 2


async def test_news_of_a_cancelled_download_come_too_late(house: House) -> None:
    house.puller.start("a")
    await house.downloads.begin()
    house.downloads.end.set_result(Fetched())
    cancelled = house.puller.cancel("a")
    house.downloads.tell(Progress(bytes_done=1, bytes_total=1))
    house.puller.start("b")
    await house.downloads.begin()
    assert house.puller.pull("a") == cancelled


async def test_a_process_that_cannot_be_started_is_a_failure(house: House) -> None:
    house.puller.start("a")
    await house.downloads.begin()
    house.downloads.end.set_exception(OSError("no more processes"))
    pull = await house.until("a", PullState.FAILED)
    assert pull.failure is not None
    assert pull.failure.code is FailureCode.PULL_CRASHED


async def test_an_impossible_pull_is_refused(house: House) -> None:
    refused: list[tuple[str, type[ImagegenError]]]
    refused = [("here", WeightsHere), ("none", NoRepository), ("nothing", ModelNotFound)]
    for model, error in refused:
        with pytest.raises(error):
            house.puller.start(model)
    refused = [("a", NotPulling), ("nothing", ModelNotFound)]
    for model, error in refused:
        with pytest.raises(error):
            house.puller.cancel(model)
    assert house.puller.is_here("here")
    assert not house.puller.is_here("a")


async def test_a_drain_ends_followers_and_starts_no_pull(house: House) -> None:
    house.puller.start("a")
    await house.downloads.begin()
    states = [pull.state async for pull in _drained(house)]
    assert states == [PullState.DOWNLOADING]
    with pytest.raises(Draining):
        house.puller.start("b")


async def _drained(house: House) -> AsyncIterator[Pull]:
    async for pull in house.puller.follow("a"):
        yield pull
        house.puller.begin_drain()


async def test_the_end_of_the_service_ends_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    house = House(tmp_path)
    running = asyncio.create_task(house.puller.run())
    house.puller.start("a")
    await house.downloads.begin()
    running.cancel()
    await asyncio.wait([running])
    assert house.downloads.cancelled == 1


async def test_the_pull_of_a_removed_model_ends_with_the_reason(house: House) -> None:
    house.puller.removed("a")  # nothing is under way
    house.puller.start("a")
    await house.downloads.begin()
    house.puller.removed("a")
    pull = await house.until("a", PullState.CANCELLED)
    assert pull.failure is not None
    assert pull.failure.code is FailureCode.MODEL_REMOVED
