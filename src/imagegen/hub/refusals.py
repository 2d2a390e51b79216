"""Maps errors of the hub, the network and the disk to codes and messages for the caller."""

from collections.abc import Mapping

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from imagegen.core.errors import FailureCode, ImagegenError
from imagegen.hub.protocol import Refused
from imagegen.storage.files import DISK_FULL

#: The errors that `refused` maps.
EXPECTED = (httpx2.HTTPError, OSError, ValueError)


class Refusal(ImagegenError):
    """The files could not be downloaded."""

    def __init__(self, answer: Refused) -> None:
        super().__init__(answer.message)
        self.answer = answer


def refusal(code: FailureCode, message: str, retry_after: int | None = None) -> Refusal:
    return Refusal(Refused(code=code, message=message, retry_after=retry_after))


def refused(error: Exception, repo: str) -> Refusal:
    """The refusal for one of EXPECTED. It contains no URL and no header, which may hold secrets."""
    match error:
        case HfHubHTTPError():
            return _answered(error, repo)
        case OfflineModeIsEnabled():
            return refusal(FailureCode.HUB_UNREACHABLE, "HF_HUB_OFFLINE is set: nothing is fetched from the hub.")
        case httpx2.HTTPError():
            return refusal(FailureCode.HUB_UNREACHABLE, "The hub cannot be reached, or the connection to it broke.")
        case OSError():
            return disk_refused(error)
        case HFValidationError():
            return refusal(FailureCode.HUB_NOT_FOUND, f"'{repo}' is not a valid name of a repository on the hub.")
        case _:
            return refusal(FailureCode.HUB_UNREACHABLE, "The server that answers at the hub's address is not the hub.")


def _answered(error: HfHubHTTPError, repo: str) -> Refusal:
    match error:
        case GatedRepoError():
            return refusal(FailureCode.HUB_GATED, _gated(repo))
        case RepositoryNotFoundError():
            return refusal(FailureCode.HUB_NOT_FOUND, _not_found(repo))
        case RevisionNotFoundError():
            return refusal(FailureCode.HUB_NOT_FOUND, f"'{repo}' has no such revision on the hub.")
        case RemoteEntryNotFoundError():
            return refusal(FailureCode.HUB_NOT_FOUND, f"A file of '{repo}' is no longer on the hub.")
        case _:
            return _by_status(error.response.status_code, error.response.headers, repo)


def disk_refused(error: OSError) -> Refusal:
    if error.errno in DISK_FULL:
        return refusal(
            FailureCode.STORAGE_FULL, "The disk with the hub's cache is full. The bytes that arrived are kept."
        )
    return refusal(FailureCode.STORAGE_FAILED, f"The hub's cache cannot be written to: {error.strerror}.")


def _by_status(status: int, headers: Mapping[str, str], repo: str) -> Refusal:
    if status == 401:
        return refusal(FailureCode.HUB_UNAUTHORIZED, _unauthorized(repo))
    if status == 403:
        return refusal(
            FailureCode.HUB_UNAUTHORIZED, f"The hub refuses access: the token in HF_TOKEN may not read '{repo}'."
        )
    if status == 404:
        return refusal(FailureCode.HUB_NOT_FOUND, _not_found(repo))
    if status == 429:
        return rate_limited(retry_after(headers))
    return refusal(FailureCode.HUB_UNREACHABLE, f"The hub answers with status {status}; try again later.")


def _gated(repo: str) -> str:
    which = "HF_TOKEN must belong to that account" if get_token() else "set HF_TOKEN to a token of that account"
    return f"'{repo}' is gated: accept its licence on the hub with your account; {which}."


def _unauthorized(repo: str) -> str:
    if get_token():
        return f"The hub does not accept the token: set HF_TOKEN to a valid one that may read '{repo}'."
    return f"The hub requires a token for '{repo}': set HF_TOKEN."


def _not_found(repo: str) -> str:
    also = "the token in HF_TOKEN may not see it" if get_token() else "it is private and HF_TOKEN is not set"
    return f"There is no repository '{repo}' on the hub, or {also}."


def rate_limited(seconds: int | None) -> Refusal:
    when = "in a few minutes" if seconds is None else f"in {seconds} seconds"
    hint = "" if get_token() else " With HF_TOKEN the limits are higher."
    message = f"The hub limits requests: try again {when}.{hint}"
    return refusal(FailureCode.HUB_RATE_LIMITED, message, seconds)


def retry_after(headers: Mapping[str, str]) -> int | None:
    """The seconds that the hub asks to wait; None: unknown."""
    limits = parse_ratelimit_headers(headers)
    if limits is not None and limits.remaining == 0:
        return int(limits.reset_in_seconds)
    seconds = headers.get("retry-after", "").strip()
    return int(seconds) if seconds.isdigit() else None
