"""GET /task/{task_id}/bundle: a task and its pictures in one zip file."""

import io
import zipfile
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from imagegen.api.dependencies import EffectiveSettings, Images, Service, Who
from imagegen.api.headers import headers
from imagegen.api.native.shared import binary
from imagegen.api.native.tasks.view import task_view
from imagegen.api.problems import describe
from imagegen.api.security import SEE, KeyedRoute
from imagegen.core.errors import TaskNotFinished
from imagegen.core.receipt import receipt_of
from imagegen.core.task import StoredImage
from imagegen.storage.images import ImageStore

router = APIRouter(tags=["tasks"], route_class=KeyedRoute, dependencies=[SEE])


@router.get(
    "/task/{task_id}/bundle",
    operation_id="get_bundle",
    summary="A task and its pictures, as a zip",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The zip.",
            "headers": headers("Content-Disposition"),
            "content": binary("application/zip"),
        },
        **describe("task_not_found", "task_not_finished", "image_not_found", "storage_failed", "store_unreachable"),
    },
)
async def get_bundle(
    task_id: str, request: Request, service: Service, who: Who, images: Images, settings: EffectiveSettings
) -> StreamingResponse:
    """A zip of an ended task: the body of `GET /task/{task_id}` as `task.json`, and the files of its pictures."""
    task = await service.task(who, task_id)
    if not task.status.finished:
        raise TaskNotFinished("The task has not ended; there is nothing to download yet.")
    pictures = [await images.known(image) for image in task.images]
    for image in pictures:
        await images.size(image)  # raises if it is missing: once the response has begun, its status is fixed
    view = task_view(task, None, None, settings.retention_days, receipt_of(task), prefix=request.scope["root_path"])
    record = view.model_dump_json(indent=2).encode()
    headers = {"Content-Disposition": f'attachment; filename="{task.id}.zip"', "X-Content-Type-Options": "nosniff"}
    content = _zipped(record, pictures, images, task.completed_at or task.created_at)
    return StreamingResponse(content, headers=headers, media_type="application/zip")


class _Sink(io.RawIOBase):
    """Collects what ZipFile writes until it is sent. It cannot seek, so ZipFile writes each size after its file."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


async def _zipped(
    record: bytes, pictures: Sequence[StoredImage], images: ImageStore, when: datetime
) -> AsyncIterator[bytes]:
    """The zip, piece by piece. Pictures are stored without compression, because their formats are compressed."""
    sink, date = _Sink(), when.timetuple()[:6]
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(zipfile.ZipInfo("task.json", date), record)
        for image in pictures:
            entry = zipfile.ZipInfo(image.path.rpartition("/")[2], date)
            entry.file_size = image.bytes
            with archive.open(entry, "w") as file:
                async for piece in images.pieces(image, 0, image.bytes):
                    file.write(piece)
                    yield sink.take()
    yield sink.take()
