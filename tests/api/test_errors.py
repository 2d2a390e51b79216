"""The errors of another API: every kind of error below its prefix has its own body."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from imagegen.api.bounded import BoundedRoute
from imagegen.api.native.shared import RequestBody
from imagegen.api.problems import MEDIA_TYPE, Problem, render_errors
from imagegen.core.errors import QueueFull
from tests.api.conftest import Client, Start

JSON = {"content-type": "application/json"}
#: Between the limit of the second router below and that of the service.
LARGE = b'{"prompt": "' + b"x" * 5000 + b'"}'

ERRORS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "a field that is wrong": ("POST", "/pictures", {"json": {"prompt": 3}}, 422, "invalid_request"),
    "a body that is no JSON": ("POST", "/pictures", {"content": b"{", "headers": JSON}, 400, "malformed_body"),
    "a body of another type": ("POST", "/pictures", {"data": {"prompt": "x"}}, 415, "unsupported_media_type"),
    "too many values": ("POST", "/pictures", {"json": [[]] * 10_001}, 400, "malformed_body"),
    "an error with a code": ("POST", "/pictures", {"json": {"prompt": "full"}}, 503, "queue_full"),
    "an unexpected error": ("POST", "/pictures", {"json": {"prompt": "bug"}}, 500, "internal_error"),
    "no such path": ("GET", "/nothing", {}, 404, "not_found"),
    "the prefix itself": ("GET", "", {}, 404, "not_found"),
    "another method": ("GET", "/pictures", {}, 405, "method_not_allowed"),
    "over the limit of the service": ("POST", "/pictures", {"content": b"x" * 70_000}, 413, "body_too_large"),
    "over the limit of the router": ("POST", "/small", {"content": LARGE, "headers": JSON}, 413, "body_too_large"),
    "a web page of another origin": (
        *("POST", "/pictures", {"headers": {"sec-fetch-site": "cross-site"}}),
        *(403, "cross_origin"),
    ),
    "a foreign host name": ("GET", "/pictures", {"headers": {"host": "evil.example"}}, 421, "unknown_host"),
}


class Body(RequestBody):
    prompt: str


def answer(body: Body) -> None:
    if body.prompt == "full":
        raise QueueFull(retry_after=3)
    raise RuntimeError("secret")


def render(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    field = problem.errors[0].loc if problem.errors else None
    error = {"message": problem.detail, "param": field, "code": problem.code}
    return JSONResponse({"error": error}, problem.status, headers)


def render_deeper(problem: Problem, headers: Mapping[str, str] | None) -> Response:
    return JSONResponse({"deeper": problem.code}, problem.status, headers)


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    """The service with two more APIs of the same routes; only that below /other has a renderer."""
    async with start(max_body_bytes=65_536) as running:
        for prefix in ("/other", "/otherwise"):
            router = APIRouter(prefix=prefix, route_class=BoundedRoute)
            router.post("/pictures")(answer)
            small = APIRouter(prefix=prefix)
            small.post("/small")(answer)
            running.app.include_router(router)
            running.app.include_router(small, max_body_size=4096)
        render_errors(running.app, "/other", render)
        yield running


@pytest.mark.parametrize("kind", ERRORS)
async def test_every_error_below_a_prefix_is_made_by_its_renderer(client: Client, kind: str) -> None:
    method, path, request, status, code = ERRORS[kind]
    answer = await client.request(method, f"/other{path}", **request)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"]["code"] == code
    assert "secret" not in answer.text


@pytest.mark.parametrize("kind", ERRORS)
async def test_a_path_that_only_begins_with_the_same_letters_has_problem_details(client: Client, kind: str) -> None:
    method, path, request, status, code = ERRORS[kind]
    answer = await client.request(method, f"/otherwise{path}", **request)
    assert (answer.status_code, answer.headers["content-type"]) == (status, MEDIA_TYPE)
    assert answer.json()["code"] == code


async def test_a_renderer_gets_the_wrong_field_and_the_headers(client: Client) -> None:
    invalid = await client.post("/other/pictures", json={"prompt": 3})
    assert invalid.json()["error"]["param"] == "body.prompt"
    full = await client.post("/other/pictures", json={"prompt": "full"})
    assert full.headers["retry-after"] == "3"
    other_method = await client.get("/other/pictures")
    assert other_method.headers["allow"] == "POST"


async def test_the_longest_prefix_counts(client: Client) -> None:
    render_errors(client.app, "/other/deeper", render_deeper)
    assert (await client.get("/other/deeper/x")).json() == {"deeper": "not_found"}
    assert list((await client.get("/other/deep")).json()) == ["error"]
