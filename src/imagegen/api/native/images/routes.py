"""GET /images: the files of finished pictures."""

import base64
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from imagegen.api.dependencies import EffectiveSettings, Images, Service, Who, services_of
from imagegen.api.headers import headers
from imagegen.api.native.images.ranges import Range, parse_range
from imagegen.api.native.shared import binary
from imagegen.api.problems import describe, error_response, problem
from imagegen.api.security import SEE, SEE_SIGNED, KeyedRoute
from imagegen.core.owner import ANYONE
from imagegen.core.task import StoredImage
from imagegen.storage.images import MEDIA_TYPES, ImageStore, media_type

router = APIRouter(tags=["images"], route_class=KeyedRoute)

#: A browser must not treat a picture as a page or a script.
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
#: A file never changes, so caches may keep it.
_FOR_EVER = "max-age=31536000, immutable"

_CONTENT = {"content": binary(*MEDIA_TYPES.values())}
_FILE = headers("ETag", "Repr-Digest", "Accept-Ranges", "Content-Disposition")
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture.", "headers": _FILE, **_CONTENT},
    206: {
        "description": "The range of the `Range` header. Several ranges get the whole picture.",
        "headers": _FILE | headers("Content-Range"),
        **_CONTENT,
    },
    304: {"description": "`If-None-Match` has the `ETag` of the picture.", "headers": headers("ETag")},
    307: {
        "description": "The picture is in a bucket, and IMAGEGEN_STORE_URLS is `presigned`: a URL that expires.",
        "headers": headers("Location"),
    },
    **describe("image_not_found", "range_not_satisfiable", "storage_failed", "store_unreachable"),
}


class SignedUrl(BaseModel):
    """A URL that opens one picture without a key."""

    url: str = Field(examples=["/images/20261123/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11-0.png?token=1764323999.5f..."])
    expires_at: datetime


class ImageView(BaseModel):
    """One finished picture."""

    url: str = Field(examples=["/images/20261123/0b9c6c5e-3f0a-4b1e-9a55-2f4c6f0f8d11-0.png"])
    width: int = Field(examples=[128])
    height: int = Field(examples=[128])
    seed: int = Field(description="The seed of this picture. A request with it makes this picture alone.", examples=[7])
    pixels_sha256: str = Field(
        "", description="SHA-256 of the pixels before they were encoded, hexadecimal; empty in older tasks."
    )


def image_view(image: StoredImage, prefix: str) -> ImageView:
    """The picture. `prefix`: of the paths of this service, as `/imagegen`."""
    return ImageView(url=f"{prefix}/images/{image.path}", **image.model_dump(include=set(ImageView.model_fields)))


async def _conditions(
    range_: Annotated[str | None, Header(alias="Range", description="`bytes=0-99`.")] = None,
    if_range: Annotated[str | None, Header(description="If it is not the `ETag`, `Range` is ignored.")] = None,
    if_none_match: Annotated[str | None, Header(description="304 if the `ETag` is among these.")] = None,
) -> Mapping[str, str | None]:
    return {"range": range_, "if-range": if_range, "if-none-match": if_none_match}


@router.head("/images/{folder}/{file}", include_in_schema=False, dependencies=[SEE_SIGNED])
@router.get(
    "/images/{folder}/{file}",
    operation_id="get_image",
    dependencies=[SEE_SIGNED],
    summary="One picture",
    response_class=Response,
    responses=_RESPONSES,
)
async def get_image(
    folder: str,
    file: str,
    request: Request,
    service: Service,
    who: Who,
    images: Images,
    settings: EffectiveSettings,
    asked: Annotated[Mapping[str, str | None], Depends(_conditions)],
    token: Annotated[str | None, Query(max_length=200, description="Of a signed URL: replaces the API key.")] = None,
) -> Response:
    """The file of an entry of `result_files`. It supports ranges and conditional requests, and may be cached for ever.

    `ETag` and `Repr-Digest` (RFC 9530) are computed from its bytes. The service sends a picture in a bucket itself, or
    redirects to the bucket.
    """
    image = await service.picture(who, f"{folder}/{file}")
    head = request.method == "HEAD"
    if settings.store_urls == "presigned" and (url := await images.url(image, "HEAD" if head else "GET")):
        # Half of the URL's lifetime, so that a redirect from a cache leads to a URL that is still valid.
        return RedirectResponse(
            url, headers=_SAFE | {"Cache-Control": f"private, max-age={settings.store_url_s / 2:.0f}"}
        )
    image = await images.known(image)
    headers = _headers(image, shared=who == ANYONE)
    if _matches(asked["if-none-match"], headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if head:
        await images.size(image)  # raises if the file is missing
        return Response(headers=headers | {"Content-Length": str(image.bytes)}, media_type=media_type(image.path))
    wanted = asked["range"] if asked["if-range"] in (None, headers["ETag"]) else None
    return await _content(request, images, image, headers, parse_range(wanted, image.bytes) if wanted else None)


@router.get(
    "/images/{folder}/{file}/url",
    operation_id="sign_image",
    summary="A URL for one picture that needs no key",
    dependencies=[SEE],
    responses=describe("image_not_found", "storage_failed"),
)
async def sign_image(
    folder: str,
    file: str,
    request: Request,
    service: Service,
    who: Who,
    response: Response,
    minutes: Annotated[int, Query(ge=1, le=60, description="How long it is valid.")] = 10,
) -> SignedUrl:
    """For an `<img>`, which cannot send a key. Whoever has the URL can fetch the picture until it expires."""
    path = f"/images/{(await service.picture(who, f'{folder}/{file}')).path}"
    expires = int(time.time()) + 60 * minutes
    token = await services_of(request).access.sign(path, expires)
    response.headers["Cache-Control"] = "no-store"
    url = f"{request.scope['root_path']}{path}?token={token}"
    return SignedUrl(url=url, expires_at=datetime.fromtimestamp(expires, UTC))


def _headers(image: StoredImage, *, shared: bool) -> dict[str, str]:
    """The headers of every answer about a picture. `shared`: whether caches may give it to other callers."""
    file = image.path.rpartition("/")[2]
    return _SAFE | {
        "Accept-Ranges": "bytes",
        "Cache-Control": f"{'public' if shared else 'private'}, {_FOR_EVER}",
        "Content-Disposition": f'inline; filename="{file}"',
        "ETag": f'"{image.sha256}"',
        "Repr-Digest": _digest(image),
    }


def _digest(image: StoredImage) -> str:
    return f"sha-256=:{base64.b64encode(bytes.fromhex(image.sha256)).decode()}:"


def _matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match has the ETag, by weak comparison (RFC 9110, section 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or tags == ["*"]


async def _content(
    request: Request, images: ImageStore, image: StoredImage, headers: dict[str, str], part: Range | None
) -> Response:
    """The whole picture, or a part of it."""
    size, status = image.bytes, 200
    if part is None:
        part = Range(0, size)
        headers |= {"Content-Digest": headers["Repr-Digest"]}  # of the bytes that are sent, so of no part
    elif part.empty:
        headers = _SAFE | {"Content-Range": f"bytes */{size}"}
        return error_response(
            request.scope, problem("range_not_satisfiable", "The picture has no such bytes."), headers
        )
    else:
        status = 206
        headers |= {"Content-Range": f"bytes {part.start}-{part.stop - 1}/{size}"}
    headers |= {"Content-Length": str(part.stop - part.start)}
    # Read the first bytes before the answer begins: a missing or unreachable picture is then a problem.
    pieces = images.pieces(image, *part)
    first = await anext(pieces, b"")
    return StreamingResponse(_begun(first, pieces), status, headers, media_type(image.path))


async def _begun(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for other in others:
        yield other
