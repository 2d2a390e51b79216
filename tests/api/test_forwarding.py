"""Behind a proxy: whose headers count, and where the paths and URLs of answers lead."""

import asyncio
import base64
import json
import re
from typing import Any

import pytest

from imagegen.core.keys import Scope
from tests.api.conftest import Client, Start
from tests.api.test_generation import picture
from tests.api.test_keys import key
from tests.api.test_mcp import connected, facts
from tests.receiver import hooks, receiving

#: What a proxy says about a request for https://img.example.com/imagegen/.
SAID = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "img.example.com",
    "X-Forwarded-Prefix": "/imagegen",
}
PUBLIC = "https://img.example.com/imagegen"
#: The address of the client in these tests.
TRUSTED: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"], "allowed_hosts": ["img.example.com"]}
BELOW: dict[str, Any] = {"root_path": "/imagegen"}


async def replicate_url(client: Client, headers: dict[str, str] | None = None) -> str:
    """The URL of a prediction, as the API of Replicate gives it: with everything that is known about the caller."""
    asked = {"input": {"prompt": "a fox", "num_inference_steps": 1}}
    answer = await client.post("/v1/models/imagegen/fake/predictions", json=asked, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["urls"]["get"]).rpartition("/v1/")[0]


async def paths_in(client: Client, headers: dict[str, str] | None = None) -> set[str]:
    """What comes before `/task/`, `/images/` and so on in everything that answers have about a task."""
    accepted = await client.post("/text2image", json={"prompt": "x"}, headers=headers)
    assert accepted.status_code == 202, accepted.text
    task_id = accepted.json()["task_id"]
    events = await client.get(f"/task/{task_id}/events", headers=headers)
    view = await client.get(f"/task/{task_id}", headers=headers)
    waited = await client.post("/text2image", json={"prompt": "x"}, headers={**(headers or {}), "Prefer": "wait=9"})
    listed = await client.get("/tasks?limit=1", headers=headers)
    file = view.json()["result_files"][0]
    signed = await client.get(f"/images/{file}/url", headers=headers)
    refused = await client.get("/task/unknown", headers=headers)
    urls = [
        accepted.headers["location"],
        *accepted.json()["links"].values(),
        *view.json()["links"].values(),
        view.json()["images"][0]["url"],
        waited.headers["content-location"],
        waited.json()["images"][0]["url"],
        re.search("<(.*)>", listed.headers["link"])[1],  # type: ignore[index]
        listed.json()["tasks"][0]["links"]["self"],
        *(it["url"] for data in re.findall(r"data: (.*)", events.text) for it in json.loads(data).get("images", [])),
        signed.json()["url"],
        refused.json()["type"],
    ]
    assert len(urls) > 18
    return {re.sub(r"/(task|tasks|images|docs)[/?].*", "", url) for url in urls}


async def test_what_an_untrusted_caller_says_changes_nothing(start: Start) -> None:
    for settings in ({}, {"trusted_proxies": ["10.1.0.0/16"]}):
        async with start(**settings, allowed_hosts=["img.example.com"]) as client:
            assert await replicate_url(client, SAID) == "http://127.0.0.1"
            assert await paths_in(client, SAID) == {""}
            assert (await client.get("/openapi.json", headers=SAID)).json()["servers"] == [{"url": "/"}]


async def test_what_a_trusted_proxy_says_is_in_every_path_and_url(start: Start) -> None:
    async with start(**TRUSTED) as client:
        assert await replicate_url(client, SAID) == PUBLIC
        assert await paths_in(client, SAID) == {"/imagegen"}
        assert (await client.get("/openapi.json", headers=SAID)).json()["servers"][0] == {"url": "/imagegen"}
        # Others, at the same time, are answered as before.
        assert await replicate_url(client) == "http://127.0.0.1"
        assert await paths_in(client) == {""}


async def test_a_prefix_of_the_settings_needs_no_header_and_no_header_changes_it(start: Start) -> None:
    async with start(**BELOW, **TRUSTED) as client:
        assert await paths_in(client) == {"/imagegen"}
        assert await replicate_url(client) == "http://127.0.0.1/imagegen"
        assert await paths_in(client, {"X-Forwarded-Prefix": "/other"}) == {"/imagegen"}
        assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/imagegen"}]


async def test_the_public_url_is_the_base_of_whole_urls_and_its_host_is_allowed(start: Start) -> None:
    async with start(public_url=PUBLIC) as client:
        assert await replicate_url(client) == PUBLIC
        assert await paths_in(client) == {"/imagegen"}
        assert (await client.get("/imagegen/openapi.json")).json()["servers"] == [{"url": PUBLIC}]
        assert (await client.get("/livez", headers={"Host": "img.example.com"})).status_code == 200
        assert (await client.get("/livez", headers={"Host": "other.example.com"})).status_code == 421


async def test_a_proxy_may_remove_the_prefix_or_not(start: Start) -> None:
    async with start(**BELOW) as client:
        for path in ("/livez", "/imagegen/livez", "/imagegen/", "/", "/docs/errors", "/imagegen/web/icon.svg"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/imagegenlivez", "/other/livez", "/imagegen/imagegen/livez"):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.post("/imagegen/text2image", json={"prompt": "x"})).status_code == 202
        # The page's URLs are relative, so that the slash matters.
        moved = await client.get("/imagegen")
        assert (moved.status_code, moved.headers["location"]) == (307, "http://127.0.0.1/imagegen/")


@pytest.mark.parametrize("path", ["/docs", "/imagegen/docs", "/imagegen/redoc"])
async def test_the_reference_loads_its_files_and_the_document_from_the_prefix(start: Start, path: str) -> None:
    async with start(**BELOW) as client:
        text = (await client.get(path)).text
        urls = re.findall(r"(?:src|href|spec-url|url)(?:=|: )['\"](/[^'\"]+)", text)
        assert len(urls) >= 3
        for url in urls:
            assert url.startswith("/imagegen/"), url
            assert (await client.get(url)).status_code == 200, url


@pytest.mark.parametrize(
    "prefix",
    ["imagegen", "//evil.example", "/a//b", '/"><script>', "/a?b", "/a b", "/\N{LATIN SMALL LETTER E WITH ACUTE}"],
)
async def test_a_prefix_of_the_wrong_form_is_ignored(start: Start, prefix: str) -> None:
    async with start(**TRUSTED) as client:
        headers = [(b"X-Forwarded-Prefix", prefix.encode())]
        answer = await client.get("/task/unknown", headers=headers)
        assert answer.json()["type"] == "/docs/errors/task_not_found"


@pytest.mark.parametrize("host", ["a b", "evil.example/x", "user@evil.example", "", "a:123456"])
async def test_a_host_of_the_wrong_form_is_ignored(start: Start, host: str) -> None:
    async with start(**TRUSTED) as client:
        assert await replicate_url(client, {"X-Forwarded-Host": host}) == "http://127.0.0.1"


async def test_of_several_values_the_last_counts(start: Start) -> None:
    async with start(**TRUSTED) as client:
        said = {"X-Forwarded-Host": "evil.example, img.example.com", "X-Forwarded-Prefix": "/evil, /imagegen"}
        assert await replicate_url(client, said) == "http://img.example.com/imagegen"


async def test_a_forwarded_host_must_be_allowed_like_any_other(start: Start) -> None:
    async with start(trusted_proxies=["127.0.0.1"]) as client:
        refused = await client.get("/livez", headers=SAID)
        assert (refused.status_code, refused.json()["code"]) == (421, "unknown_host")


async def test_a_page_whose_name_was_pointed_here_is_refused_whatever_it_says_about_a_proxy(start: Start) -> None:
    """Its scripts may send any header to their own origin, from the address of the browser: that of the proxy here."""
    async with start(**TRUSTED) as client:
        pointed = {"Host": "evil.example:5050", "X-Forwarded-Host": "img.example.com"}
        for headers in (pointed, pointed | {"X-Forwarded-Host": "localhost:5050"}):
            refused = await client.post("/text2image", json={"prompt": "x"}, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (421, "unknown_host")
        through = {"Host": "img.example.com", "X-Forwarded-Host": "img.example.com"}
        assert (await client.get("/livez", headers=through)).status_code == 200


async def test_a_page_of_the_public_origin_is_no_foreign_one(start: Start) -> None:
    async with start(**TRUSTED) as client:
        origin = {"Origin": "https://img.example.com"}
        body = {"prompt": "x"}
        assert (await client.post("/text2image", json=body, headers=SAID | origin)).status_code == 202
        assert (await client.post("/text2image", json=body, headers=origin)).json()["code"] == "cross_origin"


async def test_the_bounds_of_callers_without_keys_count_the_address_behind_the_proxy(start: Start) -> None:
    async with start(**TRUSTED, max_event_streams_per_caller=1, max_event_streams=3) as client:
        streams = client.app.state.streams
        with streams.one(None, "203.0.113.7"):
            assert (await client.get("/events", headers=SAID)).json()["code"] == "too_many_streams"
            spoofed = SAID | {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
            assert (await client.get("/events", headers=spoofed)).json()["code"] == "too_many_streams"
            task_id = await client.submit()
            other = SAID | {"X-Forwarded-For": "203.0.113.8"}
            assert (await client.get(f"/task/{task_id}/events", headers=other)).status_code == 200


async def test_a_signed_url_opens_its_picture_with_and_without_the_prefix(start: Start) -> None:
    async with start(**BELOW) as client:
        file = (await client.until(await client.submit()))["result_files"][0]
        who = await key(client, "alice", Scope.READ)
        url = (await client.get(f"/images/{file}/url", headers=who)).json()["url"]
        assert url.startswith(f"/imagegen/images/{file}?token=")
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url.removeprefix("/imagegen"))).status_code == 200
        assert (await client.get(url.replace("token=", "token=1"))).status_code == 401


async def test_the_own_header_of_a_key_comes_before_what_a_proxy_asks_for(start: Start) -> None:
    async with start() as client:
        text = (await key(client, "alice"))["Authorization"].partition(" ")[2]
        password = {"Authorization": f"Basic {base64.b64encode(b'people:secret').decode()}"}
        assert (await client.get("/tasks", headers=password)).status_code == 401
        assert (await client.get("/tasks", headers=password | {"X-API-Key": text})).status_code == 200


async def test_no_shared_cache_keeps_what_one_caller_may_see(start: Start) -> None:
    """Caches know `Authorization`; by `X-API-Key` they cannot tell that an answer is for one caller."""
    async with start(**TRUSTED) as client:
        admin = await key(client, "root", Scope.ADMIN)
        own = {"X-API-Key": admin["Authorization"].removeprefix("Bearer ")}
        made = await client.post("/text2image", json={"prompt": "x"}, headers=own | {"Prefer": "wait=9"})
        task = made.json()["task_id"]
        for path in (
            f"/task/{task}",
            "/tasks",
            f"/v1/predictions/{task}",
            "/models",
            "/config/global",
            "/task/unknown",
        ):
            answer = await client.get(path, headers=own)
            assert answer.headers["cache-control"] == "private, no-cache", path
        picture_of = await client.get(made.json()["images"][0]["url"], headers=own)
        assert picture_of.headers["cache-control"].startswith("private, max-age")


async def test_the_errors_of_other_apis_keep_their_form_below_the_prefix(start: Start) -> None:
    async with start(**BELOW) as client:
        for path in ("/v1/models/unknown", "/imagegen/v1/models/unknown"):
            assert set((await client.get(path)).json()) == {"error"}


async def test_urls_of_other_apis_are_below_the_prefix_and_are_taken_back_as_pictures(start: Start) -> None:
    async with start(**TRUSTED) as client:
        asked = {"model": "fake", "prompt": "x", "response_format": "url"}
        made = await client.post("/v1/images/generations", json=asked, headers=SAID)
        url = made.json()["data"][0]["url"]
        assert url.startswith(f"{PUBLIC}/images/")
        path = url.removeprefix("https://img.example.com")
        for source in (url, path, path.removeprefix("/imagegen")):
            body = {"input": {"prompt": "x", "image": source, "num_inference_steps": 1}}
            again = await client.post("/v1/models/imagegen/fake/predictions", json=body, headers=SAID)
            assert again.status_code == 201, again.text
        for source in (url.replace("img.", "other."), f"{PUBLIC}/other/images/a/b.png", f"{PUBLIC}/task/x"):
            body = {"input": {"prompt": "x", "image": source}}
            refused = await client.post("/v1/models/imagegen/fake/predictions", json=body, headers=SAID)
            assert refused.status_code == 422, source


async def test_a_tool_of_mcp_gives_whole_urls_below_the_prefix(start: Start) -> None:
    async with start(**TRUSTED) as client, connected(client, **SAID) as session:
        made = facts(await session.call_tool("generate_image", {"prompt": "x"}))
        url = made["pictures"][0]["url"]
        assert url.startswith(f"{PUBLIC}/images/")
        edited = await session.call_tool("edit_image", {"prompt": "x", "image": url})
        assert facts(edited)["status"] == "completed"


async def test_webhooks_have_the_prefix_of_the_settings(start: Start) -> None:
    with receiving() as receiver:
        async with start(**BELOW, **hooks(receiver)) as client:
            await client.submit(webhook_url=receiver.url())
            [sent] = await asyncio.to_thread(receiver.until, "/")
        body = json.loads(sent.body)
        assert body["data"]["links"]["self"].startswith("/imagegen/task/")
        assert body["data"]["images"][0]["url"].startswith("/imagegen/images/")


async def test_an_upload_below_the_prefix_has_the_limit_of_uploads(start: Start) -> None:
    async with start(**BELOW) as client:
        big = picture((900, 900), "BMP")
        assert len(big) > 2_000_000
        answer = await client.post("/imagegen/image2image", json={"prompt": "x", "image": big})
        assert answer.status_code == 202, answer.text
        refused = await client.post("/imagegen/text2image", json={"prompt": "x" * 1_100_000})
        assert refused.json()["code"] == "body_too_large"
