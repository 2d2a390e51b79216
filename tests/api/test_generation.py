"""From a request to a picture, and from an invalid request to a clear error."""

import base64
import io
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from PIL import Image

from tests.api.conftest import Client, Start
from tests.receiver import receiving


def picture(size: tuple[int, int] = (8, 8), kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


async def test_a_task_is_accepted_and_ends_with_its_pictures(client: Client) -> None:
    answer = await client.post("/text2image", json={"prompt": "a house", "seed": 5, "batch_size": 2})
    assert answer.status_code == 202
    accepted = answer.json()
    assert accepted["status"] == "pending"
    assert accepted["message"]
    assert answer.headers["location"] == accepted["links"]["self"] == f"/task/{accepted['task_id']}"
    assert answer.headers["retry-after"] == "1"

    task = await client.until(accepted["task_id"])
    assert task["status"] == "completed"
    assert [(image["width"], image["height"], image["seed"]) for image in task["images"]] == [(64, 64, 5), (64, 64, 6)]
    for file, image in zip(task["result_files"], task["images"], strict=True):
        answer = await client.get(image["url"])
        assert image["url"] == f"/images/{file}"
        with Image.open(io.BytesIO(answer.content)) as png:
            assert (png.format, png.size, png.mode) == ("PNG", (64, 64), "RGB")


async def test_the_defaults_are_the_models_and_the_seed_is_fixed_at_acceptance(client: Client) -> None:
    task = await client.task(await client.submit())
    assert (task["model"], task["steps"], task["guidance_scale"], task["batch_size"]) == ("fake", 4, 3.5, 1)
    done = await client.until(task["task_id"])
    assert done["seed"] == task["seed"] == done["images"][0]["seed"]


@pytest.mark.parametrize(
    ("ratio", "width", "height"),
    [
        ("1:1", 768, 768),
        ("16:9", 1365, 768),
        ("9:16", 768, 1365),
        ("4:3", 1024, 768),
        ("3:4", 768, 1024),
        ("21:9", 1792, 768),
        ("9:21", 768, 1792),
    ],
)
async def test_the_briefs_sizes_are_delivered_exactly(start: Start, ratio: str, width: int, height: int) -> None:
    async with start(models={"fake": {"base_size": 768, "steps": 1}}) as client:
        task = await client.until(await client.submit(aspect_ratio=ratio))
        png = await client.get(task["images"][0]["url"])
        with Image.open(io.BytesIO(png.content)) as image:
            assert image.size == (width, height)


async def test_the_briefs_clients_spellings_are_read(client: Client) -> None:
    old = {
        "prompt": "a fox",
        "model_name": "fake",
        "batchSize": 2,
        "aspectRatio": "16:9",
        "priority": 3,
        "lora_weights_path": None,
        "lora_scale": 0.7,
    }
    answer = await client.post("/text2image", json=old)
    assert answer.status_code == 202
    task = await client.until(answer.json()["task_id"])
    assert (task["batch_size"], task["width"], task["height"], task["priority"]) == (2, 114, 64, 3)

    answer = await client.post("/image2image", json={"prompt": "x", "base64_image": picture(), "batch_size": 1})
    assert answer.status_code == 202


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_an_input_picture_is_taken_with_and_without_a_prefix(client: Client, kind: str, prefix: str) -> None:
    answer = await client.post("/image2image", json={"prompt": "x", "image": prefix + picture(kind=kind)})
    task = await client.until(answer.json()["task_id"])
    assert (task["status"], task["task_type"], task["strength"]) == ("completed", "image2image", 0.8)


ABSURD: list[tuple[str, bytes, int, str]] = [
    ("a huge batch", b'{"prompt":"x","batch_size":1000000000}', 422, "invalid_request"),
    ("a batch over the service's limit", b'{"prompt":"x","batch_size":11}', 422, "invalid_request"),
    ("no such model", b'{"prompt":"x","model":"nope"}', 404, "model_not_found"),
    ("a path as model", b'{"prompt":"x","model":"../../etc/passwd"}', 422, "invalid_request"),
    ("an unknown key", b'{"prompt":"x","stepz":4}', 422, "invalid_request"),
    ("a lone surrogate", rb'{"prompt":"\ud800"}', 422, "invalid_request"),
    ("a lone surrogate as key", rb'{"prompt":"x","\ud800":1}', 422, "invalid_request"),
    ("an infinite integer", b'{"prompt":"x","seed":1e400}', 422, "invalid_request"),
    ("an infinite number", b'{"prompt":"x","guidance_scale":1e400}', 422, "invalid_request"),
    ("not a number", b'{"prompt":"x","guidance_scale":NaN}', 422, "invalid_request"),
    ("a seed of 65 bits", b'{"prompt":"x","seed":18446744073709551616}', 422, "invalid_request"),
    ("a boolean for a number", b'{"prompt":"x","batch_size":true}', 422, "invalid_request"),
    ("a text for a number", b'{"prompt":"x","steps":"4"}', 422, "invalid_request"),
    ("the character DEL", rb'{"prompt":"a\u007fb"}', 422, "invalid_request"),
    ("a control character of C1", rb'{"prompt":"a\u009bb"}', 422, "invalid_request"),
    ("a control character", rb'{"prompt":"a\u0000b"}', 422, "invalid_request"),
    ("an empty prompt", b'{"prompt":""}', 422, "invalid_request"),
    ("no prompt", b"{}", 422, "invalid_request"),
    ("half a size", b'{"prompt":"x","width":64}', 422, "invalid_request"),
    ("too many pixels", b'{"prompt":"x","width":4096,"height":4096}', 422, "size_too_large"),
    ("an unknown shape", b'{"prompt":"x","aspect_ratio":"2:1"}', 422, "invalid_request"),
    ("a negative prompt that changes nothing", b'{"prompt":"x","negative_prompt":"y"}', 422, "unsupported_capability"),
    ("a LoRA where none fits", b'{"prompt":"x","lora_weights_path":"a.safetensors"}', 422, "unsupported_capability"),
    ("a list", b"[]", 422, "invalid_request"),
    ("half a document", b'{"prompt":', 400, "malformed_body"),
    ("a deep document", b"[" * 100_000, 400, "malformed_body"),
    ("bytes that are no text", b"\xff\xfe\x00", 400, "malformed_body"),
    ("a prompt of 1 MB", b'{"prompt":"' + b"x" * 1_000_000 + b'"}', 422, "invalid_request"),
    ("a prompt of 10 MB", b'{"prompt":"' + b"x" * 10_000_000 + b'"}', 413, "body_too_large"),
    ("100,000 keys", b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}", 400, "malformed_body"),
    ("400,000 empty lists", b"[" + b",".join([b"[]"] * 250_000) + b"]", 400, "malformed_body"),
]


@pytest.mark.parametrize(("body", "status", "code"), [case[1:] for case in ABSURD], ids=[case[0] for case in ABSURD])
async def test_absurd_input_gets_a_problem_with_a_stable_code(
    client: Client, body: bytes, status: int, code: str
) -> None:
    answer = await client.post("/text2image", content=body, headers={"content-type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 5000  # nothing of the input is echoed at length
    assert (await client.get("/tasks")).json()["total"] == 0


@pytest.mark.parametrize(("path", "megabytes"), [("/text2image", 2), ("/image2image", 40)])
async def test_a_body_over_the_limit_is_refused_in_chunks_as_well(client: Client, path: str, megabytes: int) -> None:
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        while sent < 200:
            sent += 1
            yield b"x" * 1_000_000

    answer = await client.post(path, content=chunks(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert sent <= megabytes


async def test_a_picture_of_many_megabytes_is_taken(client: Client) -> None:
    file = io.BytesIO()
    Image.effect_noise((2000, 1500), 80).save(file, "PNG")
    assert len(file.getvalue()) > 2_000_000
    body = {"prompt": "x", "image": base64.b64encode(file.getvalue()).decode()}
    assert (await client.post("/image2image", json=body)).status_code == 202


async def test_a_prompt_full_of_commas_is_a_prompt(client: Client) -> None:
    assert (await client.until(await client.submit("," * 8192)))["status"] == "completed"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:81"},
    ],
)
async def test_a_page_of_another_origin_may_read_nothing_and_change_nothing(
    client: Client, headers: dict[str, str]
) -> None:
    # A body without a type is what a page may send without asking first.
    for path in ("/queue/clear", "/models/unload", "/text2image"):
        answer = await client.post(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    answer = await client.get("/tasks", headers=headers)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "same-origin"}, {"origin": "http://127.0.0.1"}, {}])
async def test_the_documentation_page_and_programs_may(client: Client, headers: dict[str, str]) -> None:
    assert (await client.post("/text2image", json={"prompt": "x"}, headers=headers)).status_code == 202


async def test_a_name_that_someone_pointed_here_is_refused(start: Start) -> None:
    async with start(allowed_hosts="gpu.internal, other") as client:
        for host in ("evil.example", "127.0.0.1.evil.example:5050", "[::1", ""):
            answer = await client.get("/tasks", headers={"host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host")
        for host in ("localhost:5050", "127.0.0.1", "[::1]:80", "gpu.internal:5050"):
            assert (await client.get("/tasks", headers={"host": host})).status_code == 200


async def test_a_name_that_someone_pointed_here_is_refused_on_every_address(start: Start) -> None:
    async with start(host="0.0.0.0", allowed_hosts="gpu-7.example") as client:
        for host in ("evil.example", "gpu-7.example.evil.example", "10.0.0.9", ""):
            answer = await client.get("/tasks", headers={"host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host")
        for host in ("localhost:5050", "127.0.0.1", "GPU-7.example:5050"):
            assert (await client.get("/tasks", headers={"host": host})).status_code == 200
        here = ASGITransport(client.app, raise_app_exceptions=False)
        async with AsyncClient(transport=here, base_url="http://10.0.0.9:5050") as other:
            assert (await other.get("/tasks")).status_code == 200  # the address that the request arrived at
        async with AsyncClient(transport=here, base_url="http://evil.example") as other:
            assert (await other.get("/tasks")).status_code == 421


async def test_all_names_can_be_allowed(start: Start) -> None:
    async with start(host="0.0.0.0", allowed_hosts="*") as client:
        assert (await client.get("/tasks", headers={"host": "gpu-7.example"})).status_code == 200


async def test_two_host_headers_are_refused(client: Client) -> None:
    answer = await client.get("/tasks", headers=[("host", "127.0.0.1"), ("host", "evil.example")])
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
async def test_no_page_may_be_framed(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/models/a", "POST", {"GET", "PUT", "PATCH", "DELETE"}),
        ("/task/x", "PUT", {"GET", "DELETE"}),
        ("/text2image", "GET", {"POST"}),
        ("/models", "DELETE", {"GET", "POST"}),
        ("/models/current", "POST", {"GET"}),  # and not those of a model `current`
        ("/keys/me", "POST", {"GET"}),
        ("/openapi.json", "POST", {"GET"}),
        ("/docs", "POST", {"GET"}),
        ("/docs/errors/x", "POST", {"GET"}),
    ],
)
async def test_an_answer_to_a_wrong_method_names_all_methods_of_the_path(
    client: Client, path: str, method: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert {*answer.headers["allow"].split(", ")} - {"HEAD"} == allowed


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("!!!", "invalid_image"),
        ("aGVsbG8=", "invalid_image"),
        (picture(kind="ICO"), "invalid_image"),
        (picture((64, 64))[:80], "invalid_image"),
        ("é" * 10, "invalid_image"),
        (picture((6000, 5000), "PNG"), "image_too_large"),
    ],
    ids=["no base64", "no picture", "an icon", "half a picture", "no ASCII", "too large"],
)
async def test_a_bad_input_picture_is_refused(client: Client, image: str, code: str) -> None:
    answer = await client.post("/image2image", json={"prompt": "x", "image": image})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


@pytest.mark.parametrize("field", ["image", "mask"])
async def test_an_input_picture_is_never_fetched(start: Start, field: str) -> None:
    with receiving() as canary:
        async with start(models={"fake": {"supports_inpaint": True}}) as client:
            for url in (canary.url("/x.png"), canary.url("/x.png").replace("http:", "HTTP:"), "file:///etc/hostname"):
                answer = await client.post("/image2image", json={"prompt": "x", "image": picture(), field: url})
                assert (answer.status_code, answer.json()["code"]) == (422, "invalid_image")
    assert canary.connections == 0


async def test_an_unsupported_capability_names_the_models_that_have_it(start: Start) -> None:
    models = {"words": {"supports_img2img": False}, "both": {}}
    async with start(models=models) as client:
        answer = await client.post("/image2image", json={"prompt": "x", "image": picture(), "model": "words"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_capability")
    assert "these can: both" in answer.json()["detail"]


async def test_an_unknown_content_type_is_not_parsed_as_json(client: Client) -> None:
    # A form on some web page can send text/plain anywhere, without asking.
    answer = await client.post("/text2image", content=b'{"prompt":"x"}', headers={"content-type": "text/plain"})
    assert 400 <= answer.status_code < 500


async def test_a_task_that_would_take_too_long_is_refused_before_it_queues(start: Start) -> None:
    # 1600 steps: 32 s at 0.02 s each, 6,553,600 pixel steps.
    large = {"prompt": "x", "batch_size": 8, "steps": 200}
    models = {"fake": {"step_seconds": 0.02, "max_task_seconds": 10}}
    async with start(models=models, max_pixel_steps=1_000_000, drain_timeout_s=0) as client:

        async def refused(path: str = "/text2image") -> str:
            answer = await client.post(path, json=large)
            assert (answer.status_code, answer.json()["code"]) == (422, "task_too_long")
            return str(answer.json()["detail"])

        assert "6,553,600 pixel steps" in await refused()
        for _ in range(2):
            await client.until(await client.submit())
        assert "max_task_seconds" in await refused()
        assert "at most 10 s" in await refused("/plan")
        assert (await client.get("/tasks")).json()["total"] == 2
        (await client.patch("/models/fake", json={"max_task_seconds": 3600})).raise_for_status()
        assert (await client.post("/text2image", json=large)).status_code == 202
