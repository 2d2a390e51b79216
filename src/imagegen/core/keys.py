"""API keys as values: their scopes, their limits, and the text that a caller sends."""

import base64
import secrets
import string
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, AwareDatetime, Field

from imagegen.core.value import Value
from imagegen.core.wording import Form

_ALPHABET = string.ascii_letters + string.digits

#: Random characters of a key: 62^43 is more than 2^256.
_LENGTH = 43

#: Characters of a key that may be shown: `ig_` and 8 of the random ones. The others hold 208 bits.
_SHOWN = 11

#: Every key begins with this, so that scanners for secrets find it.
MARK = "ig_"


def _not_reserved(name: str) -> str:
    if name == "me":
        raise ValueError("'me' is taken: GET /keys/me shows the caller's own key")
    return name


KeyName = Annotated[
    str,
    Field(max_length=64),
    Form(
        "[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "must be 1 to 64 letters, digits, '.', '_' and '-', the first one a letter or a digit",
    ),
    AfterValidator(_not_reserved),
]


class Scope(StrEnum):
    """What a key may be used for."""

    #: Submit tasks; see and cancel one's own.
    GENERATE = "generate"
    #: See the tasks of all keys.
    READ = "read"
    #: All that the service can do: models, configuration, keys, the tasks of all keys.
    ADMIN = "admin"


class KeyLimits(Value):
    """What a key may use; None: no limit."""

    #: Tasks that wait.
    queued: int | None = Field(default=None, ge=1, le=1_000_000)
    #: Pictures in a day (UTC).
    images_per_day: int | None = Field(default=None, ge=1, le=1_000_000_000)
    #: Seconds of the device in a day (UTC).
    device_seconds_per_day: float | None = Field(default=None, gt=0, le=1_000_000_000, allow_inf_nan=False)
    #: Requests in a minute.
    rate_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)


class LimitState(NamedTuple):
    """One limit of a key, and how much of it remains."""

    #: `queued`, `images`, `device-seconds` or `rate`.
    name: str
    quota: float
    remaining: float
    #: The length of the window that the quota counts in, in seconds; None: the limit has no window.
    window_s: int | None = None
    #: Seconds until more remains; None: unknown.
    reset_s: int | None = None


class Key(Value):
    """An API key without its text, which only the caller has."""

    #: The owner of the tasks that are submitted with it.
    name: KeyName
    #: The beginning of the text, by which people recognise the key.
    prefix: str = Field(max_length=16)
    #: SHA-256 of the text, hexadecimal.
    sha256: str = Field(pattern="^[0-9a-f]{64}$", repr=False)
    scopes: tuple[Scope, ...] = Field(min_length=1, max_length=3)
    #: The ids of the models that it may use; empty: all.
    models: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field((), max_length=1000)
    #: The lowest priority number that its tasks may have; lower numbers run first.
    priority_floor: int | None = Field(None, ge=-1000, le=1000)
    limits: KeyLimits = KeyLimits()
    #: `whsec_...`: signs the webhooks of its tasks. None: the secrets of the service sign them.
    webhook_secret: str | None = Field(None, max_length=200, repr=False)
    created_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    #: Exact to a minute.
    last_used_at: AwareDatetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key_text() -> str:
    """The text of a new key: `ig_` and 256 random bits."""
    return MARK + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def new_webhook_secret() -> str:
    """A secret in the form of Standard Webhooks: `whsec_` and 256 random bits in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def prefix_of(text: str) -> str:
    """The part of a key's text that may be shown."""
    return text[:_SHOWN]


def digest_of(text: str) -> str:
    """SHA-256 of a key's text, hexadecimal. The text is random, so no slow hash is needed."""
    return sha256(text.encode()).hexdigest()


def new_key(
    name: str,
    scopes: tuple[Scope, ...],
    *,
    models: tuple[str, ...] = (),
    priority_floor: int | None = None,
    limits: KeyLimits | None = None,
    expires_at: datetime | None = None,
    webhook_secret: str | None = None,
) -> tuple[Key, str]:
    """A new key and its text, which cannot be computed from the key. Raises ValidationError."""
    text = new_key_text()
    key = Key(
        name=name,
        prefix=prefix_of(text),
        sha256=digest_of(text),
        scopes=scopes,
        models=models,
        priority_floor=priority_floor,
        limits=limits or KeyLimits(),
        created_at=datetime.now(UTC),
        expires_at=expires_at,
        webhook_secret=webhook_secret,
    )
    return key, text
