"""S3: whole objects below one prefix of a bucket. Credentials, region and endpoint come from the AWS_* variables."""

import os
import re
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from imagegen.core.errors import ImageNotFound, StoreMisconfigured, StoreUnreachable
from imagegen.storage.folder import PIECE

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, RetryConfig

log = structlog.get_logger(__name__)

#: Timeouts in seconds: to connect, and for one request. A request of 30 s is 30 MB at 8 Mbit/s.
CONNECT_S, REQUEST_S = 3, 30

#: The number of retries of a request, and the seconds after which it is not retried any more.
RETRIES, RETRY_S = 3, 20

#: An object never changes, because every name is used only once.
CACHE_CONTROL = "public, max-age=31536000, immutable"

#: The error code in the store's answer. The rest of the answer may contain names and keys.
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


class S3:
    """A FileStore in a bucket. Its errors contain only the codes of the store's error messages."""

    def __init__(self, address: str, url_s: float = 3600) -> None:
        """`address`: `s3://bucket/prefix`. `url_s`: seconds for which a presigned URL is valid."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self._url_life = timedelta(seconds=url_s)
        try:
            self._store = S3Store(
                bucket, prefix=prefix.strip("/") or None, client_options=_client(), retry_config=_retries()
            )
        except (BaseError, ValueError) as error:
            detail = f"The settings of the store of pictures cannot be used ({_words(error)}); see the AWS_* variables."
            raise StoreMisconfigured(detail) from None

    async def put(self, name: str, data: bytes, media_type: str) -> None:
        file = name.rpartition("/")[2]
        with _refusals("put"):
            await obstore.put_async(
                self._store,
                name,
                data,
                attributes={
                    "Content-Type": media_type,
                    "Cache-Control": CACHE_CONTROL,
                    "Content-Disposition": f'inline; filename="{file}"',
                },
                # A single request, because an aborted multipart upload would leave its parts in the bucket.
                use_multipart=False,
            )

    async def pieces(self, name: str, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        if start == stop:
            return
        with _refusals("get"):
            found = await obstore.get_async(self._store, name, options={"range": (start, stop)})
            async for piece in found.stream(min_chunk_size=PIECE):
                yield bytes(piece)

    async def size(self, name: str) -> int:
        with _refusals("head"):
            return (await obstore.head_async(self._store, name))["size"]

    async def delete(self, names: Collection[str]) -> None:
        if names:
            with _refusals("delete"):
                await obstore.delete_async(self._store, list(names))

    async def url(self, name: str, method: Literal["GET", "HEAD"]) -> str | None:
        with _refusals("sign"):
            return await obstore.sign_async(self._store, method, name, self._url_life)


def _client() -> "ClientConfig":
    connect, request = timedelta(seconds=CONNECT_S), timedelta(seconds=REQUEST_S)
    # Plain HTTP is allowed only if the operator configured an http endpoint.
    return {"allow_http": _endpoint().startswith("http://"), "connect_timeout": connect, "timeout": request}


def _retries() -> "RetryConfig":
    first, longest = timedelta(milliseconds=100), timedelta(seconds=2)
    pauses: BackoffConfig = {"init_backoff": first, "max_backoff": longest, "base": 2}
    return {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S), "backoff": pauses}


def _endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "").lower()


@contextmanager
def _refusals(operation: str) -> Iterator[None]:
    """Raises ImageNotFound or StoreUnreachable for the store's errors, without their messages."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        reason = _reason(error)
        if isinstance(error, FileNotFoundError) and operation != "put" and reason != "NoSuchBucket":
            raise ImageNotFound from None
    else:
        return
    log.warning("store_refused", operation=operation, reason=reason)
    raise StoreUnreachable(f"The store of pictures cannot be reached, or refuses ({reason}).") from None


def _words(error: Exception) -> str:
    """What is wrong with the settings: the first line of the message, which contains names and no secrets."""
    return str(error).partition("\n")[0]


def _reason(error: Exception) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else type(error).__name__
