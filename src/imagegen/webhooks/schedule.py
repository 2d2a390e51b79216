"""Pure: when a delivery is tried again."""

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: No receiver can put us off for longer, in seconds.
MAX_RETRY_AFTER_S = 86_400

#: Retries come this much earlier or later, so that those of one outage spread.
SPREAD = 0.1


def retry_in_s(attempts: int, delays_s: Sequence[float], chance: float, retry_after_s: float = 0) -> float | None:
    """Seconds until the next attempt, after so many that failed; None: there is none. `chance` is 0 to 1."""
    if attempts > len(delays_s):
        return None
    delay_s = delays_s[attempts - 1] * (1 - SPREAD + 2 * SPREAD * chance)
    return max(delay_s, min(retry_after_s, MAX_RETRY_AFTER_S))


def retry_after_s(header: str | None, now: datetime) -> float:
    """What a Retry-After says: seconds, or a date. 0 if it says nothing that can be read."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text)
        return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
