"""Keys: list, make, rotate and revoke API keys, and what is left of one's own."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import Keys, Who, services_of
from imagegen.api.native.shared import RequestBody, Time
from imagegen.api.problems import describe
from imagegen.api.security import MANAGE, SEE
from imagegen.catalog.catalog import ModelId
from imagegen.core.errors import Forbidden, KeyNotFound
from imagegen.core.keys import Key, KeyLimits, KeyName, LimitState, Scope, new_key, new_webhook_secret

router = APIRouter(prefix="/keys", tags=["keys"], route_class=BoundedRoute, dependencies=[SEE])

WRITING = ("storage_failed", "storage_full", "journal_lost")


class KeyBody(RequestBody):
    """A new key."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "alice", "scopes": ["generate"], "limits": {"images_per_day": 100}}]}
    )

    name: KeyName = Field(description="Tasks that are submitted with the key belong to this name.", examples=["alice"])
    scopes: list[Scope] = Field([Scope.GENERATE], min_length=1, max_length=3, description="What it may be used for.")
    models: list[ModelId] = Field([], max_length=1000, description="The models that it may use; empty: all.")
    priority_floor: int | None = Field(
        None, strict=True, ge=-1000, le=1000, description="A lower `priority` of its tasks counts as this number."
    )
    limits: KeyLimits = KeyLimits()
    expires_at: Time | None = Field(None, description="When it becomes invalid.")
    webhook_secret: bool = Field(
        False, strict=True, description="Whether the webhooks of its tasks are signed with a secret of their own."
    )


class KeyView(BaseModel):
    """A key, without its text."""

    name: str = Field(examples=["alice"])
    prefix: str = Field(description="The beginning of its text.", examples=["ig_2Gk0aB1c"])
    state: Literal["valid", "expired", "revoked"]
    scopes: list[Scope]
    models: list[str]
    priority_floor: int | None
    limits: KeyLimits
    created_at: datetime | None
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To a minute.")
    has_webhook_secret: bool


class NewKeyView(KeyView):
    """A key with its text, which is not shown again."""

    key: str = Field(description="The text to send.", examples=["ig_..."])
    webhook_secret: str | None = Field(None, description="For the receiver of its webhooks.", examples=["whsec_..."])


class KeyList(BaseModel):
    """All keys, by name."""

    keys: list[KeyView]
    total: int


class LeftView(BaseModel):
    """What is left of a limit."""

    name: str = Field(description="`queued`, `images`, `device-seconds` or `rate`.", examples=["images"])
    quota: float
    remaining: float
    window_s: int | None = Field(description="Seconds for which the quota is; null: it is a number of tasks.")
    reset_s: int | None = Field(description="Seconds until more is left; null: when a task begins.")


class MyKey(BaseModel):
    """The caller's own key."""

    name: str | None = Field(description="Null: the service needs no key.")
    scopes: list[Scope]
    models: list[str]
    priority_floor: int | None
    left: list[LeftView]


def key_view(key: Key) -> KeyView:
    state: Literal["valid", "expired", "revoked"] = "valid" if key.is_valid(datetime.now(UTC)) else "expired"
    fields = key.model_dump(include=set(KeyView.model_fields))
    return KeyView(
        **fields, state="revoked" if key.revoked_at else state, has_webhook_secret=key.webhook_secret is not None
    )


@router.get("", operation_id="list_keys", summary="All keys", dependencies=[MANAGE])
async def list_keys(keys: Keys) -> KeyList:
    """All keys, also the revoked ones, by name. Those of IMAGEGEN_KEYS_FILE are not among them."""
    views = [key_view(key) for key in await keys.all()]
    return KeyList(keys=views, total=len(views))


@router.post(
    "",
    operation_id="create_key",
    status_code=201,
    summary="Make a key",
    dependencies=[MANAGE],
    responses=describe("malformed_body", "key_exists", *WRITING),
)
async def create_key(body: KeyBody, keys: Keys, response: Response) -> NewKeyView:
    """The answer has the text of the key. It is not stored, so it cannot be shown again.

    Once there is a key, every request needs one.
    """
    key, text = new_key(
        body.name,
        tuple(dict.fromkeys(body.scopes)),
        models=tuple(body.models),
        priority_floor=body.priority_floor,
        limits=body.limits,
        expires_at=body.expires_at,
        webhook_secret=new_webhook_secret() if body.webhook_secret else None,
    )
    await keys.create(key)
    response.headers["Cache-Control"] = "no-store"
    return NewKeyView(**dict(key_view(key)), key=text, webhook_secret=key.webhook_secret)


@router.get("/me", operation_id="get_my_key", summary="The caller's own key")
async def get_my_key(who: Who, request: Request) -> MyKey:
    """What the key may do, and what is left of each of its limits."""
    limits = await services_of(request).access.limit_states(who)
    return MyKey(
        name=who.name or None,
        scopes=sorted(who.scopes),
        models=list(who.models),
        priority_floor=who.priority_floor,
        left=[left_view(limit) for limit in limits],
    )


def left_view(limit: LimitState) -> LeftView:
    return LeftView.model_validate(limit._asdict() | {"remaining": max(0, limit.remaining)})


@router.get("/{name}", operation_id="get_key", summary="One key", responses=describe("key_not_found"))
async def get_key(name: Annotated[str, Field(max_length=64)], keys: Keys, who: Who) -> KeyView:
    """A key with the scope `admin` sees all keys; any other key sees itself."""
    if not who.changes_all and name != who.name:
        raise KeyNotFound
    return key_view(await keys.get(name))


@router.post(
    "/{name}/rotate",
    operation_id="rotate_key",
    summary="Give a key a new text",
    dependencies=[MANAGE],
    responses=describe("key_not_found", *WRITING),
)
async def rotate_key(name: str, keys: Keys, response: Response) -> NewKeyView:
    """The old text is invalid at once. A revoked key is valid again. The secret of its webhooks stays."""
    key, text = await keys.rotate(name)
    response.headers["Cache-Control"] = "no-store"
    return NewKeyView(**dict(key_view(key)), key=text)


@router.delete(
    "/{name}",
    operation_id="revoke_key",
    summary="Revoke a key",
    dependencies=[MANAGE],
    responses=describe("key_not_found", *WRITING),
)
async def revoke_key(name: str, keys: Keys, who: Who) -> KeyView:
    """The key is invalid at once. Its name stays taken, and its tasks go on. A key cannot revoke itself."""
    if name == who.name:
        raise Forbidden("A key cannot revoke itself; another key with the scope admin can.")
    return key_view(await keys.revoke(name))
