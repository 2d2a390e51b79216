"""GET / and /web: the page and its files. They need no key, and hold nothing of this service."""

import gzip
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from imagegen.api.dependencies import EffectiveSettings, Images

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".txt": "text/plain; charset=utf-8",
    }
)

#: A name of one folder or two. No such name leads out of FOLDER, or to a Python file.
_NAME = re.compile(r"([a-z0-9-]{1,32}/)?[a-z0-9-]{1,32}\.(css|mjs|svg|txt)")

#: Scripts, styles and requests of this origin only, and nothing inline. Pictures also from memory (`blob:`, `data:`).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:{store}; "
    "connect-src 'self'{store}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@router.get("/")
async def show_page(request: Request, images: Images, settings: EffectiveSettings) -> Response:
    """The page. If pictures come from URLs of a bucket (IMAGEGEN_STORE_URLS), it may load them from there."""
    store = await images.origin() if settings.store_urls == "presigned" else None
    response = _file("index.html", request.headers)
    response.headers["Content-Security-Policy"] = _POLICY.format(store=f" {store}" if store else "")
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@router.get("/web/{name:path}")
async def get_page_file(name: str, request: Request) -> Response:
    """A file of the page."""
    if _NAME.fullmatch(name) is None or not (FOLDER / name).is_file():
        raise HTTPException(404, "The page has no such file.")
    return _file(name, request.headers)


def _file(name: str, asked: Mapping[str, str]) -> Response:
    """A file, compressed for whoever takes that; 304 without a body for whoever has it."""
    data = (FOLDER / name).read_bytes()
    # Of the content, because installers give all files the same time. no-cache: ask each time whether it has changed.
    tag = f'"{sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
    if tag in asked.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in asked.get("accept-encoding", ""):
        data, headers["Content-Encoding"] = gzip.compress(data), "gzip"
    return Response(data, headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])
