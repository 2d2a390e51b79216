"""Idempotency-Key: a retried request makes no second task."""

import asyncio
from hashlib import sha256
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from imagegen.api.dependencies import Who, services_of
from imagegen.core.owner import Owner
from imagegen.core.task import TaskType
from imagegen.core.wording import Form
from imagegen.service.image_service import ImageService
from imagegen.storage.journal import Claim
from imagegen.tasks.admission import TaskDraft
from imagegen.tasks.manager import Accepted


class _Submitter:
    """Submits drafts with the caller's Idempotency-Key, if there is one."""

    def __init__(self, service: ImageService, who: Owner, key: str | None) -> None:
        self._service = service
        self._who = who
        self._key = key

    async def submit(self, draft: TaskDraft, body: BaseModel) -> Accepted:
        """Submit a draft. A key belongs to one `body`: with another one it raises KeyReused."""
        if self._key is None:
            return await self._service.submit(self._who, draft)
        # A body with a picture has megabytes, so it is hashed in a thread.
        digest = await asyncio.to_thread(_digest, draft.type, body)
        return await self._service.submit(self._who, draft, Claim(self._key, digest))


def _digest(kind: TaskType, body: BaseModel) -> str:
    return sha256(f"{kind}:{body.model_dump_json()}".encode()).hexdigest()


async def _submitter(
    request: Request,
    who: Who,
    idempotency_key: Annotated[
        Annotated[str, Form(r"[!-~]([ -~]*[!-~])?", "must be printable ASCII characters, no space at its ends")] | None,
        Header(
            min_length=1,
            max_length=255,
            description="Any text. For 24 hours, the same key with the same body returns the same task, with "
            "`Idempotency-Replayed: true`; the same key with another body is refused.",
        ),
    ] = None,
) -> _Submitter:
    return _Submitter(services_of(request).service, who, idempotency_key)


Submitter = Annotated[_Submitter, Depends(_submitter)]
