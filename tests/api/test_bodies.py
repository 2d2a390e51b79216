"""Bodies that are refused: each answer says what is wrong, where, and what to send instead."""

import gzip
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from imagegen.api.pages import FOLDER
from tests.api.conftest import Client, Start

JSON = {"content-type": "application/json"}


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The detail of a problem."""
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["type"] == f"/docs/errors/{code}"
    return str(answer.json()["detail"])


@pytest.mark.parametrize(
    ("path", "body", "sent"),
    [
        ("/text2image", {"data": {"prompt": "x"}}, "application/x-www-form-urlencoded"),
        ("/image2image", {"files": {"image": b"x"}, "data": {"prompt": "x"}}, "multipart/form-data"),
        ("/plan", {"content": '{"prompt": "x"}', "headers": {"content-type": "text/plain"}}, "text/plain"),
        ("/text2image", {"content": '{"prompt": "x"}'}, "no Content-Type"),
        ("/models", {"data": {"model_id": "x"}}, "application/x-www-form-urlencoded"),
    ],
)
async def test_a_body_of_another_type_is_415_and_names_json(
    client: Client, path: str, body: dict[str, object], sent: str
) -> None:
    answer = await client.post(path, **body)  # type: ignore[arg-type]
    detail = refused(answer, 415, "unsupported_media_type")
    assert "Content-Type: application/json" in detail
    assert sent in detail
    assert answer.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "application/merge-patch+json", "APPLICATION/JSON"]
)
async def test_every_kind_of_json_is_read(client: Client, kind: str) -> None:
    answer = await client.post("/plan", content='{"prompt": "x"}', headers={"content-type": kind})
    assert answer.status_code == 200


async def test_a_post_without_a_body_needs_no_type(client: Client) -> None:
    answer = await client.post("/models/unload", headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "place", "reason"),
    [
        (b"{'prompt': 'x'}", "Line 1, column 2", "JSON has double quotes, not single ones."),
        (b'{\n  "prompt": "x",\n  "seed": 7,,\n}', "Line 3, column 13", "double quotes"),
        (b"prompt=x", "Line 1, column 1", "Expecting value"),
        (b'{"prompt": "\xff"}', "byte 12", "not UTF-8"),
        (b"[" * 9000, "nested too deep", "."),
    ],
)
async def test_a_body_that_is_not_json_is_malformed_at_its_position(
    client: Client, body: bytes, place: str, reason: str
) -> None:
    detail = refused(await client.post("/text2image", content=body, headers=JSON), 400, "malformed_body")
    assert place in detail
    assert reason in detail


async def test_a_compressed_body_is_not_unpacked(client: Client) -> None:
    body = gzip.compress(b'{"prompt": "' + b"x" * 20_000_000 + b'"}', 1)
    answer = await client.post("/text2image", content=body, headers=JSON | {"content-encoding": "gzip"})
    refused(answer, 400, "malformed_body")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("promt", "'prompt'"),
        ("negativePrompt", "'negative_prompt'"),
        ("num_inference_steps", "'steps'"),
        ("cfg_scale", "'guidance_scale'"),
        ("cfg", "'guidance_scale'"),
        ("n", "'batch_size'"),
        ("n_iter", "'batch_size'"),
        ("w", "'width'"),
        ("Height", "'height'"),
        ("sampler_name", "the sampler belongs to the model"),
        ("size", "width and height"),
    ],
)
async def test_an_unknown_field_is_answered_with_the_field_that_was_meant(
    client: Client, name: str, meant: str
) -> None:
    detail = refused(await client.post("/text2image", json={"prompt": "x", name: 1}), 422, "invalid_request")
    assert detail.startswith(f"body.{name}: unknown field '{name}'; ")
    assert meant in detail


async def test_an_unknown_field_without_a_similar_one_has_no_hint(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "x", "zzzz": 1})
    assert refused(answer, 422, "invalid_request") == "body.zzzz: unknown field 'zzzz'"


async def test_a_field_of_image2image_is_not_offered_to_text2image(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "x", "denoising_strength": 1})
    assert "did you mean" not in refused(answer, 422, "invalid_request")
    answer = await client.post("/image2image", json={"prompt": "x", "image": "x", "denoising_strength": 1})
    assert "'strength'" in refused(answer, 422, "invalid_request")


async def test_an_unknown_field_inside_another_is_compared_with_its_neighbours(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "x", "loras": [{"path": "a.safetensors", "scal": 1}]})
    assert refused(answer, 422, "invalid_request") == "body.loras.0.scal: unknown field 'scal'; did you mean 'scale'?"


async def test_two_spellings_of_a_field_are_one_too_many(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "x", "model": "fake", "model_name": "fake"})
    assert "another spelling of 'model'" in refused(answer, 422, "invalid_request")


async def test_a_name_close_to_a_models_is_answered_with_it(start: Start) -> None:
    async with start(models={"flux.1-schnell": {}, "tiny": {}}) as client:
        answer = await client.post("/text2image", json={"prompt": "x", "model": "flux-schnell"})
        assert "did you mean 'flux.1-schnell'?" in refused(answer, 404, "model_not_found")
        answer = await client.get("/models/tiiny")
        assert "did you mean 'tiny'?" in refused(answer, 404, "model_not_found")


async def test_413_names_the_limit_and_its_setting(start: Start) -> None:
    body = {"prompt": "x", "image": "x" * 9000}
    async with start(max_body_bytes=2048, max_upload_bytes=8192) as client:
        detail = refused(await client.post("/text2image", json=body), 413, "body_too_large")
        assert detail == "The body is larger than 2,048 bytes; IMAGEGEN_MAX_BODY_BYTES sets this limit."

        async def pieces() -> AsyncIterator[bytes]:
            yield b'{"image": "' + b"x" * 9000

        answer = await client.post("/image2image", content=pieces(), headers=JSON)
        assert "8,192 bytes; IMAGEGEN_MAX_UPLOAD_BYTES sets" in refused(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/text2image", {"prompt": "x", "width": 64}, {}),
        ("/text2image", {"prompt": "x", "quality": 3}, {}),
        ("/text2image", {"prompt": "\x00"}, {}),
        ("/text2image", {"prompt": "x", "model": "a b"}, {}),
        ("/text2image", {"prompt": "x", "loras": [{"repo": "a", "weight_name": "b"}]}, {}),
        ("/text2image", {"prompt": "x"}, {"idempotency-key": "é"}),
        ("/text2image", {"prompt": "x"}, {"idempotency-key": ""}),
        ("/models", {"model_id": "a b", "name": "A", "type": "fake"}, {}),
        ("/models", {"model_id": "a", "name": "A", "type": "flux", "hf_path": "x/y", "parts": {"V": None}}, {}),
        ("/models", {"model_id": "a", "name": "A", "type": "gguf", "hf_path": "x/y", "gguf_file": "a"}, {}),
        ("/models", {"model_id": "a", "name": "A", "type": "flux"}, {}),
    ],
)
async def test_no_message_has_a_prefix_of_pydantic_or_a_regular_expression(
    client: Client, path: str, body: dict[str, object], headers: dict[str, str]
) -> None:
    answer = await client.post(path, json=body, headers={name.encode(): it.encode() for name, it in headers.items()})
    assert answer.status_code == 422
    assert not re.search(r"Value error|Assertion|pattern|\[A-Z|\^", answer.text)


async def test_the_type_of_a_problem_is_a_page_that_the_service_shows_offline(client: Client) -> None:
    problem = (await client.get("/task/nope")).json()
    page = await client.get(problem["type"])
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<h1><code>task_not_found</code></h1>" in page.text
    assert "<h2>What to do</h2>" in page.text
    assert not re.search("<script|src=|href=.http|url\\(", page.text)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


async def test_every_page_is_shown_and_listed(client: Client) -> None:
    listed = (await client.get("/docs/errors")).text
    links = re.findall(r'href="errors/(\w+)"', listed)
    assert links == sorted(page.stem for page in FOLDER.iterdir())
    for code in links:
        assert (await client.get(f"/docs/errors/{code}")).status_code == 200
        assert (await client.get(f"/docs/errors/{code}.md")).status_code == 200


@pytest.mark.parametrize("path", ["nope", "..%2fmodels", "%2e%2e", "queue_full.md.md", "queue_full%00"])
async def test_a_code_that_does_not_exist_has_no_page(client: Client, path: str) -> None:
    assert (await client.get(f"/docs/errors/{path}")).status_code == 404


async def test_a_failed_task_has_the_page_of_its_code(start: Start) -> None:
    async with start(models={"fake": {"fault": "error", "fault_at": "load"}}) as client:
        task = await client.until(await client.submit(model="fake"))
        assert task["error_type"] == f"/docs/errors/{task['error_code']}"
