"""The headers of answers, as the OpenAPI document describes them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from imagegen.api.request_ids import HEADER as REQUEST_ID

#: Header -> its description and an example.
_DESCRIBED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        REQUEST_ID: (
            "The id of the request in the log: the caller's own, or a new one.",
            "0f4f5a0b-0d0f-4f9b-9c1e-7a1f2f6b8c11",
        ),
        "Location": ("The path of what was made.", "/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"),
        "Content-Location": ("The path of what the body shows.", "/task/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11"),
        "Retry-After": ("Seconds after which it makes sense to ask again.", "1"),
        "Preference-Applied": ("`wait=N`: the service waited, or would have waited, N seconds (RFC 7240).", "wait=20"),
        "Idempotency-Replayed": ("`true`: an earlier request with the same Idempotency-Key made this task.", "true"),
        "ETag": ("The version of what the body shows; for `If-Match` and `If-None-Match`.", '"5f0c2d41a97e8b36"'),
        "Link": ('The next page (RFC 8288, rel="next"), if there is one.', '</tasks?limit=50&cursor=4711>; rel="next"'),
        "Accept-Ranges": ("`bytes`: `Range` is supported.", "bytes"),
        "Content-Range": ("The bytes that the body has, and those that there are.", "bytes 0-99/51600"),
        "Content-Disposition": ("A name for the file.", 'inline; filename="picture.png"'),
        "Repr-Digest": (
            "SHA-256 of the whole file (RFC 9530).",
            "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
        ),
        "WWW-Authenticate": ("How to send a key.", "Bearer"),
        "RateLimit-Policy": ("The limit that is reached.", '"images";q=100;w=86400'),
        "RateLimit": ("What is left of it, and when there is more.", '"images";r=0;t=3600'),
    }
)


def headers(*names: str) -> dict[str, Any]:
    """The `headers` of a response in `responses`."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def headers_described() -> dict[str, Any]:
    """What `headers` refers to: `components.headers` of the document."""
    schema = {"type": "string"}
    return {
        name: {"description": text, "schema": schema, "example": example}
        for name, (text, example) in _DESCRIBED.items()
    }
