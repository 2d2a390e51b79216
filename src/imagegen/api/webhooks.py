"""Deliveries of webhooks: list, get and resend them."""

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
    "description": 'The next page (RFC 8288, rel="next"), if there is one.',
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
    task_id: Annotated[str | None, Query(max_length=64, description="Only deliveries of this task.")] = None,
    state: Annotated[
        DeliveryState | None, Query(description="Only deliveries in this state. `dead`: given up.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Deliveries in a page.")] = 50,
    cursor: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="Start of the page, from `Link` of the page before it.")
    ] = None,
) -> DeliveryPage:
    """Newest first. If there are older deliveries, the header `Link` has the URL of the next page (rel="next").

    A delivery is kept as long as its task, and at least until it is delivered or dead.
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
    """A delivery with its payload."""
    delivery = await webhooks.get(delivery_id)
    return delivery_details(delivery, webhooks.next_attempt_at(delivery))


@router.post(
    "/deliveries/{delivery_id}/replay",
    operation_id="replay_delivery",
    status_code=202,
    summary="Resend a delivery",
    responses=describe("delivery_not_found", "webhooks_off", "storage_failed", "storage_full"),
)
async def replay_delivery(delivery_id: str, webhooks: Webhooks) -> DeliveryView:
    """Sends a delivery in any state again, at once, with the same id. Its attempts are counted from zero.

    A receiver that answered 410 gets no further events. If it accepts the resent delivery, it gets later events again.
    """
    delivery = await webhooks.replay(delivery_id)
    return delivery_view(delivery, webhooks.next_attempt_at(delivery))
