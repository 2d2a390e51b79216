"""When a delivery is retried. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: The longest Retry-After that is obeyed, in seconds.
MAX_RETRY_AFTER_S = 86_400

#: The share of a delay by which a retry is moved at random, so that the retries after an outage spread.
SPREAD = 0.1


def retry_in_s(attempts: int, delays_s: Sequence[float], chance: float, retry_after_s: float = 0) -> float | None:
    """Seconds until the next attempt, after `attempts` of them; None: that was the last one. `chance` is 0 to 1."""
    if attempts > len(delays_s):
        return None
    delay_s = delays_s[attempts - 1] * (1 - SPREAD + 2 * SPREAD * chance)
    return max(delay_s, min(retry_after_s, MAX_RETRY_AFTER_S))


def retry_after_s(header: str | None, now: datetime) -> float:
    """The seconds of a Retry-After header, which holds seconds or a date; 0 if it cannot be parsed."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text)
        return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
