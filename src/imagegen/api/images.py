"""GET /images: the finished pictures."""

from fastapi import APIRouter
from fastapi.responses import FileResponse

from imagegen.api.dependencies import Images
from imagegen.api.problems import describe

router = APIRouter(tags=["images"])

#: A picture never changes under its name, and is never anything but a picture.
_HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


@router.head("/images/{folder}/{file}", include_in_schema=False)
@router.get(
    "/images/{folder}/{file}",
    operation_id="get_image",
    summary="One picture",
    response_class=FileResponse,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **describe("image_not_found"),
    },
)
async def get_image(folder: str, file: str, images: Images) -> FileResponse:
    """The file of a `result_files` entry. Ranges and conditional requests work; it may be cached for ever."""
    path = images.locate(folder, file)
    return FileResponse(
        path, media_type=f"image/{path.suffix[1:]}", filename=file, content_disposition_type="inline", headers=_HEADERS
    )
