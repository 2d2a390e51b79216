"""Probes."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from imagegen.api.dependencies import Images, Tasks
from imagegen.api.problems import describe
from imagegen.api.security import KeyedRoute
from imagegen.core.errors import Draining, StoreUnreachable

router = APIRouter(tags=["service"], route_class=KeyedRoute)


class Probe(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/livez", operation_id="livez", summary="Is the process alive?")
async def livez() -> Probe:
    """200 while the process answers. If it does not answer, restart it."""
    return Probe()


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Does the service accept tasks?",
    responses=describe("draining", "store_unreachable"),
)
async def readyz(tasks: Tasks, images: Images) -> Probe:
    """503 while the service is stopping.

    Also 503 while the bucket for pictures cannot be reached, if IMAGEGEN_STORE_DOWN is `fail`.
    """
    if tasks.draining:
        raise Draining
    if not (images.reachable or images.patient):
        raise StoreUnreachable
    return Probe()
