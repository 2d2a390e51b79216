"""Pulls of the weights of models: start, cancel and follow them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from imagegen.api.dependencies import Puller
from imagegen.api.problems import describe
from imagegen.api.security import MANAGE, SEE, KeyedRoute
from imagegen.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream
from imagegen.core.errors import FailureCode, NotPulling
from imagegen.hub.puller import Pull, PullState

router = APIRouter(prefix="/models", tags=["models"], route_class=KeyedRoute, dependencies=[SEE])


class PullView(BaseModel):
    """The latest pull of a model's weights."""

    state: PullState
    bytes_done: int = Field(description="Bytes on disk, of the files that the model needs.")
    bytes_total: int | None = Field(description="Bytes of the files that the model needs; null until the hub answered.")
    error_code: FailureCode | None = Field(None, description="If it failed: a stable code.")
    error_message: str | None = Field(None, description="If it failed: the reason.")
    retry_after: int | None = Field(None, description="Seconds after which a retry makes sense.")

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys of errors that have no value."""
        kept = ("state", "bytes_done", "bytes_total")
        return {key: value for key, value in handler(self).items() if value is not None or key in kept}


class PullEvent(PullView):
    """The data of an event in the stream of a pull. `type` is also in the `event:` line."""

    type: PullState = Field(description="The name of the event, which is the state.")


def pull_view(pull: Pull) -> PullView:
    return PullView(
        error_code=pull.failure.code if pull.failure else None,
        error_message=pull.failure.message if pull.failure else None,
        **pull.model_dump(exclude={"model", "failure"}),
    )


@router.post(
    "/{model_id}/pull",
    status_code=202,
    operation_id="pull_model",
    dependencies=[MANAGE],
    summary="Pull a model's weights",
    responses=describe("model_not_found", "weights_here", "no_repository", "draining"),
)
async def pull_model(model_id: str, puller: Puller) -> PullView:
    """Starts a pull, or resumes one that was interrupted or cancelled. Has no effect while the model is pulled.

    One model is pulled at a time; the others are `waiting`. Follow the pull at `GET /models/{model_id}/pull/events`, or
    poll `GET /models/{model_id}`.
    """
    return pull_view(puller.start(model_id))


@router.delete(
    "/{model_id}/pull",
    operation_id="cancel_pull",
    dependencies=[MANAGE],
    summary="Cancel a pull",
    responses=describe("model_not_found", "not_pulling"),
)
async def cancel_pull(model_id: str, puller: Puller) -> PullView:
    """Keeps the bytes that have arrived, and the next pull resumes there. Tasks that wait for the weights fail."""
    return pull_view(puller.cancel(model_id))


async def _pulled(model_id: str, puller: Puller) -> str:
    # A dependency, because a stream that has begun cannot answer with another status.
    if puller.pull(model_id) is None:
        raise NotPulling
    return model_id


@router.get(
    "/{model_id}/pull/events",
    operation_id="follow_pull",
    summary="Follow a pull (server-sent events)",
    response_class=EventStream,
    responses={
        200: {"model": PullEvent, "description": "The `data` of each event is of this form."},
        **describe("not_pulling", "too_many_streams"),
    },
)
async def follow_pull(model_id: Annotated[str, Depends(_pulled)], puller: Puller) -> EventStream:
    """`waiting`, `downloading` with bytes, then `ready`, `failed` or `cancelled`, which ends the stream."""
    return EventStream(_frames(puller.follow(model_id)))


async def _frames(pulls: AsyncIterator[Pull]) -> AsyncIterator[bytes]:
    """An event for each, and a comment after each silence."""
    coming = asyncio.ensure_future(anext(pulls, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=KEEP_ALIVE_S)
            if not done:
                yield KEEP_ALIVE
                continue
            if (pull := coming.result()) is None:
                return
            coming = asyncio.ensure_future(anext(pulls, None))
            data = {"type": pull.state, **pull_view(pull).model_dump(mode="json")}
            yield f"event: {pull.state}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
    finally:
        coming.cancel()
