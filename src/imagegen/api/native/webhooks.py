"""Webhooks: the body that is sent, and the routes that list, get and resend deliveries."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field

from imagegen.api.dependencies import Webhooks, Who
from imagegen.api.document import DocumentedAs
from imagegen.api.headers import headers
from imagegen.api.native.tasks.view import TaskView, task_view
from imagegen.api.problems import describe
from imagegen.api.security import MAKE, SEE, KeyedRoute
from imagegen.core.receipt import receipt_of
from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import Delivery, DeliveryState, WebhookEvent
from imagegen.models.manager import DynamicModelManager
from imagegen.settings import Settings
from imagegen.storage.outbox import DeliveryFilter
from imagegen.tasks.manager import TaskManager

router = APIRouter(tags=["webhooks"], prefix="/webhooks", route_class=KeyedRoute, dependencies=[SEE])


class DeliveryView(BaseModel):
    """A delivery: one event that is sent to one receiver."""

    id: str = Field(description="The `webhook-id` of each attempt.", examples=["msg_0b9c6c5e3f0a4b1e9a552f4c6f0f8d11"])
    task_id: str
    event: WebhookEvent
    host: str = Field(description="Host of the receiver. The rest of its URL may be secret.", examples=["example.com"])
    state: DeliveryState
    attempts: int = Field(
        description="Attempts so far. One that a restart of the service moved forward does not count if it fails."
    )
    error: str | None = Field(
        description="Why the latest attempt failed: `timeout`, `refused`, `tls_failed`, `broken_off`, "
        "`url_not_allowed`, `status 500`; `gone` (410), or `outbox_full`: there was no attempt."
    )
    created_at: datetime
    attempted_at: datetime | None = Field(description="When the latest attempt was made.")
    next_attempt_at: datetime | None = Field(description="When the next attempt is made; null: none is planned.")


class WebhookPayload(BaseModel):
    """The body of a webhook, in the form of Standard Webhooks."""

    type: Literal["task.started", "task.completed", "task.failed", "task.cancelled"]
    timestamp: datetime = Field(description="When the event happened.")
    data: TaskView = Field(description="The task, as `GET /task/{task_id}` showed it at that moment.")


class DeliveryDetails(DeliveryView):
    """A delivery with its payload."""

    payload: Annotated[dict[str, Any], DocumentedAs(WebhookPayload)] = Field(
        description="The body that is sent. It was made when the event happened."
    )


class DeliveryPage(BaseModel):
    """A page of deliveries, newest first."""

    deliveries: list[DeliveryView]


def delivery_view(delivery: Delivery, next_attempt_at: datetime | None) -> DeliveryView:
    return DeliveryView(**_delivery_fields(delivery), next_attempt_at=next_attempt_at)


def delivery_details(delivery: Delivery, next_attempt_at: datetime | None) -> DeliveryDetails:
    payload = json.loads(delivery.payload)
    return DeliveryDetails(**_delivery_fields(delivery), next_attempt_at=next_attempt_at, payload=payload)


def _delivery_fields(delivery: Delivery) -> dict[str, Any]:
    return {"host": delivery.host, **delivery.model_dump(exclude={"sequence", "url", "payload", "owner"})}


@router.get(
    "/deliveries",
    operation_id="list_deliveries",
    summary="The newest deliveries",
    responses={200: {"headers": headers("Link")}, **describe("invalid_request")},
)
async def list_deliveries(
    webhooks: Webhooks,
    who: Who,
    request: Request,
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
    found, more = await webhooks.page(DeliveryFilter(task_id, state, None if who.sees_all else who.name), limit, cursor)
    if more:
        asked = {"task_id": task_id, "state": state, "limit": limit, "cursor": found[-1].sequence}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        response.headers["Link"] = f'<{request.scope["root_path"]}/webhooks/deliveries?{query}>; rel="next"'
    return DeliveryPage(deliveries=[delivery_view(each, webhooks.next_attempt_at(each)) for each in found])


@router.get(
    "/deliveries/{delivery_id}",
    operation_id="get_delivery",
    summary="One delivery",
    responses=describe("delivery_not_found"),
)
async def get_delivery(delivery_id: str, webhooks: Webhooks, who: Who) -> DeliveryDetails:
    """A delivery with its payload."""
    delivery = await webhooks.get(delivery_id, who)
    return delivery_details(delivery, webhooks.next_attempt_at(delivery))


@router.post(
    "/deliveries/{delivery_id}/replay",
    operation_id="replay_delivery",
    dependencies=[MAKE],
    status_code=202,
    summary="Resend a delivery",
    responses=describe("delivery_not_found", "webhooks_off", "storage_failed", "storage_full"),
)
async def replay_delivery(delivery_id: str, webhooks: Webhooks, who: Who) -> DeliveryView:
    """Sends a delivery in any state again, at once, with the same id. Its attempts are counted from zero.

    A receiver that answered 410 gets no further events. If it accepts the resent delivery, it gets later events again.
    """
    delivery = await webhooks.replay(delivery_id, who)
    return delivery_view(delivery, webhooks.next_attempt_at(delivery))


async def _receive(
    body: WebhookPayload,
    webhook_id: Annotated[str, Header(description="The same in each attempt: receivers drop what they know.")],
    webhook_timestamp: Annotated[str, Header(description="When this attempt was made, in seconds of Unix time.")],
    webhook_signature: Annotated[
        str, Header(description="`v1,` and an HMAC-SHA256 in base64, one for each secret, separated by spaces.")
    ],
) -> None:
    """Signed as Standard Webhooks prescribes; libraries of that name verify it. Any 2xx answer counts.

    Other answers are retried. 410 ends all deliveries to the URL.
    """


def sent_webhooks() -> APIRouter:
    """What the service sends, for the OpenAPI document. No request reaches these routes."""
    sent = APIRouter(tags=["webhooks"])
    for event in WebhookEvent:
        sent.add_api_route(
            f"task.{event}",
            _receive,
            methods=["POST"],
            operation_id=f"task_{event}",
            summary=f"A task is `{event}`",
            status_code=204,
            responses={410: {"description": "The receiver wants no further events."}},
        )
    return sent


class WebhookPayloads:
    """Makes the body of a webhook, in the form of Standard Webhooks, when its event is written to the journal.

    The body shows the task as `GET /task/{id}` does at that moment.
    """

    def __init__(self, settings: Settings, models: DynamicModelManager, tasks: TaskManager) -> None:
        self._settings = settings
        self._models = models
        self._tasks = tasks

    def __call__(self, task: GenerationTask, event: WebhookEvent, at: datetime) -> str:
        kept_days = self._models.catalog.settings.over(self._settings).retention_days
        outlook, download = self._tasks.outlook(task), self._tasks.pull_of(task.id)
        view = task_view(task, outlook, download, kept_days, receipt_of(task), prefix=self._settings.prefix)
        data = view.model_dump(mode="json")
        return json.dumps({"type": f"task.{event}", "timestamp": at.isoformat(), "data": data}, ensure_ascii=False)
