"""WebhookSender: sends the deliveries of the outbox; the only writer of their states."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from pydantic import SecretStr

from imagegen.core.errors import DeliveryNotFound, Forbidden, StorageFailed, StorageFull, WebhooksOff
from imagegen.core.owner import ANYONE, Owner
from imagegen.core.webhooks import Delivery, DeliveryState, Webhook, WebhookEvent
from imagegen.storage.outbox import CHUNK, DeliveryFilter, Outbox
from imagegen.webhooks.client import Answer
from imagegen.webhooks.schedule import retry_after_s, retry_in_s
from imagegen.webhooks.signing import Signer
from imagegen.webhooks.turns import Turn, Turns

log = structlog.get_logger(__name__)

#: After a restart, pending deliveries are spread over this many seconds for each of them, at most a minute in all.
_RESUME_S = 0.05
_RESUME_ALL_S = 60.0

#: Seconds until a write that the disk refused is retried.
_DISK_S = 10.0


class Client(Protocol):
    """Sends webhooks. GuardedClient implements it."""

    def check(self, url: str) -> None:
        """Raises UrlNotAllowed."""

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Make one attempt. Raises nothing."""
        ...


class WebhookSender:
    """Owns `_turns`: the pending deliveries and their next attempts. State and attempts are durable, times are not.

    So a jump of the clock changes nothing, and after a restart all pending deliveries are retried soon.
    """

    def __init__(
        self,
        outbox: Outbox,
        client: Client,
        signer: Signer | None,
        delays_s: Sequence[float],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        secret_of: Callable[[str], Awaitable[str | None]] | None = None,
    ) -> None:
        """Without a signer, webhooks are off. `delays_s`: the seconds between the attempts of a delivery.

        `chance`: a random number from 0 to 1. `secret_of`: the secret of an owner, which replaces those of the signer.
        """
        self._outbox = outbox
        self._client = client
        self._signer = signer
        self._delays_s = delays_s
        self._clock = clock
        self._chance = chance
        self._secret_of = secret_of
        self._turns = Turns()
        #: Set when there may be work.
        self._wake = asyncio.Event()
        #: Whether there may be deliveries that `_turns` does not know: with a sequence above `_seen`.
        self._news = True
        self._seen = 0
        self._resumed = False
        outbox.on_new(self._look_soon)

    def __repr__(self) -> str:
        return f"<WebhookSender [{'ON' if self._signer else 'OFF'}, Pending: {self._turns.pending}]>"

    @property
    def pending(self) -> int:
        """The deliveries that wait for an attempt, or for its end."""
        return self._turns.pending

    @property
    def on(self) -> bool:
        """Whether tasks may have webhooks."""
        return self._signer is not None

    # -- for the API --------------------------------------------------------------------------------------------------

    def accept(self, url: str, events: Sequence[WebhookEvent]) -> Webhook:
        """Check a receiver. Raises WebhooksOff or UrlNotAllowed."""
        if self._signer is None:
            raise WebhooksOff
        self._client.check(url)
        return Webhook(url=url, events=tuple(dict.fromkeys(events)))

    async def get(self, delivery_id: str, who: Owner = ANYONE) -> Delivery:
        """A delivery. Raises DeliveryNotFound, also if the caller may not see it."""
        delivery = await self._outbox.get(delivery_id)
        if delivery is None or not who.may_see(delivery.owner):
            raise DeliveryNotFound
        return delivery

    async def page(self, wanted: DeliveryFilter, limit: int, before: int | None = None) -> tuple[list[Delivery], bool]:
        """A page of deliveries, newest first, and whether there are more."""
        return await self._outbox.page(wanted, limit, before)

    def next_attempt_at(self, delivery: Delivery) -> datetime | None:
        """When the next attempt is due; None: there is none, or it runs."""
        due = self._turns.due(delivery.id)
        if due is None or delivery.state is not DeliveryState.PENDING:
            return None
        return datetime.now(UTC) + timedelta(seconds=max(0.0, due - self._clock()))

    async def replay(self, delivery_id: str, who: Owner = ANYONE) -> Delivery:
        """Send a delivery again, with the same id. Its attempts are counted from zero.

        Raises WebhooksOff, DeliveryNotFound, or Forbidden if the caller may only see it.
        """
        if self._signer is None:
            raise WebhooksOff
        if not who.may_change((await self.get(delivery_id, who)).owner):
            raise Forbidden("Only the key of its task, or one with the scope admin, may resend this delivery.")
        delivery = await self._outbox.redeliver(delivery_id)
        if delivery is None:
            raise DeliveryNotFound
        if not self._turns.hasten(delivery_id, self._clock()):
            self._turns.add(_turn(delivery), self._clock())
        self._wake.set()
        return delivery

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send due deliveries, without end. When cancelled, running attempts stay pending."""
        if self._signer is None:
            return
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._wake.clear()
                await self._look()
                for turn in self._turns.take(self._clock()):
                    attempts.create_task(self._attempt(turn, self._signer))
                await self._rest()

    def _look_soon(self) -> None:
        self._news = True
        self._wake.set()

    async def _rest(self) -> None:
        due = self._turns.next_due()
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        """Read new deliveries from the outbox, in order of creation."""
        try:
            while self._news:
                self._news = False
                found = await self._outbox.pending(self._seen)
                self._learn(found)
                self._news = self._news or len(found) == CHUNK
            self._resumed = True
        except (StorageFull, StorageFailed) as error:
            log.error("outbox_failed", code=error.code)
            asyncio.get_running_loop().call_later(_DISK_S, self._look_soon)

    def _learn(self, found: Sequence[Delivery]) -> None:
        spread_s = 0.0 if self._resumed else min(_RESUME_ALL_S, _RESUME_S * len(found))
        for delivery in found:
            self._seen = delivery.sequence
            early = not self._resumed and delivery.attempts > 0
            self._turns.add(_turn(delivery, early=early), self._clock() + spread_s * self._chance())

    async def _attempt(self, turn: Turn, signer: Signer) -> None:
        try:
            delivery = await self._outbox.get(turn.id)
            if delivery is None or delivery.state is not DeliveryState.PENDING:
                self._turns.done(turn)
            else:
                answer = await self._post(delivery, signer)
                self._turns.heard(turn, self._clock(), answered=answer.status != 0)
                await self._settle(turn, delivery, answer)
        except (StorageFull, StorageFailed) as error:
            # It may have arrived, and is then sent twice: delivery is "at least once".
            log.error("delivery_not_recorded", delivery_id=turn.id, code=error.code)
            self._turns.again(turn, self._clock() + _DISK_S)
        self._wake.set()

    async def _post(self, delivery: Delivery, signer: Signer) -> Answer:
        own = await self._secret_of(delivery.owner) if self._secret_of is not None else None
        if own is not None:
            signer = Signer([SecretStr(own)])
        headers = signer.headers(delivery.id, datetime.now(UTC), delivery.payload)
        return await self._client.post(delivery.url, delivery.payload, headers)

    async def _settle(self, turn: Turn, delivery: Delivery, answer: Answer) -> None:
        now = datetime.now(UTC)
        delivery = delivery.evolve(attempted_at=now, error=answer.problem)
        if answer.arrived:
            arrived = delivery.evolve(state=DeliveryState.DELIVERED, attempts=turn.attempts + 1)
            await self._outbox.delivered(arrived)
            self._turns.done(turn)
            return
        turn.attempts, turn.early = turn.attempts + (not turn.early), False
        wanted_s = retry_after_s(answer.retry_after, now)
        retry_s = retry_in_s(turn.attempts, self._delays_s, self._chance(), wanted_s)
        await self._failed(turn, delivery.evolve(attempts=turn.attempts), None if answer.gone else retry_s, answer)

    async def _failed(self, turn: Turn, delivery: Delivery, retry_s: float | None, answer: Answer) -> None:
        if retry_s is None:
            dead = delivery.evolve(state=DeliveryState.DEAD)
            self._turns.drop(await self._outbox.failed(dead, gone=answer.gone))
            self._turns.done(turn)
        else:
            await self._outbox.failed(delivery)
            self._turns.again(turn, self._clock() + retry_s)
            log.info(
                "delivery_failed",
                error=delivery.error,
                delivery_id=delivery.id,
                task_id=delivery.task_id,
                host=turn.host,
                attempts=delivery.attempts,
                retry_in_s=round(retry_s, 1),
            )


def _turn(delivery: Delivery, *, early: bool = False) -> Turn:
    return Turn(delivery.id, delivery.task_id, delivery.host, delivery.attempts, early)
