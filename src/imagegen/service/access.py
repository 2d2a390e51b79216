"""Access: finds the caller of a request by its API key."""

import hmac
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from math import ceil

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from imagegen.core.errors import LimitReached, StorageFailed, StorageFull, Unauthorized
from imagegen.core.events import EventBus, StreamEnd
from imagegen.core.keys import Key, LimitState, digest_of
from imagegen.core.owner import ANYONE, Owner, owner_of
from imagegen.storage.budgets import Budgets, limit_states
from imagegen.storage.keys import KeyStore

#: Seconds after which the latest use of a key is written again.
USED_EVERY_S = 60

#: A longer text is never a key.
_MAX_TEXT = 200


class Access:
    """Reads the keys for each request, so that a change by any process is in force at once.

    If no key exists, every caller is ANYONE. Revoked keys count: revoking the last key does not open the service.
    """

    def __init__(
        self,
        keys: KeyStore,
        filed: Sequence[Key] = (),
        budgets: Budgets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`filed`: the keys of IMAGEGEN_KEYS_FILE. No other key may have their names."""
        self._keys = keys
        self._filed = tuple(filed)
        keys.reserved = frozenset(key.name for key in filed)
        self._budgets = budgets
        self._secret: bytes | None = None
        self._clock = clock
        self._rates = SlidingWindowCounterRateLimiter(MemoryStorage())
        #: When the latest use of each key was written, by name: one entry a key.
        self._written: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Access [Keys in the file: {len(self._filed)}]>"

    async def closed(self) -> bool:
        """Whether requests need a key."""
        return bool(self._filed) or await self._keys.exist()

    async def owner(self, text: str | None) -> Owner:
        """The caller whose key has this text; None: the request has none. Raises Unauthorized."""
        key = await self._find(text) if text else None
        if key is None and not await self.closed():
            return ANYONE
        if key is None or not key.is_valid(datetime.now(UTC)):
            raise Unauthorized
        await self._check_rate(key)
        await self._note_use(key)
        return owner_of(key)

    async def end_streams(self, bus: EventBus) -> None:
        """End the streams of those whose key is no longer valid, and of those without a key once a key is required."""
        for who in bus.callers:
            if (reason := await self._why_not(who)) is not None:
                bus.end(who, reason)

    async def _why_not(self, who: Owner) -> StreamEnd | None:
        if not who.key_sha256:
            return "key_required" if await self.closed() else None
        filed = next((key for key in self._filed if key.sha256 == who.key_sha256), None)
        key = filed or await self._keys.named(who.name)
        if key is None or key.sha256 != who.key_sha256 or key.revoked_at is not None:
            return "key_revoked"
        return None if key.is_valid(datetime.now(UTC)) else "key_expired"

    async def _find(self, text: str) -> Key | None:
        if len(text) > _MAX_TEXT:
            return None
        digest = digest_of(text)
        for key in self._filed:
            if hmac.compare_digest(key.sha256, digest):
                return key
        return await self._keys.find(text)

    async def _check_rate(self, key: Key) -> None:
        if (per_minute := key.limits.rate_per_minute) is None:
            return
        rate = RateLimitItemPerMinute(per_minute)
        if not await self._rates.hit(rate, key.name):
            raise LimitReached(limit=await self._rate_state(key.name, per_minute))

    async def _rate_state(self, name: str, per_minute: int) -> LimitState:
        stats = await self._rates.get_window_stats(RateLimitItemPerMinute(per_minute), name)
        reset_s = max(1, ceil(stats.reset_time - time.time()))
        return LimitState("rate", per_minute, stats.remaining, 60, reset_s)

    async def limit_states(self, who: Owner) -> list[LimitState]:
        """Each limit of the caller's key, and how much of it remains."""
        states: list[LimitState] = []
        if self._budgets is not None and who.name:
            states = limit_states(who.limits, await self._budgets.used(who.name), self._budgets.now())
        if (per_minute := who.limits.rate_per_minute) is not None:
            states.append(await self._rate_state(who.name, per_minute))
        return states

    # -- signed URLs --------------------------------------------------------------------------------------------------

    async def sign(self, path: str, expires: int) -> str:
        """The token that gives access to `path` until `expires`, in seconds of Unix time."""
        return f"{expires}.{await self._signature(path, expires)}"

    async def opens(self, path: str, token: str) -> bool:
        """Whether the token gives access to this path now."""
        expires, _, signature = token.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 12 and signature.isascii()):
            return False
        right = hmac.compare_digest(signature, await self._signature(path, int(expires)))
        return right and time.time() < int(expires)

    async def _signature(self, path: str, expires: int) -> str:
        if self._secret is None:
            self._secret = await self._keys.url_secret()
        return hmac.digest(self._secret, f"{expires}:{path}".encode(), "sha256").hex()

    # -- webhooks -----------------------------------------------------------------------------------------------------

    async def webhook_secret(self, name: str) -> str | None:
        """The secret that signs the webhooks of this owner's tasks; None: it has none of its own."""
        filed = next((key for key in self._filed if key.name == name), None)
        return await self._keys.webhook_secret(name) if filed is None else filed.webhook_secret

    async def _note_use(self, key: Key) -> None:
        now = self._clock()
        if key in self._filed or now - self._written.get(key.name, float("-inf")) < USED_EVERY_S:
            return
        self._written[key.name] = now
        with suppress(StorageFull, StorageFailed):  # only shown to people, so its loss does not matter
            await self._keys.used(key.name, datetime.now(UTC))
