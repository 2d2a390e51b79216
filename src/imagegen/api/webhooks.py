"""Deliveries of webhooks: list, look, send again."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response

from imagegen.api.dependencies import Webhooks
from imagegen.api.problems import describe
from imagegen.api.schemas import DeliveryDetails, DeliveryPage, DeliveryView
from imagegen.api.views import delivery_details, delivery_view
from imagegen.core.webhooks import DeliveryState
from imagegen.storage.outbox import DeliveryFilter

router = APIRouter(tags=["webhooks"], prefix="/webhooks")

_LINK = {
    "description": 'The next page (RFC 8288, rel="next"), while there is one.',
    "schema": {"type": "string"},
    "example": '</webhooks/deliveries?limit=50&cursor=4711>; rel="next"',
}


@router.get(
    "/deliveries",
    operation_id="list_deliveries",
    summary="The newest deliveries",
    responses={200: {"headers": {"Link": _LINK}}, **describe("invalid_request")},
)
async def list_deliveries(
    webhooks: Webhooks,
    response: Response,
    task_id: Annotated[str | None, Query(max_length=64, description="Only those of this task.")] = None,
    state: Annotated[DeliveryState | None, Query(description="`dead` has what was given up.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 50,
    cursor: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="Where a page ended: as `Link` says, rel=next.")
    ] = None,
) -> DeliveryPage:
    """Newest first. While there are older ones, the header `Link` has the address of the next page (rel="next").

    Deliveries are kept as long as their tasks; those on their way until they have ended.
    """
    found, more = await webhooks.page(DeliveryFilter(task_id, state), limit, cursor)
    if more:
        asked = {"task_id": task_id, "state": state, "limit": limit, "cursor": found[-1].sequence}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        response.headers["Link"] = f'</webhooks/deliveries?{query}>; rel="next"'
    return DeliveryPage(deliveries=[delivery_view(each, webhooks.next_attempt_at(each)) for each in found])


@router.get(
    "/deliveries/{delivery_id}",
    operation_id="get_delivery",
    summary="One delivery",
    responses=describe("delivery_not_found"),
)
async def get_delivery(delivery_id: str, webhooks: Webhooks) -> DeliveryDetails:
    """How far it is, and what it says."""
    delivery = await webhooks.get(delivery_id)
    return delivery_details(delivery, webhooks.next_attempt_at(delivery))


@router.post(
    "/deliveries/{delivery_id}/replay",
    operation_id="replay_delivery",
    status_code=202,
    summary="Send a delivery again",
    responses=describe("delivery_not_found", "webhooks_off", "storage_failed", "storage_full"),
)
async def replay_delivery(delivery_id: str, webhooks: Webhooks) -> DeliveryView:
    """At once, with the same id, its attempts counted anew: whether it was dead, delivered, or waits for its next one.

    If the receiver had said 410, and now takes it, it is told of later events again.
    """
    delivery = await webhooks.replay(delivery_id)
    return delivery_view(delivery, webhooks.next_attempt_at(delivery))
