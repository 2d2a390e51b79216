"""API keys over HTTP: who may do what, and what exists for whom."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from standardwebhooks import WebhookVerificationError

from imagegen.api.security import Needs
from imagegen.app import create_app
from imagegen.catalog.catalog import Catalog
from imagegen.core.errors import KeysFileInvalid
from imagegen.core.keys import KeyLimits, Scope, new_key, new_key_text, new_webhook_secret
from imagegen.core.owner import Owner
from imagegen.service.keys_file import read_keys
from imagegen.settings import Settings
from imagegen.storage.keys import KeyStore
from tests.api.conftest import Client, Start
from tests.receiver import hooks, receiving

#: The paths that need no key: probes, the page and the interactive reference, which hold nothing of this service.
PUBLIC = {
    *("/", "/web/{name:path}", "/livez", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    *("/static-offline-docs", "/docs/errors", "/docs/errors/{code}"),
}

GENERATE, READ, ADMIN = {Scope.GENERATE}, {Scope.READ}, {Scope.ADMIN}
SEE, MAKE, MANAGE = GENERATE | READ | ADMIN, GENERATE | ADMIN, ADMIN


def store_of(client: Client) -> KeyStore:
    store: KeyStore = client.app.state.lifecycle._journal.keys
    return store


async def key(client: Client, name: str, *scopes: Scope, **fields: Any) -> dict[str, str]:
    """The headers of a new key; `generate` if no scope is given."""
    made, text = new_key(name, scopes or (Scope.GENERATE,), **fields)
    await store_of(client).create(made)
    return {"Authorization": f"Bearer {text}"}


async def submit(client: Client, headers: dict[str, str], **fields: Any) -> httpx.Response:
    return await client.post("/text2image", json={"prompt": "a picture", **fields}, headers=headers)


def last_event(stream: str) -> tuple[str, Any]:
    """The name and the data of the last event of a whole stream."""
    fields = dict(line.split(": ", 1) for line in stream.strip().split("\n\n")[-1].splitlines())
    return fields["event"], json.loads(fields["data"])


async def finished(client: Client, headers: dict[str, str], **fields: Any) -> dict[str, Any]:
    answer = await submit(client, headers | {"Prefer": "wait=60"}, **fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# -- every route -------------------------------------------------------------------------------------------------------


def leaves(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "effective_candidates", None)
        yield from leaves(inner()) if inner is not None else (route,)


def needs_of(route: Any) -> list[Needs]:
    found, waiting = [], [route.dependant]
    while waiting:
        dependant = waiting.pop()
        waiting += dependant.dependencies
        found += [dependant.call] if isinstance(dependant.call, Needs) else []
    return found


def test_every_route_has_a_scope_or_is_on_the_public_list(shipped: Catalog, tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path), shipped)
    walked = [(it.path, needs_of(it) if hasattr(it, "dependant") else []) for it in leaves(app.routes)]
    assert {path for path, needs in walked if not needs} <= PUBLIC
    assert len(walked) > 40
    assert not PUBLIC & {path for path, needs in walked if needs}


def test_every_operation_declares_how_to_send_a_key(shipped: Catalog, tmp_path: Path) -> None:
    document = create_app(Settings(data_dir=tmp_path), shipped).openapi()
    schemes = document["components"]["securitySchemes"]
    assert {(it["type"], it.get("scheme") or it.get("name")) for it in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in PUBLIC:
                assert operation["security"] == []
            else:
                assert operation["security"] == [{name: []} for name in schemes]
                assert {"401", "403"} <= set(operation["responses"])
                # A key with a rate may be refused anywhere.
                refused = operation["responses"]["429"]
                assert set(refused["headers"]) >= {"Retry-After", "RateLimit-Policy", "RateLimit"}
                assert "limit_reached" in refused["description"]


#: The scopes of each operation that asks for more than to see.
MORE = {
    "metrics": READ | ADMIN,
    **dict.fromkeys(("list_keys", "create_key", "rotate_key", "revoke_key"), MANAGE),
    **dict.fromkeys(("text2image", "image2image", "plan", "cancel_task", "delete_task", "replay_task"), MAKE),
    **dict.fromkeys(("replay_delivery",), MAKE),
    **dict.fromkeys(("clear_queue", "pull_model", "cancel_pull", "load_model", "unload_model"), MANAGE),
    **dict.fromkeys(("unload_this_model", "create_model", "patch_model", "update_model", "delete_model"), MANAGE),
    **dict.fromkeys(("get_settings", "patch_settings", "update_settings", "get_config_status"), MANAGE),
    **dict.fromkeys(("get_aliases", "patch_aliases", "update_aliases"), MANAGE),
    **dict.fromkeys(("list_config_versions", "diff_config", "rollback_config"), MANAGE),
}


def operations(app: FastAPI) -> Iterator[tuple[str, str, str]]:
    for path, by_method in app.openapi()["paths"].items():
        for method, operation in by_method.items():
            if path not in PUBLIC:
                yield operation["operationId"], method.upper(), path.replace("{", "").replace("}", "")


async def test_no_operation_answers_without_a_key_or_with_the_wrong_scope(client: Client) -> None:
    keys = {scope: await key(client, scope, scope) for scope in Scope}
    for operation, method, path in operations(client.app):
        # The body is not JSON: the key is checked before anything is read.
        async def status(headers: dict[str, str], method: str = method, path: str = path) -> tuple[int, str]:
            answer = await client.request(method, path, content=b"{", headers=headers)
            assert answer.headers["content-type"] == "application/problem+json"
            assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
            return answer.status_code, answer.json()["code"]

        for headers in ({}, {"Authorization": "Bearer ig_x"}, {"X-API-Key": "x" * 5000}, {"Authorization": "Basic a"}):
            assert await status(headers) == (401, "unauthorized"), operation
        for scope in Scope:
            if scope not in MORE.get(operation, SEE):
                assert await status(keys[scope]) == (403, "forbidden"), operation
    assert set(MORE) <= {operation for operation, _, _ in operations(client.app)}


async def test_a_key_opens_what_its_scopes_allow(client: Client) -> None:
    keys = {scope: await key(client, scope, scope) for scope in Scope}
    bearer = keys[Scope.GENERATE]["Authorization"].removeprefix("Bearer ")
    assert (await client.get("/tasks", headers={"X-API-Key": bearer})).status_code == 200
    assert (await client.get("/tasks", headers={"Authorization": f"bearer  {bearer} "})).status_code == 200
    for scope, path, status in (
        (Scope.GENERATE, "/health", 200),
        (Scope.READ, "/health", 200),
        (Scope.ADMIN, "/health", 200),
        (Scope.ADMIN, "/config/global", 200),
        (Scope.READ, "/config/global", 403),
    ):
        assert (await client.get(path, headers=keys[scope])).status_code == status
    assert (await submit(client, keys[Scope.ADMIN])).status_code == 202
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert (await client.get(path)).status_code == 200


async def test_without_keys_everything_is_open_until_the_first_key_is_made(client: Client) -> None:
    await client.submit()
    assert (await client.get("/tasks", headers={"Authorization": "Bearer sk-placeholder"})).status_code == 200
    headers = await key(client, "alice", Scope.READ)
    assert (await client.get("/tasks")).status_code == 401
    assert (await client.get("/tasks", headers=headers)).json()["total"] == 1


async def test_a_change_of_a_key_is_in_force_at_once(client: Client) -> None:
    headers = await key(client, "alice")
    assert (await client.get("/tasks", headers=headers)).status_code == 200
    await store_of(client).revoke("alice")
    assert (await client.get("/tasks", headers=headers)).status_code == 401
    assert (await client.get("/tasks")).status_code == 401  # revoking the last key opens nothing
    _, text = await store_of(client).rotate("alice")
    assert (await client.get("/tasks", headers={"X-API-Key": text})).status_code == 200
    assert (await client.get("/tasks", headers=headers)).status_code == 401
    assert (await store_of(client).get("alice")).last_used_at is not None


async def test_an_expired_key_opens_nothing(client: Client) -> None:
    headers = await key(client, "alice", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert (await client.get("/tasks", headers=headers)).status_code == 401


# -- owners ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def alice(client: Client) -> dict[str, str]:
    return await key(client, "alice")


@pytest.fixture
async def bob(client: Client) -> dict[str, str]:
    return await key(client, "bob")


async def test_nothing_of_another_owner_exists(client: Client, alice: dict[str, str], bob: dict[str, str]) -> None:
    task = await finished(client, alice)
    links, image = task["links"], task["images"][0]["url"]
    for method, path in (
        *(("GET", links[name]) for name in ("self", "events", "bundle")),
        *(("POST", links[name]) for name in ("cancel", "replay")),
        ("DELETE", links["self"]),
        ("GET", image),
        ("HEAD", image),
    ):
        assert (await client.request(method, path, headers=bob)).status_code == 404, path
    listed = (await client.get("/tasks", headers=bob)).json()
    assert (listed["tasks"], listed["total"], listed["filtered"]) == ([], 0, 0)
    assert (await client.get(image, headers=alice)).status_code == 200
    assert (await client.get("/tasks", headers=alice)).json()["total"] == 1


async def test_read_sees_all_and_changes_nothing(client: Client, alice: dict[str, str]) -> None:
    reader = await key(client, "reader", Scope.READ, Scope.GENERATE)
    task = await finished(client, alice)
    assert (await client.get(task["images"][0]["url"], headers=reader)).status_code == 200
    for method, path in (("DELETE", task["links"]["self"]), ("POST", task["links"]["cancel"])):
        answer = await client.request(method, path, headers=reader)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    replayed = await client.post(task["links"]["replay"], headers=reader)
    assert replayed.status_code == 202
    assert (await client.get(replayed.json()["links"]["self"], headers=alice)).status_code == 404  # the reader's own
    admin = await key(client, "admin", Scope.ADMIN)
    assert (await client.delete(task["links"]["self"], headers=admin)).status_code == 204


async def test_each_owner_follows_its_own_events(client: Client, alice: dict[str, str], bob: dict[str, str]) -> None:
    service = client.app.state.services.service
    access = client.app.state.services.access
    who = await access.owner(bob["Authorization"].removeprefix("Bearer "))
    names, tasks = [], set()
    events: AsyncIterator[Any] = service.everything(who)
    async with asyncio.timeout(60):
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await finished(client, alice)
        own = (await finished(client, bob))["task_id"]
        arrived = await first
        while True:
            names += [published.event.name for published in arrived]
            tasks |= {getattr(published.event, "task_id", own) for published in arrived}
            if arrived and arrived[-1].event.final:
                break
            arrived = await anext(events)
    assert tasks == {own}
    assert "model_loaded" in names  # of the task of alice: models belong to all
    assert names[-1] == "completed"


@pytest.mark.parametrize("of", ["all", "task"])
async def test_a_stream_ends_when_its_key_is_revoked_or_expires(start: Start, of: str) -> None:
    """`of`: whose events are followed."""
    slow = {"fake": {"step_seconds": 0.02, "steps": 200}}
    async with start(models=slow, drain_timeout_s=0, housekeeping_s=0.02) as client:
        soon, names = datetime.now(UTC) + timedelta(seconds=3), ("revoked", "rotated", "expires", "stays")
        own = {name: await key(client, name, expires_at=soon if name == "expires" else None) for name in names}
        streams = {}
        for name, headers in own.items():
            task_id = (await submit(client, headers)).json()["task_id"]
            path = "/events" if of == "all" else f"/task/{task_id}/events"
            streams[name] = asyncio.create_task(client.get(path, headers=headers))
        while client.app.state.services.bus.subscribers < len(own):
            await asyncio.sleep(0.01)
        await store_of(client).revoke("revoked")
        await store_of(client).rotate("rotated")
        ended = {name: last_event((await streams[name]).text) for name in ("revoked", "rotated", "expires")}
        assert ended == {
            "revoked": ("closed", {"type": "closed", "reason": "key_revoked"}),
            "rotated": ("closed", {"type": "closed", "reason": "key_revoked"}),
            "expires": ("closed", {"type": "closed", "reason": "key_expired"}),
        }
        assert not streams["stays"].done()
        reader = await key(client, "reader", Scope.READ)
        listed = (await client.get("/tasks", headers=reader)).json()["tasks"]
        assert {task["status"] for task in listed} == {"pending", "processing"}  # the tasks go on
    assert last_event((await streams["stays"]).text) == ("closed", {"type": "closed", "reason": "stopping"})


async def test_streams_are_counted_by_key_wherever_it_is_used(start: Start) -> None:
    async with start(max_event_streams_per_caller=1) as client:
        alice, bob = await key(client, "alice"), await key(client, "bob")
        with client.app.state.streams.one(Owner(name="alice"), "192.0.2.1"):
            refused = await client.get("/events", headers=alice)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
            task_id = (await submit(client, bob)).json()["task_id"]
            assert (await client.get(f"/task/{task_id}/events", headers=bob)).status_code == 200


async def test_streams_without_a_key_end_once_a_key_is_required(start: Start) -> None:
    async with start(housekeeping_s=0.02) as client:
        stream = asyncio.create_task(client.get("/events"))
        while not client.app.state.services.bus.subscribers:
            await asyncio.sleep(0.01)
        await key(client, "alice")
        assert last_event((await stream).text) == ("closed", {"type": "closed", "reason": "key_required"})


async def test_deliveries_belong_to_the_owner_of_their_task(start: Start) -> None:
    with receiving() as receiver:
        async with start(**hooks(receiver)) as client:
            alice, bob = await key(client, "alice"), await key(client, "bob")
            reader = await key(client, "reader", Scope.READ, Scope.GENERATE)
            await finished(client, alice, webhook_url=receiver.url())
            (mine,) = (await client.get("/webhooks/deliveries", headers=alice)).json()["deliveries"]
            assert "owner" not in mine
            assert (await client.get("/webhooks/deliveries", headers=bob)).json()["deliveries"] == []
            path = f"/webhooks/deliveries/{mine['id']}"
            for headers, seen, replayed in ((alice, 200, 202), (bob, 404, 404), (reader, 200, 403)):
                assert (await client.get(path, headers=headers)).status_code == seen
                assert (await client.post(f"{path}/replay", headers=headers)).status_code == replayed


# -- what a key allows -------------------------------------------------------------------------------------------------


async def test_a_key_may_be_for_some_models_only(start: Start) -> None:
    async with start(models={"a": {}, "b": {}}) as client:
        alice = await key(client, "alice", models=("a",))
        assert (await submit(client, alice)).status_code == 202
        for path in ("/text2image", "/plan"):
            answer = await client.post(path, json={"prompt": "x", "model": "b"}, headers=alice)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        admin = await key(client, "admin", Scope.ADMIN)
        other = await finished(client, admin, model="b")
        both = await key(client, "both", Scope.GENERATE, Scope.READ, models=("a",))
        assert (await client.post(other["links"]["replay"], headers=both)).status_code == 403


async def test_a_key_may_have_a_floor_for_its_priority(client: Client) -> None:
    alice = await key(client, "alice", priority_floor=5)
    assert [(await finished(client, alice, priority=it))["priority"] for it in (-10, 5, 7)] == [5, 5, 7]


# -- the file of keys --------------------------------------------------------------------------------------------------


async def test_keys_may_come_from_a_file(start: Start, tmp_path: Path) -> None:
    ours, text = new_key("alice", (Scope.READ,))
    elsewhere = "secret-of-a-vault-0123456789-abcdef"
    file = tmp_path / "keys.yaml"
    file.write_text(
        f"""
keys:
  - {{name: alice, sha256: {ours.sha256}, scopes: [read]}}
  - {{name: bob, key: {elsewhere}, models: [fake], limits: {{queued: 3}}}}
"""
    )
    async with start(keys_file=file) as client:
        assert (await client.get("/tasks")).status_code == 401
        assert (await client.get("/tasks", headers={"X-API-Key": text})).status_code == 200
        assert (await submit(client, {"X-API-Key": text})).status_code == 403
        assert (await submit(client, {"X-API-Key": elsewhere})).status_code == 202
        await key(client, "carol")
    assert read_keys(file)[1].limits == KeyLimits(queued=3)


async def test_no_other_key_gets_the_name_and_with_it_the_tasks_of_a_key_in_the_file(
    start: Start, tmp_path: Path
) -> None:
    admin, file = new_key_text(), tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: alice, key: {admin}, scopes: [admin]}}]")
    async with start(keys_file=file) as client:
        refused = await client.post("/keys", json={"name": "alice"}, headers={"X-API-Key": admin})
        assert (refused.status_code, refused.json()["code"]) == (409, "key_exists")
        assert "IMAGEGEN_KEYS_FILE" in refused.json()["detail"]
        # A command without the setting does not know the file. Its key is not valid while the service runs.
        other = KeyStore(client.app.state.lifecycle._journal._database)
        another, text = new_key("alice", (Scope.ADMIN,))
        await other.create(another)
        assert (await client.get("/tasks", headers={"X-API-Key": text})).status_code == 401
        assert (await client.get("/tasks", headers={"X-API-Key": admin})).status_code == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: [{name: a, key: short-secret}]", "keys.0.key: "),
        ("keys: [{name: a, key: a-secret-a-secret-a-secret-a-secret, webhook_secret: secret-a}]", "must be whsec_ and"),
        ("keys: [{name: a}]", "give either key or sha256"),
        ("keys: [{name: a, sha256: 12}]", "keys.0.sha256: "),
        ("keys: [{name: a, key: a-secret-a-secret-a-secret-a-secret, scopes: [all]}]", "keys.0.scopes.0: "),
        ('{"keys": [{"name": "a", "key": "a-secret-a-secret-a-secret-a-secret", "color": 1}]}', "keys.0.color: "),
        ("keys: &a [*a]", ":1: the file is neither YAML nor JSON."),
        ("[", "the file is neither YAML nor JSON."),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_its_secrets(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(KeysFileInvalid) as refused:
        read_keys(file)
    assert words in refused.value.detail
    assert "secret-a" not in refused.value.detail
    assert "short-secret" not in refused.value.detail


def test_a_file_of_keys_must_be_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(KeysFileInvalid):
            read_keys(path)


async def test_no_answer_has_the_text_of_a_key(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    canary = await key(client, "canary", Scope.ADMIN)
    text = canary["Authorization"].removeprefix("Bearer ")
    for _, method, path in operations(client.app):
        if not path.endswith("/events"):
            answer = await client.request(method, path, headers=canary, content=b"{")
            assert text not in answer.text + json.dumps(dict(answer.headers))
    assert text not in caplog.text + json.dumps(client.app.openapi()) + repr(client.app.state.services)


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_spent_budget_is_429_with_what_is_left(client: Client) -> None:
    alice = await key(client, "alice", limits=KeyLimits(images_per_day=2))
    await finished(client, alice, batch_size=2)
    answer = await submit(client, alice)
    assert (answer.status_code, answer.json()["code"]) == (429, "limit_reached")
    assert 0 < int(answer.headers["retry-after"]) <= 86_400
    assert answer.headers["ratelimit-policy"] == '"images";q=2;w=86400'
    assert answer.headers["ratelimit"] == f'"images";r=0;t={answer.headers["retry-after"]}'


async def test_a_failed_task_gives_its_pictures_back_and_device_seconds_are_measured(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.01}}) as client:
        alice = await key(client, "alice", limits=KeyLimits(images_per_day=2, device_seconds_per_day=1000))
        waiting = await submit(client, alice, steps=200)
        cancelled = await client.post(waiting.json()["links"]["cancel"], headers=alice)
        assert cancelled.status_code == 200
        await finished(client, alice, steps=5)
        used = await client.app.state.lifecycle._journal.budgets.used("alice")
        assert (used.queued, used.images) == (0, 1)
        assert used.device_s > 0.04  # five steps of the fake model


async def test_waiting_tasks_are_limited(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.05}}) as client:
        alice, bob = await key(client, "alice", limits=KeyLimits(queued=1)), await key(client, "bob")
        running = (await submit(client, alice, steps=100)).json()
        while (await client.get(running["links"]["self"], headers=alice)).json()["status"] == "pending":
            await asyncio.sleep(0.01)
        assert (await submit(client, alice)).status_code == 202
        answer = await submit(client, alice)
        assert (answer.status_code, answer.headers["ratelimit"]) == (429, '"queued";r=0')
        assert int(answer.headers["retry-after"]) > 0
        assert (await submit(client, bob)).status_code == 202
        await client.post(running["links"]["cancel"], headers=alice)


async def test_the_rate_of_requests_is_limited(client: Client) -> None:
    alice = await key(client, "alice", limits=KeyLimits(rate_per_minute=3))
    bob = await key(client, "bob", limits=KeyLimits(rate_per_minute=3))
    answers = [(await client.get("/tasks", headers=alice)) for _ in range(4)]
    assert [it.status_code for it in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["ratelimit-policy"] == '"rate";q=3;w=60'
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert (await client.get("/tasks", headers=bob)).status_code == 200


# -- keys over HTTP ----------------------------------------------------------------------------------------------------


async def test_an_administrator_makes_rotates_and_revokes_keys(client: Client) -> None:
    admin = await key(client, "admin", Scope.ADMIN)
    body = {"name": "alice", "scopes": ["generate"], "limits": {"images_per_day": 3}, "webhook_secret": True}
    made = await client.post("/keys", json=body, headers=admin)
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    alice = {"X-API-Key": made.json()["key"]}
    assert made.json()["webhook_secret"].startswith("whsec_")
    assert (await client.post("/keys", json=body, headers=admin)).status_code == 409
    listed = await client.get("/keys", headers=admin)
    assert [(it["name"], it["state"]) for it in listed.json()["keys"]] == [("admin", "valid"), ("alice", "valid")]
    for secret in (made.json()["key"], made.json()["webhook_secret"], "sha256"):
        assert secret not in listed.text
    rotated = (await client.post("/keys/alice/rotate", headers=admin)).json()
    assert (await client.get("/keys/me", headers=alice)).status_code == 401
    alice = {"X-API-Key": rotated["key"]}
    assert (await client.get("/keys/me", headers=alice)).json()["name"] == "alice"
    assert (await client.delete("/keys/alice", headers=admin)).json()["state"] == "revoked"
    assert (await client.get("/keys/me", headers=alice)).status_code == 401
    assert (await client.delete("/keys/admin", headers=admin)).status_code == 403
    assert (await client.delete("/keys/nobody", headers=admin)).status_code == 404
    assert (await client.post("/keys", json={"name": "me"}, headers=admin)).status_code == 422


async def test_another_key_does_not_exist(client: Client, alice: dict[str, str], bob: dict[str, str]) -> None:
    assert (await client.get("/keys/alice", headers=alice)).json()["scopes"] == ["generate"]
    assert (await client.get("/keys/alice", headers=bob)).status_code == 404
    assert (await client.get("/keys/nobody", headers=bob)).status_code == 404
    assert (await client.get("/keys", headers=bob)).status_code == 403


async def test_a_key_sees_what_is_left_of_its_limits(client: Client) -> None:
    limits = KeyLimits(queued=5, images_per_day=10, device_seconds_per_day=100, rate_per_minute=50)
    alice = await key(client, "alice", limits=limits)
    await finished(client, alice, batch_size=3)
    me = (await client.get("/keys/me", headers=alice)).json()
    left = {it["name"]: it["remaining"] for it in me["left"]}
    assert (left["queued"], left["images"], left["rate"]) == (5, 7, 48)
    assert 99 < left["device-seconds"] < 100
    assert (me["name"], me["scopes"]) == ("alice", ["generate"])


async def test_without_keys_the_caller_has_no_name(client: Client) -> None:
    assert (await client.get("/keys/me")).json() == {
        "name": None,
        "scopes": ["admin", "generate", "read"],
        "models": [],
        "priority_floor": None,
        "left": [],
    }


# -- signed URLs -------------------------------------------------------------------------------------------------------


async def test_a_signed_url_opens_one_picture_without_a_key(
    client: Client, alice: dict[str, str], bob: dict[str, str]
) -> None:
    first, second = (await finished(client, alice, batch_size=2))["images"]
    signed = (await client.get(f"{first['url']}/url", headers=alice)).json()
    assert signed["url"].startswith(f"{first['url']}?token=")
    for method in ("GET", "HEAD"):
        answer = await client.request(method, signed["url"])
        assert (answer.status_code, answer.headers["cache-control"][:7]) == (200, "private")
    token = signed["url"].partition("?")[2]
    for path in (second["url"], "/tasks", "/keys/me", first["url"] + "/url"):
        assert (await client.get(f"{path}?{token}")).status_code == 401, path
    for wrong in (token[:-1] + ("0" if token[-1] != "0" else "1"), "token=9.x", "token=x", "token=\u00e9.\u00e9"):
        assert (await client.get(f"{first['url']}?{wrong}")).status_code == 401
    assert (await client.get(f"{first['url']}/url", headers=bob)).status_code == 404


async def test_a_signed_url_expires(client: Client, alice: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = (await finished(client, alice))["images"]
    signed = (await client.get(f"{image['url']}/url", params={"minutes": 1}, headers=alice)).json()
    assert (await client.get(signed["url"])).status_code == 200
    later = time.time() + 61
    monkeypatch.setattr("imagegen.service.access.time.time", lambda: later)
    assert (await client.get(signed["url"])).status_code == 401


async def test_pictures_are_public_for_caches_only_without_keys(client: Client) -> None:
    task = await client.until(await client.submit())
    url = task["images"][0]["url"]
    assert (await client.get(url)).headers["cache-control"].startswith("public")
    reader = await key(client, "reader", Scope.READ)
    assert (await client.get(url, headers=reader)).headers["cache-control"].startswith("private")


# -- webhooks and front ends -------------------------------------------------------------------------------------------


async def test_a_key_may_have_a_webhook_secret_of_its_own(start: Start) -> None:
    own = new_webhook_secret()
    with receiving() as receiver:
        async with start(**hooks(receiver)) as client:
            alice, bob = await key(client, "alice", webhook_secret=own), await key(client, "bob")
            await finished(client, alice, webhook_url=receiver.url("/alice"))
            await finished(client, bob, webhook_url=receiver.url("/bob"))
            while not (receiver.at("/alice") and receiver.at("/bob")):
                await asyncio.sleep(0.01)
    assert receiver.at("/alice")[0].verified(own)["type"] == "task.completed"
    with pytest.raises(WebhookVerificationError):
        receiver.at("/alice")[0].verified()
    assert receiver.at("/bob")[0].verified()["type"] == "task.completed"


async def test_a_key_of_the_file_may_have_a_webhook_secret_of_its_own(start: Start, tmp_path: Path) -> None:
    own, text, file = new_webhook_secret(), new_key_text(), tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: alice, key: {text}, webhook_secret: {own}}}]")
    with receiving() as receiver:
        async with start(keys_file=file, **hooks(receiver)) as client:
            await finished(client, {"X-API-Key": text}, webhook_url=receiver.url("/alice"))
            while not receiver.at("/alice"):
                await asyncio.sleep(0.01)
    assert receiver.at("/alice")[0].verified(own)["type"] == "task.completed"


APP = "https://app.example.com"


async def test_other_origins_are_refused_by_default(client: Client) -> None:
    headers = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in (await client.options("/text2image", headers=headers)).headers
    assert (await submit(client, {"Origin": APP})).status_code == 403


async def test_named_front_ends_may_use_the_service(start: Start) -> None:
    async with start(cors_origins=f"{APP}, http://localhost:3000") as client:
        alice = await key(client, "alice")
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = await client.options("/text2image", headers={"Origin": APP} | asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, APP)
        assert "access-control-allow-credentials" not in preflight.headers
        browser = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
        answer = await submit(client, alice | browser)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, APP)
        assert (await submit(client, browser)).status_code == 401
        other = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert (await submit(client, alice | other)).status_code == 403
