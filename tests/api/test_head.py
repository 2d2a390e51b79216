"""HEAD wherever there is a GET: the same status and headers, no body."""

import re

import pytest
from fastapi import FastAPI

from tests.api.conftest import Client

#: Headers that differ from one answer to the next, and the digest of a body, which HEAD has not (RFC 9530).
CHANGING = {"date", "x-request-id", "content-digest"}
STREAMS = ("/events", "/task/{task_id}/events", "/models/{model_id}/pull/events")


def paths(app: FastAPI) -> list[str]:
    """Every path of the OpenAPI document with a GET, but those of streams."""
    return [path for path, methods in app.openapi()["paths"].items() if "get" in methods and path not in STREAMS]


async def test_every_get_has_a_head_with_the_same_headers(client: Client) -> None:
    task_id = await client.submit()
    task = await client.until(task_id)
    folder, file = task["result_files"][0].split("/")
    names = {"task_id": task_id, "model_id": "fake", "version": "1", "folder": folder, "file": file}
    found = [*paths(client.app), "/", "/docs", "/openapi.json", "/docs/errors", "/docs/errors/queue_full"]
    assert len(found) > 15
    for path in found:
        url = re.sub(r"{(\w+)}", lambda name: names.get(name[1], "x"), path)
        head, get = await client.head(url), await client.get(url)
        assert head.status_code == get.status_code != 405, url
        ours, theirs = ({k: v for k, v in it.headers.items() if k not in CHANGING} for it in (head, get))
        if path not in ("/health", "/metrics"):  # their lengths depend on what they tell
            assert ours == theirs, url
        assert head.content == b"", url


async def test_the_head_of_a_stream_ends_after_its_headers(client: Client) -> None:
    task_id = await client.submit()
    for path in ("/events", f"/task/{task_id}/events"):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(("path", "status"), [("/task/nope", 404), ("/nothing", 404), ("/text2image", 405)])
async def test_the_head_of_an_error_has_its_status_and_no_body(client: Client, path: str, status: int) -> None:
    head = await client.head(path)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers["content-type"] == "application/problem+json"


async def test_a_method_that_is_refused_is_answered_with_those_that_are_not(client: Client) -> None:
    assert (await client.delete("/livez")).headers["allow"] == "GET, HEAD"
    assert (await client.head("/text2image")).headers["allow"] == "POST"
