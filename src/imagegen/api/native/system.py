"""Probes and metrics."""

from typing import Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from imagegen.api.dependencies import Images, Tasks, services_of
from imagegen.api.problems import describe
from imagegen.api.security import KeyedRoute, Needs
from imagegen.core.errors import Draining, StoreUnreachable
from imagegen.core.keys import Scope

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


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(Needs(Scope.READ))],
    response_class=PlainTextResponse,
    responses={200: {"description": "The text format of Prometheus, or OpenMetrics if `Accept` asks for it."}},
)
async def metrics(request: Request) -> PlainTextResponse:
    """Counters, histograms and gauges of tasks, models, memory, the journal, webhooks and requests.

    A key needs the scope `read`: the numbers are those of all callers. Labels have models, routes and codes, never a
    text of a caller. A scrape loads no model, and counts as no use of one.
    """
    services = services_of(request)
    text, media_type = await services.gauges.scrape(services.metrics, request.headers.get("accept", ""))
    return PlainTextResponse(text, media_type=media_type)
