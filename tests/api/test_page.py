"""GET / and /web: the page, its policy and its files."""

import pytest

from imagegen.api.web.routes import FOLDER
from tests.api.conftest import Client, Start
from tests.s3 import Bucket


async def test_the_page_is_at_the_root_under_a_strict_policy(client: Client) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.text == (FOLDER / "index.html").read_text()
    policy, _ = answer.headers.get_list("content-security-policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' blob: data:"
    assert "unsafe" not in policy
    for name in ("web/main.mjs", "web/style.css", "web/icon.svg"):
        assert name in answer.text
        assert (await client.get(f"/{name}")).status_code == 200


async def test_files_are_asked_for_again_and_sent_when_they_changed(client: Client) -> None:
    first = await client.get("/web/views/create.mjs")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["content-encoding"] == "gzip"
    assert first.headers["cache-control"] == "no-cache"
    assert first.text == (FOLDER / "views" / "create.mjs").read_text()
    again = await client.get("/web/views/create.mjs", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = await client.get("/web/views/create.mjs", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == first.text


@pytest.mark.parametrize(
    "name",
    [
        "routes.py",
        "__init__.py",
        "vendor/vendored.json",
        "..%2Froutes.py",
        "%2e%2e/%2e%2e/app.py",
        "views/",
        "nothing.mjs",
    ],
)
async def test_there_is_nothing_else_below_web(client: Client, name: str) -> None:
    assert (await client.get(f"/web/{name}")).status_code == 404


async def test_pictures_may_come_from_the_bucket_that_callers_are_sent_to(start: Start, bucket: Bucket) -> None:
    async with start(store=bucket.address, store_urls="presigned") as client:
        task = await client.until(await client.submit())
        redirect = await client.get(task["images"][0]["url"])
        origin = redirect.headers["location"].split("/")[:3]
        policy = (await client.get("/")).headers.get_list("content-security-policy")[0]
        assert f"img-src 'self' blob: data: {'/'.join(origin)};" in policy
        assert f"connect-src 'self' {'/'.join(origin)};" in policy
