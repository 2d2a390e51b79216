"""Access: finds out on whose behalf a request is made, by its API key."""

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
from imagegen.core.keys import Key, KeyLimits, Left, digest_of
from imagegen.core.owner import ANYONE, Owner, owner_of
from imagegen.storage.budgets import Budgets, lefts
from imagegen.storage.keys import KeyStore

#: Seconds for which the latest use of a key is remembered before it is written again.
USED_EVERY_S = 60

#: A longer text is no key.
_MAX_TEXT = 200


class Access:
    """Reads the keys for each request, so that a change by any process is in force at once.

    Without a single key everybody is ANYONE. A key that was revoked counts: revoking the last one opens nothing.
    """

    def __init__(
        self,
        keys: KeyStore,
        filed: Sequence[Key] = (),
        budgets: Budgets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`filed`: the keys of IMAGEGEN_KEYS_FILE."""
        self._keys = keys
        self._filed = tuple(filed)
        self._budgets = budgets
        self._secret: bytes | None = None
        self._clock = clock
        self._rates = SlidingWindowCounterRateLimiter(MemoryStorage())
        #: When the latest use of each key was written. Names are bounded by the keys that there are.
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
            raise LimitReached(left=await self.rate_left(key.name, key.limits))

    async def rate_left(self, name: str, limits: KeyLimits) -> Left:
        """What is left of the rate of a key that has one. Raises ValueError if it has none."""
        if limits.rate_per_minute is None:
            raise ValueError("this key has no rate")
        rate = RateLimitItemPerMinute(limits.rate_per_minute)
        stats = await self._rates.get_window_stats(rate, name)
        reset_s = max(1, ceil(stats.reset_time - time.time()))
        return Left("rate", limits.rate_per_minute, stats.remaining, 60, reset_s)

    async def lefts(self, who: Owner) -> list[Left]:
        """What is left of each limit of the caller's key."""
        found: list[Left] = []
        if self._budgets is not None and who.name:
            found = lefts(who.limits, await self._budgets.used(who.name), self._budgets.now())
        rate = [await self.rate_left(who.name, who.limits)] if who.limits.rate_per_minute is not None else []
        return found + rate

    # -- signed URLs --------------------------------------------------------------------------------------------------

    async def sign(self, path: str, expires: int) -> str:
        """The token that opens `path` until `expires`, in seconds of Unix time."""
        return f"{expires}.{await self._signature(path, expires)}"

    async def opens(self, path: str, token: str) -> bool:
        """Whether the token opens this path now."""
        expires, _, signature = token.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 12 and signature.isascii()):
            return False
        right = hmac.compare_digest(signature, await self._signature(path, int(expires)))
        return right and time.time() < int(expires)

    async def _signature(self, path: str, expires: int) -> str:
        if self._secret is None:
            self._secret = await self._keys.url_secret()
        return hmac.digest(self._secret, f"{expires}:{path}".encode(), "sha256").hex()

    async def _note_use(self, key: Key) -> None:
        now = self._clock()
        if key in self._filed or now - self._written.get(key.name, float("-inf")) < USED_EVERY_S:
            return
        self._written[key.name] = now
        with suppress(StorageFull, StorageFailed):  # only a hint for people
            await self._keys.used(key.name, datetime.now(UTC))
