"""GET /images, with the same headers for a folder and for a bucket."""

import base64
import hashlib
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin

from imagegen.storage import folder, s3
from tests.api.conftest import Client, Start
from tests.s3 import SECRET, Bucket


@pytest.fixture(params=["folder", "bucket"])
async def client(request: pytest.FixtureRequest, start: Start) -> AsyncIterator[Client]:
    settings = {"store": request.getfixturevalue("bucket").address} if request.param == "bucket" else {}
    async with start(**settings) as running:
        yield running


async def picture(client: Client, **fields: Any) -> str:
    """Make a picture and return its URL."""
    task = await client.until(await client.submit(**fields))
    assert task["status"] == "completed", task
    return str(task["images"][0]["url"])


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


async def test_a_picture_has_the_headers_for_caches_browsers_and_verification(client: Client) -> None:
    url = await picture(client)
    answer = await client.get(url)
    assert answer.content.startswith(b"\x89PNG")
    assert {name: answer.headers[name] for name in answer.headers if name not in ("date", "x-request-id")} == {
        "accept-ranges": "bytes",
        "cache-control": "public, max-age=31536000, immutable",
        "content-digest": digest(answer.content),
        "content-disposition": f'inline; filename="{url.rpartition("/")[2]}"',
        "content-length": str(len(answer.content)),
        "content-security-policy": "default-src 'none'; sandbox",
        "content-type": "image/png",
        "etag": f'"{hashlib.sha256(answer.content).hexdigest()}"',
        "repr-digest": digest(answer.content),
        "x-content-type-options": "nosniff",
    }


async def test_head_has_the_same_headers_but_the_digest_of_a_content_that_it_has_not(client: Client) -> None:
    url = await picture(client)
    whole, head = await client.get(url), await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    del head.headers["x-request-id"], whole.headers["x-request-id"], whole.headers["content-digest"]
    assert head.headers == whole.headers
    assert (await client.head(url, headers={"range": "bytes=0-1"})).status_code == 200


async def test_a_matching_etag_gets_304(client: Client) -> None:
    url = await picture(client)
    etag = (await client.get(url)).headers["etag"]
    for tags in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        for ask in (client.get, client.head):
            answer = await ask(url, headers={"if-none-match": tags, "range": "bytes=0-1"})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
            assert "immutable" in answer.headers["cache-control"]
    for tags in ('"other"', "", etag[:-2]):
        assert (await client.get(url, headers={"if-none-match": tags})).status_code == 200


async def test_the_same_picture_has_the_same_etag_and_another_has_another(client: Client) -> None:
    urls = [await picture(client, seed=seed) for seed in (1, 1, 2)]
    etags = [(await client.head(url)).headers["etag"] for url in urls]
    assert etags[0] == etags[1] != etags[2]


async def test_a_part_is_sent_as_a_part(client: Client) -> None:
    url = await picture(client)
    whole = (await client.get(url)).content
    for header, part in (("0-7", whole[:8]), ("-5", whole[-5:]), ("10-", whole[10:])):
        answer = await client.get(url, headers={"range": f"bytes={header}"})
        assert (answer.status_code, answer.content) == (206, part)
        begin = whole.index(part)
        assert answer.headers["content-range"] == f"bytes {begin}-{begin + len(part) - 1}/{len(whole)}"
        assert answer.headers["repr-digest"] == digest(whole)
        assert "content-digest" not in answer.headers


async def test_a_range_after_the_end_is_416_with_the_size(client: Client) -> None:
    url = await picture(client)
    answer = await client.get(url, headers={"range": "bytes=9999999-"})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{(await client.head(url)).headers['content-length']}"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_several_ranges_and_invalid_ones_get_the_whole_picture(client: Client) -> None:
    url = await picture(client)
    for header in (
        "bytes=0-3,10-19",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(5000)),
        "bytes=0-,0-",
        "bytes=x",
        "lines=1-2",
    ):
        answer = await client.get(url, headers={"range": header})
        assert (answer.status_code, len(answer.content)) == (200, int(answer.headers["content-length"]))
        assert answer.headers["content-type"] == "image/png"


async def test_if_range_of_a_changed_picture_gets_all_of_it(client: Client) -> None:
    url = await picture(client)
    etag = (await client.get(url)).headers["etag"]
    for condition, status in (
        (etag, 206),
        ('"other"', 200),
        (f"W/{etag}", 200),
        ("Mon, 23 Nov 2026 00:00:00 GMT", 200),
    ):
        answer = await client.get(url, headers={"range": "bytes=0-1", "if-range": condition})
        assert answer.status_code == status, condition


async def test_large_pictures_are_read_piece_by_piece(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await picture(client)
    whole = (await client.get(url)).content
    for module in (folder, s3):
        monkeypatch.setattr(module, "PIECE", 10)
    assert (await client.get(url)).content == whole
    assert (await client.get(url, headers={"range": "bytes=3-44"})).content == whole[3:45]


async def test_records_of_earlier_versions_have_the_same_headers(client: Client) -> None:
    url = await picture(client)
    new = dict((await client.get(url, headers={"x-request-id": "same"})).headers)
    records = client.app.state.services.tasks.records
    task = await records.get(re.findall(r"[0-9a-f-]{36}", url)[0])
    old = tuple(image.evolve(sha256="", bytes=0) for image in task.images)
    await records.write(task.evolve(images=old))
    assert dict((await client.get(url, headers={"x-request-id": "same"})).headers) == new
    assert (await client.get(url, headers={"range": "bytes=0-1"})).status_code == 206


async def test_a_picture_whose_file_was_removed_is_not_found(client: Client) -> None:
    url = await picture(client)
    services = client.app.state.services
    await services.images.delete((await services.tasks.records.get(re.findall(r"[0-9a-f-]{36}", url)[0])).images)
    for ask in (client.get, client.head):
        assert (await ask(url)).status_code == 404


async def test_only_files_that_a_task_has_made_are_served(client: Client, tmp_path: Path) -> None:
    url = await picture(client)
    folder = tmp_path / "data" / "images" / "20260101"
    folder.mkdir(parents=True)
    names = [f"{'0' * 36}-0.png", url.rpartition("/")[2], url.rpartition("/")[2].replace("-0.png", "-1.png")]
    for name in names:
        (folder / name).write_bytes(b"<script>alert(1)</script>")
        answer = await client.get(f"/images/20260101/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "image_not_found")
    unknown = await client.get(url.replace("-0.png", "-1.png"))
    assert unknown.json() == answer.json()


# -- what callers send never comes back as it was ----------------------------------------------------------------------

SCRIPT = b"<script>alert(document.domain)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">' + SCRIPT + b"</svg>"


def png(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG", **options)
    return buffer.getvalue()


def png_with_text() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SCRIPT.decode())
    return png(pnginfo=text)


async def test_markup_in_an_input_picture_is_refused_or_gone_from_the_result(start: Start) -> None:
    async with start() as client:
        for refused in (SVG, b"<!doctype html>" + SCRIPT):
            body = {"prompt": "x", "image": base64.b64encode(refused).decode()}
            answer = await client.post("/image2image", json=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")
            assert b"script" not in answer.content
        for taken in (png_with_text(), png() + SCRIPT):
            body = {"prompt": "x", "image": base64.b64encode(taken).decode()}
            task = await client.until((await client.post("/image2image", json=body)).json()["task_id"])
            served = await client.get(task["images"][0]["url"])
            assert served.headers["content-type"] == "image/png"
            assert b"script" not in served.content
            # Nothing is behind the picture, and nothing in it but pixels.
            assert served.content.endswith(b"IEND\xaeB`\x82")


# -- presigned ---------------------------------------------------------------------------------------------------------


async def test_presigned_the_bucket_itself_serves_the_picture(start: Start, bucket: Bucket) -> None:
    async with start(store=bucket.address, store_urls="presigned", store_url_s=600) as client:
        url = await picture(client)
        answer = await client.get(url)
        assert (answer.status_code, answer.content) == (307, b"")
        assert answer.headers["cache-control"] == "private, max-age=300"  # half of the URL's life
        assert "X-Amz-Expires=600&" in answer.headers["location"]
        assert SECRET not in answer.headers["location"]
        head = await client.head(url)
        assert (head.status_code, head.headers["location"] != answer.headers["location"]) == (307, True)
        async with httpx.AsyncClient() as anyone:
            got = await anyone.get(answer.headers["location"])
        assert (got.content[:4], got.headers["content-type"]) == (b"\x89PNG", "image/png")
        assert (await client.get(url.replace("-0.png", "-1.png"))).status_code == 404
