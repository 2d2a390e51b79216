"""ModelPuller: the only writer of pulls. One runs at a time; the others wait in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import structlog

from imagegen.catalog.catalog import Catalog, ModelSpec
from imagegen.catalog.sources import missing, weights_here
from imagegen.core.errors import Draining, FailureCode, NoRepository, NotPulling, WeightsHere
from imagegen.core.events import EventBus, ModelPulling
from imagegen.core.task import Failure
from imagegen.core.value import Value
from imagegen.hub.process import Fetcher, fetch_in_process
from imagegen.hub.protocol import Fetch, Fetched, Progress, Refused

log = structlog.get_logger(__name__)

_CANCELLED = Failure(
    code=FailureCode.PULL_CANCELLED,
    message="The pull of the model's weights was cancelled. The bytes that arrived are kept.",
)

_REMOVED = Failure(code=FailureCode.MODEL_REMOVED, message="The model is no longer configured.")


class PullState(StrEnum):
    """The state of a pull."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Pull(Value):
    """The download of one model's weights from the hub."""

    model: str
    state: PullState = PullState.WAITING
    #: Bytes on disk, of all that the model needs.
    bytes_done: int = 0
    #: Bytes that the model needs; None until the hub reports it.
    bytes_total: int | None = None
    #: Why it failed or was cancelled.
    failure: Failure | None = None
    #: Whole seconds until a retry makes sense, if the hub said so.
    retry_after: int | None = None

    @property
    def ended(self) -> bool:
        return self.state not in (PullState.WAITING, PullState.DOWNLOADING)

    @property
    def percent(self) -> int | None:
        """Whole percent on disk; None while the total is unknown."""
        return 100 * self.bytes_done // self.bytes_total if self.bytes_total else None


class ModelPuller:
    """Owns `_pulls`, the latest pull of each model, and the download process. Event loop only."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        models_dir: Path,
        bus: EventBus,
        fetch: Fetcher = fetch_in_process,
        precision: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`precision`: the precision that the card needs, `int4` or `fp4`; None: unknown."""
        self._catalog = catalog
        self._models_dir = models_dir
        self._bus = bus
        self._fetch = fetch
        self._precision = precision
        self._pulls: dict[str, Pull] = {}
        #: The models to pull, in order. One whose pull was cancelled meanwhile is skipped.
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        #: The running pull, and its model.
        self._running: tuple[str, asyncio.Future[Fetched | Refused]] | None = None
        #: Set and replaced when a model's pull changes.
        self._news: dict[str, asyncio.Event] = {}
        self._draining = False

    def __repr__(self) -> str:
        state = "DRAINING" if self._draining else "OPEN"
        pulling = self._running[0] if self._running else None
        return f"<ModelPuller [{state}, Pulling: {pulling}, Waiting: {self._queue.qsize()}, Known: {len(self._pulls)}]>"

    # -- reads --------------------------------------------------------------------------------------------------------

    def pull(self, model: str) -> Pull | None:
        """The latest pull of a model; None: no pull since the service started."""
        return self._pulls.get(model)

    def is_here(self, model: str) -> bool:
        """Whether the model can be loaded without a pull. Reads the disk. Raises ModelNotFound."""
        return self.has(self._catalog().model(model))

    def has(self, spec: ModelSpec) -> bool:
        """Like is_here(), for an entry instead of an id."""
        return weights_here(spec, self._models_dir, self._precision())

    async def follow(self, model: str) -> AsyncIterator[Pull]:
        """Yield the pull now and at each change, until it ends or the service stops. A slow reader skips changes."""
        while not self._draining and model in self._pulls:
            news = self._news.setdefault(model, asyncio.Event())
            yield self._pulls[model]
            if self._pulls[model].ended and not news.is_set():
                return
            await news.wait()

    # -- changes ------------------------------------------------------------------------------------------------------

    def start(self, model: str) -> Pull:
        """Queue a pull of a model's weights. Raises ModelNotFound, NoRepository, WeightsHere or Draining."""
        spec = self._catalog().model(model)
        if self._draining:
            raise Draining
        known = self._pulls.get(model)
        if known is not None and not known.ended:
            return known
        if not spec.hub_files():
            raise NoRepository
        if self.is_here(model):
            raise WeightsHere
        self._queue.put_nowait(model)
        return self._set(Pull(model=model))

    def cancel(self, model: str) -> Pull:
        """Cancel a pull; the bytes that arrived are kept. Raises ModelNotFound or NotPulling."""
        self._catalog().model(model)
        return self._cancel(model, _CANCELLED)

    def removed(self, model: str) -> None:
        """Cancel the pull of a model that is no longer configured."""
        with suppress(NotPulling):
            self._cancel(model, _REMOVED)

    def _cancel(self, model: str, failure: Failure) -> Pull:
        pull = self._pulls.get(model)
        if pull is None or pull.ended:
            raise NotPulling
        if self._running is not None and self._running[0] == model:
            self._running[1].cancel()
        return self._set(pull.evolve(state=PullState.CANCELLED, failure=failure))

    def _set(self, pull: Pull) -> Pull:
        known = self._pulls.get(pull.model)
        self._pulls[pull.model] = pull
        if news := self._news.pop(pull.model, None):
            news.set()
        if known is None or (known.state, known.percent) != (pull.state, pull.percent):
            self._bus.publish(ModelPulling(**pull.model_dump(exclude={"retry_after"})))
        if known is None or known.state != pull.state:
            code = pull.failure.code if pull.failure else None
            log.info("model_pull", model=pull.model, state=pull.state, bytes=pull.bytes_total, code=code)
        return pull

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the pulls one after the other, without end."""
        while True:
            model = await self._queue.get()
            if self._pulls[model].state is PullState.WAITING:
                await self._run_pull(model)

    async def _run_pull(self, model: str) -> None:
        spec = self._catalog().models.get(model)
        if spec is None:
            self._set(self._pulls[model].evolve(state=PullState.FAILED, failure=_REMOVED))
            return
        self._set(self._pulls[model].evolve(state=PullState.DOWNLOADING))
        try:
            command = Fetch(files=missing(spec, self._models_dir, self._precision()))
        except OSError as error:  # a folder of the cache that this user may not enter
            log.warning("pull_not_started", model=model, reason=str(error))
            self._failed(model, Refused(code=FailureCode.PULL_CRASHED, message="The hub's cache cannot be read."))
            return
        downloading = asyncio.ensure_future(self._fetch(command, lambda progress: self._progressed(model, progress)))
        self._running = model, downloading
        try:
            await asyncio.wait([downloading])
        finally:
            self._running = None
            downloading.cancel()
            await asyncio.wait([downloading])
        if not downloading.cancelled():
            self._ended(model, downloading)

    def _progressed(self, model: str, progress: Progress) -> None:
        if self._pulls[model].state is PullState.DOWNLOADING:
            self._set(self._pulls[model].evolve(**progress.model_dump(exclude={"kind"})))

    def _ended(self, model: str, downloading: asyncio.Future[Fetched | Refused]) -> None:
        if self._pulls[model].state is not PullState.DOWNLOADING:
            return  # cancelled just before it ended
        try:
            answer = downloading.result()
        except OSError as error:  # the process could not be started
            log.warning("pull_not_started", model=model, reason=str(error))
            answer = Refused(code=FailureCode.PULL_CRASHED, message="The download process could not be started.")
        if isinstance(answer, Refused):
            self._failed(model, answer)
        else:
            self._set(self._pulls[model].evolve(state=PullState.READY))

    def _failed(self, model: str, refused: Refused) -> None:
        failure = Failure(code=refused.code, message=refused.message)
        changes = {"state": PullState.FAILED, "failure": failure, "retry_after": refused.retry_after}
        self._set(self._pulls[model].evolve(**changes))

    def begin_drain(self) -> None:
        """Start no more pulls and end all followers. The running pull ends with `run`."""
        self._draining = True
        for news in self._news.values():
            news.set()
