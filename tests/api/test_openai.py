"""The Images API of OpenAI: what its clients send, and what they read."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import structlog
from PIL import Image

from imagegen.core.keys import new_key
from imagegen.testing.fake import colour_of
from tests.api.conftest import Client, Start, running_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATIONS, EDITS, VARIATIONS = (f"/v1/images/{it}" for it in ("generations", "edits", "variations"))

#: `fake` draws quickly, `slow` for four seconds.
CONFIG = """\
aliases: {gpt-image-1: fake, "*": fake}
models:
  fake: {name: Fake, type: fake, base_size: 64, steps: 4, supports_inpaint: true}
  slow: {name: Slow, type: fake, base_size: 64, steps: 200, step_seconds: 0.02}
  broken: {name: Broken, type: fake, base_size: 64, steps: 4, fault: error}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(CONFIG)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One service for all tests but those that stop it or need other settings."""
    folder = tmp_path_factory.mktemp("openai")
    (folder / "mine.yaml").write_text(CONFIG)
    async with running_in(folder, config=folder / "mine.yaml", drain_timeout_s=0) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def own(start: Start, config: Path) -> AsyncIterator[Client]:
    async with start(config=config, drain_timeout_s=0) as running:
        yield running


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    image.save(file := io.BytesIO(), kind)
    return file.getvalue()


def opened(data: str) -> Image.Image:
    """The picture in a text of base64."""
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


PICTURE = file_of(Image.new("RGB", (48, 32), (200, 10, 10)))
#: The right half is transparent, and has the colours of a picture.
MASK = Image.new("RGBA", (48, 32), (200, 10, 10, 255))
MASK.paste((10, 200, 10, 0), (24, 0, 48, 32))


async def generate(client: Client, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return await client.post(GENERATIONS, json={"prompt": "a house", **fields}, headers=headers)


async def task_of(client: Client, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return await client.task(answer.headers["x-imagegen-task"])


def error(answer: httpx.Response) -> tuple[int, str | None, str]:
    """Status, param and code of an error in OpenAI's envelope."""
    (body,) = answer.json().values()
    assert body.keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return answer.status_code, body["param"], body["code"]


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in answer.text.split("\n\n") if frame.startswith("event:")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name.removeprefix("event: ") for name, _ in frames] == [it["type"] for it in found]
    return found


# -- generations -------------------------------------------------------------------------------------------------------


async def test_without_a_response_format_pictures_come_in_both_forms(client: Client) -> None:
    answer = await generate(client, model="fake", n=2, size="64x32", seed=7)
    body = answer.json()
    assert answer.status_code == 200, body
    assert [colour_of(7), colour_of(8)] == [opened(it["b64_json"]).tobytes()[:3] for it in body["data"]]
    for it in body["data"]:
        assert opened(it["b64_json"]).size == (64, 32)
        assert it["url"].startswith("http://127.0.0.1/images/")
        assert (await client.get(it["url"])).content == base64.b64decode(it["b64_json"])
    described = {"output_format": "png", "quality": "medium", "size": "64x32", "background": "opaque"}
    assert {name: body[name] for name in described} == described
    assert body["usage"]["input_tokens_details"] == {"text_tokens": 0, "image_tokens": 0}
    assert body["created"] > 1_700_000_000
    assert answer.headers["x-imagegen-model"] == "fake"


async def test_a_response_format_is_the_only_one(client: Client) -> None:
    for asked, form in (("url", "url"), ("b64_json", "b64_json"), ("base64", "b64_json")):
        (picture,) = (await generate(client, response_format=asked)).json()["data"]
        assert picture.keys() - {"index", "type"} == {form}


async def test_a_name_of_openais_newer_models_gets_no_url_unless_it_asks_for_one(client: Client) -> None:
    for model, asked, forms in (
        ("gpt-image-1", None, {"b64_json"}),
        ("chatgpt-image-latest", None, {"b64_json"}),
        ("gpt-image-2", "url", {"url"}),
        ("dall-e-3", None, {"url", "b64_json"}),
    ):
        (picture,) = (await generate(client, model=model, response_format=asked)).json()["data"]
        assert picture.keys() - {"index", "type"} == forms


#: Fields, and what the task then has.
EFFECTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"width": 64, "height": 64, "steps": 4, "format": "png"}),
    ({"size": "auto", "quality": "auto", "background": "auto", "moderation": "auto", "n": None}, {"steps": 4}),
    ({"quality": "low", "background": "opaque", "moderation": "low"}, {"steps": 2}),
    ({"quality": "standard", "steps": 7}, {"steps": 7}),
    ({"quality": "high"}, {"steps": 6}),
    ({"quality": "hd"}, {"steps": 6}),
    ({"quality": "xhigh"}, {"steps": 8}),
    ({"quality": "max"}, {"steps": 12}),
    ({"size": "1365x77"}, {"width": 1365, "height": 77}),
    ({"width": 32, "height": 48, "steps": 3, "seed": 11}, {"width": 32, "height": 48, "steps": 3, "seed": 11}),
    ({"guidance_scale": 2.5, "seed": "12"}, {"guidance_scale": 2.5, "seed": 12}),
    ({"output_format": "png", "output_compression": 100}, {"format": "png"}),
    ({"output_format": "webp", "output_compression": 0}, {"format": "webp"}),
    ({"output_format": "jpeg"}, {"format": "jpeg"}),
    ({"disable_safety_checker": True, "user": "u-1", "safety_identifier": "s-1"}, {"steps": 4}),
]


async def test_a_field_has_an_effect(client: Client) -> None:
    for fields, task in EFFECTS:
        made = await task_of(client, await generate(client, **fields))
        assert {name: made[name] for name in task} == task, fields


async def test_the_compression_is_the_quality_of_the_file(client: Client) -> None:
    sizes = []
    for compression in (1, 100):
        answer = await generate(client, output_format="jpeg", output_compression=compression, seed=1)
        data = answer.json()["data"][0]["b64_json"]
        assert opened(data).format == "JPEG"
        sizes.append(sum(opened(data).quantization[0]))  # type: ignore[attr-defined]
    assert sizes[0] > sizes[1]


#: Fields, and the one that is refused.
REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": "2"}, "n"),
    ({"size": "1K"}, "size"),
    ({"size": "8x64"}, "size"),
    ({"size": "64x64", "width": 64, "height": 64}, "size"),
    ({"width": 64}, "height"),
    ({"size": "4096x4096"}, "size"),
    ({"quality": "best"}, "quality"),
    ({"quality": "high", "steps": 3}, "quality"),
    ({"background": "transparent"}, "background"),
    ({"output_format": "gif"}, "output_format"),
    ({"output_format": "png", "output_compression": 50}, "output_compression"),
    ({"output_compression": 101}, "output_compression"),
    ({"moderation": "high"}, "moderation"),
    ({"partial_images": 2}, "partial_images"),
    ({"stream": True, "partial_images": 4}, "partial_images"),
    ({"stream": True, "response_format": "url"}, "response_format"),
    ({"response_format": "bytes"}, "response_format"),
    ({"style": "vivid"}, "style"),
    ({"svg": {}}, "svg"),
    ({"frame_count": 3}, "frame_count"),
    ({"frame_duration_ms": 200}, "frame_duration_ms"),
    ({"complexity": "low"}, "complexity"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "x" * 8193}, "prompt"),
    ({"negative_prompt": "blue"}, None),
    ({"loras": [{"path": "none.safetensors"}]}, None),
    ({"image_loras": [{"path": "https://example.com/lora", "scale": 1}]}, "image_loras.0"),
    ({"strength": 0.5}, "strength"),
    ({"image_url": "https://example.com/x.png"}, "image_url"),
    ({"image_url": "data:image/png;base64,AAAA"}, "image"),
    ({"reference_images": ["data:,a", "data:,b"]}, "reference_images"),
    ({"user": "x" * 513}, "user"),
    ({"colour": "red"}, "colour"),
]


async def test_a_field_that_cannot_be_honoured_is_refused_by_name(client: Client) -> None:
    before = (await client.get("/tasks")).json()["total"]
    for fields, param in REFUSED:
        answer = await generate(client, **fields)
        status, found, _ = error(answer)
        assert (status, found) == (400, param), answer.text
        assert next(reversed(fields)).partition("_")[0].lower().rstrip("s") in answer.text.lower(), answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert (await client.get("/tasks")).json()["total"] == before


async def test_a_limit_of_the_service_is_named(start: Start, config: Path) -> None:
    async with start(config=config, max_batch_size=2) as client:
        answer = await generate(client, n=3)
        assert error(answer) == (400, "n", "invalid_request")
        assert "IMAGEGEN_MAX_BATCH_SIZE" in answer.text


async def test_a_header_says_which_model_answered(client: Client) -> None:
    for asked in (None, "fake", "gpt-image-1", "dall-e-9"):
        answer = await generate(client, model=asked)
        assert answer.headers["x-imagegen-model"] == answer.json()["model"] == "fake"


async def test_the_user_is_in_the_log(client: Client) -> None:
    with structlog.testing.capture_logs() as lines:
        answer = await generate(client, user="user-17")
    (line,) = [it for it in lines if it["event"] == "task_user"]
    assert (line["user"], line["task_id"]) == ("user-17", answer.headers["x-imagegen-task"])


# -- edits and variations ----------------------------------------------------------------------------------------------


async def test_an_edit_has_the_shape_of_its_picture(client: Client) -> None:
    for name in ("image", "image[]"):
        answer = await client.post(EDITS, data={"prompt": "123", "n": "2"}, files={name: ("blob", PICTURE)})
        task = await task_of(client, answer)
        assert (task["task_type"], task["prompt"], task["strength"]) == ("image2image", "123", 0.8)
        assert (task["width"], task["height"], task["batch_size"]) == (80, 48, 2)
        assert len(answer.json()["data"]) == 2


async def test_a_field_of_an_edit_has_an_effect(client: Client) -> None:
    effects: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({"input_fidelity": "high"}, {"strength": 0.5}),
        ({"strength": "0.25", "seed": "9"}, {"strength": 0.25, "seed": 9}),
        ({"size": "64x32", "quality": "low"}, {"width": 64, "height": 32, "steps": 2}),
        ({"output_format": "webp", "output_compression": "40", "model": "gpt-image-1"}, {"format": "webp"}),
    ]
    for fields, task in effects:
        answer = await client.post(EDITS, data={"prompt": "x", **fields}, files={"image": PICTURE})
        made = await task_of(client, answer)
        assert {name: made[name] for name in task} == task


async def test_the_transparent_part_of_a_mask_is_repainted(client: Client) -> None:
    files = {"image": ("a.png", PICTURE), "mask": ("b.png", file_of(MASK))}
    task = await task_of(client, await client.post(EDITS, data={"prompt": "x"}, files=files))
    stored = await client.app.state.services.tasks._intake._journal.pictures(task["task_id"])
    with Image.open(io.BytesIO(stored.mask_image)) as mask:
        assert [mask.getpixel((x, 16)) for x in (0, 23, 24, 47)] == [0, 0, 255, 255]


async def test_a_part_of_an_edit_that_cannot_be_honoured_is_refused_by_name(client: Client) -> None:
    refused: list[tuple[dict[str, str], dict[str, bytes], str]] = [
        ({"prompt": "x"}, {}, "image"),
        ({"prompt": "x", "image": "text"}, {}, "image"),
        ({"prompt": "x"}, {"image": b"no picture"}, "image"),
        ({"prompt": "x"}, {"image": PICTURE, "mask": PICTURE}, "mask"),
        ({"prompt": "x"}, {"image": PICTURE, "mask": b"?"}, "mask"),
        ({"prompt": "x"}, {"image": PICTURE, "other": PICTURE}, "other"),
        ({"prompt": "x"}, {"image": PICTURE, "markup": PICTURE}, "markup"),
        ({"prompt": "x", "svg[model]": "y"}, {"image": PICTURE}, "svg[model]"),
        ({"prompt": "x", "n": "many"}, {"image": PICTURE}, "n"),
        ({"prompt": "x", "strength": "0.5", "input_fidelity": "low"}, {"image": PICTURE}, "input_fidelity"),
        ({}, {"image": PICTURE}, "prompt"),
    ]
    for fields, files, param in refused:
        parts: list[Any] = [(name, (None, text)) for name, text in fields.items()]
        answer = await client.post(EDITS, files=[*parts, *((name, ("a", data)) for name, data in files.items())])
        assert error(answer)[:2] == (400, param), answer.text


async def test_several_pictures_are_refused(client: Client) -> None:
    answer = await client.post(EDITS, data={"prompt": "x"}, files=[("image[]", PICTURE), ("image[]", PICTURE)])
    assert error(answer) == (400, "image", "invalid_request")


async def test_a_body_that_is_no_form_is_refused(client: Client) -> None:
    assert error(await client.post(EDITS, json={"prompt": "x"})) == (415, None, "unsupported_media_type")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert error(await client.post(EDITS, content=b"nonsense", headers=broken)) == (400, None, "malformed_body")
    many = {f"field{number}": "x" for number in range(101)}
    assert error(await client.post(EDITS, data=many, files={"image": PICTURE})) == (400, None, "malformed_body")


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", '"PUNYCODE"', "x"])
@pytest.mark.parametrize("path", [EDITS, VARIATIONS, "/v1/files"])
async def test_no_other_codec_decodes_the_texts_of_a_form(client: Client, path: str, charset: str) -> None:
    """Of punycode, a megabyte takes minutes, in which nothing else is answered."""
    form = httpx.Request("POST", "http://x", data={"prompt": "-a"}, files={"image": PICTURE})
    kind = f"{form.headers['Content-Type']}; charset={charset}"
    answer = await client.post(path, content=form.read(), headers={"Content-Type": kind})
    assert (answer.status_code, "A form must be in UTF-8." in answer.text) == (415, True), answer.text


async def test_a_form_may_say_that_it_is_in_utf_8(client: Client) -> None:
    form = httpx.Request("POST", "http://x", data={"prompt": "größer", "size": "64x64"}, files={"image": PICTURE})
    kind = f"{form.headers['Content-Type']}; charset=UTF-8"
    answer = await client.post(EDITS, content=form.read(), headers={"Content-Type": kind})
    assert (await task_of(client, answer))["prompt"] == "größer"


async def test_a_variation_needs_only_a_picture(client: Client) -> None:
    answer = await client.post(VARIATIONS, data={"n": "1", "size": "64x64"}, files={"image": PICTURE})
    task = await task_of(client, answer)
    assert (task["task_type"], task["prompt"], task["strength"]) == ("image2image", "", 0.6)


async def test_a_data_url_makes_a_generation_an_edit(client: Client) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    for fields in ({"image_url": url}, {"reference_images": [url]}):
        task = await task_of(client, await generate(client, **fields))
        assert (task["task_type"], task["width"], task["strength"]) == ("image2image", 80, 0.8)


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_a_stream_has_previews_and_then_the_picture(client: Client) -> None:
    for number in (0, 1, 3):
        await check_stream(client, number)


async def check_stream(client: Client, number: int) -> None:
    answer = await generate(client, stream=True, partial_images=number, steps=20, size="32x64", seed=3, n=1)
    *partial, completed = events(answer)
    assert [it["type"] for it in partial] == ["image_generation.partial_image"] * number
    assert [it["partial_image_index"] for it in partial] == list(range(number))
    for it in partial:
        preview = opened(it["b64_json"])
        assert (preview.format, f"{preview.width}x{preview.height}") == ("PNG", it["size"])
    assert (completed["type"], completed["size"]) == ("image_generation.completed", "32x64")
    assert opened(completed["b64_json"]).tobytes()[:3] == colour_of(3)
    assert completed["usage"]["total_tokens"] == 0
    assert answer.headers["x-imagegen-model"] == "fake"


async def test_an_edit_streams_in_the_format_that_was_asked_for(client: Client) -> None:
    data = {"prompt": "x", "stream": "true", "partial_images": "2", "output_format": "webp", "n": "2", "steps": "20"}
    found = events(await client.post(EDITS, data=data, files={"image": PICTURE}))
    kinds = ["partial_image"] * 4 + ["completed"] * 2
    assert [it["type"] for it in found] == [f"image_edit.{kind}" for kind in kinds]
    assert [it["partial_image_index"] for it in found[:4]] == [0, 1, 0, 1]
    assert {opened(it["b64_json"]).format for it in found} == {"WEBP"}


async def test_a_task_that_fails_ends_its_stream_with_an_error(client: Client) -> None:
    (event,) = events(await generate(client, model="broken", stream=True))
    assert event["type"] == "error"
    assert event["error"]["code"] == "generation_failed"


async def test_what_is_refused_before_a_stream_has_a_status(client: Client) -> None:
    assert error(await generate(client, stream=True, size="none"))[0] == 400


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_errors_have_openais_envelope(start: Start) -> None:
    async with start(max_upload_bytes=1024, max_uploading_bytes=1_048_576, max_body_bytes=1024) as client:
        assert error(await generate(client, model="fak")) == (404, "model", "model_not_found")
        assert error(await client.get("/v1/models/gpt-image-1")) == (404, "model", "model_not_found")
        assert error(await client.post("/v1/responses", json={})) == (404, None, "not_found")
        assert error(await client.get(GENERATIONS)) == (405, None, "method_not_allowed")
        assert error(await client.post(GENERATIONS, content=b"{", headers={"Content-Type": "application/json"})) == (
            400,
            None,
            "malformed_body",
        )
        assert error(await client.post(GENERATIONS, data={"prompt": "x"})) == (415, None, "unsupported_media_type")
        assert error(await generate(client, prompt="x" * 2000)) == (413, None, "body_too_large")
        big = await client.post(EDITS, data={"prompt": "x"}, files={"image": b"x" * 2000})
        assert error(big) == (413, None, "body_too_large")
        assert error(await generate(client, {"x-request-id": "mine", "idempotency-key": ""}))[0] == 400


async def test_a_failed_task_is_not_retried(client: Client) -> None:
    answer = await generate(client, model="broken")
    assert error(answer) == (500, None, "generation_failed")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["type"] == "server_error"
    assert (await client.task(answer.headers["x-imagegen-task"]))["status"] == "failed"


async def test_a_task_that_somebody_cancels_is_not_retried(client: Client) -> None:
    waiting = asyncio.create_task(generate(client, model="slow"))
    task_id = await running(client)
    await client.post(f"/task/{task_id}/cancel")
    answer = await waiting
    assert error(answer) == (409, None, "task_cancelled")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_stopping_service_says_when_to_ask_again(own: Client) -> None:
    waiting = asyncio.create_task(generate(own, model="slow"))
    await running(own)
    own.app.state.lifecycle.begin_drain()
    answer = await waiting
    assert error(answer) == (503, None, "draining")
    assert answer.headers["retry-after"] == "10"
    own.app.state.lifecycle.hurry()


async def test_keys_are_sent_as_bearers_and_urls_need_none(own: Client) -> None:
    keys = own.app.state.services.keys
    made, text = new_key("alice", ("generate",), models=("fake",))  # type: ignore[arg-type]
    await keys.create(made)
    bearer = {"Authorization": f"Bearer {text}"}
    answer = await generate(own)
    assert error(answer) == (401, None, "unauthorized")
    assert answer.json()["error"]["type"] == "authentication_error"
    assert error(await own.post(EDITS, files={"image": PICTURE}))[0] == 401
    assert error(await own.get("/v1/models"))[0] == 401
    assert error(await generate(own, bearer, model="slow")) == (403, None, "forbidden")
    url = (await generate(own, bearer)).json()["data"][0]["url"]
    assert "?token=" in url
    assert (await own.get(url)).status_code == 200
    assert (await own.get(url.partition("?")[0])).status_code == 401
    cards = (await own.get("/v1/models", headers=bearer)).json()
    assert {it["id"]: it["root"] for it in cards["data"]} == {"fake": "fake", "gpt-image-1": "fake"}


async def test_the_list_has_models_and_aliases(client: Client) -> None:
    cards = (await client.get("/v1/models")).json()
    assert cards["object"] == "list"
    assert [it["id"] for it in cards["data"]] == ["fake", "slow", "broken", "gpt-image-1"]
    card = (await client.get("/v1/models/gpt-image-1")).json()
    assert card == {"id": "gpt-image-1", "object": "model", "created": 0, "owned_by": "imagegen", "root": "fake"}


# -- callers that come back, and callers that do not ------------------------------------------------------------------


async def running(client: Client) -> str:
    """The id of the running task, once its pictures are being made."""
    while not (tasks := (await client.get("/tasks", params={"status": "processing", "model": "slow"})).json()["tasks"]):
        await asyncio.sleep(0.01)
    return str(tasks[0]["task_id"])


class Call:
    """One request on a connection that the test can close."""

    def __init__(self, client: Client, fields: dict[str, Any], headers: Sequence[tuple[str, str]] = ()) -> None:
        self.closed = asyncio.Event()
        self.sent: list[Any] = []
        self._body: list[Any] = [{"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}]
        given = [("host", "127.0.0.1"), ("content-type", "application/json"), *headers]
        scope = {"type": "http", "method": "POST", "path": GENERATIONS, "query_string": b"", "http_version": "1.1"}
        more = {"scheme": "http", "asgi": {"version": "3.0"}, "client": ("10.0.0.1", 5), "server": ("127.0.0.1", 80)}
        raw = [(name.encode(), value.encode()) for name, value in given]
        self.done = asyncio.create_task(client.app({**scope, **more, "headers": raw}, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._body:
            return self._body.pop()
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def hang_up(self) -> None:
        self.closed.set()
        await self.done

    async def task_id(self) -> str:
        await self.done
        return str(dict(self.sent[0]["headers"])[b"x-imagegen-task"].decode())


SLOW = {"prompt": "a house", "model": "slow"}
FIRST, SECOND = [("x-stainless-retry-count", "0")], [("x-stainless-retry-count", "1")]


async def test_a_caller_that_hangs_up_takes_its_task_along(client: Client) -> None:
    for fields in (SLOW, {**SLOW, "stream": True}):
        call = Call(client, fields)
        task_id = await running(client)
        await call.hang_up()
        assert (await client.until(task_id))["status"] == "cancelled"


async def test_a_retry_of_an_sdk_joins_the_running_task(client: Client) -> None:
    before = (await client.get("/tasks")).json()["total"]
    call = Call(client, {**SLOW, "steps": 30}, FIRST)
    task_id = await running(client)
    await call.hang_up()
    again = Call(client, {"steps": 30, **SLOW}, SECOND)
    assert await again.task_id() == task_id
    assert (await client.task(task_id))["status"] == "completed"
    assert (await client.get("/tasks")).json()["total"] == before + 1


async def test_a_retry_that_asks_for_something_else_is_a_task_of_its_own(client: Client) -> None:
    call = Call(client, {**SLOW, "steps": 30}, FIRST)
    first = await running(client)
    await call.hang_up()
    other = Call(client, {"prompt": "a tree", "model": "fake"}, SECOND)
    same_but_first = Call(client, {**SLOW, "steps": 30}, FIRST)
    assert len({first, await other.task_id(), await same_but_first.task_id()}) == 3


async def test_a_retry_joins_no_task_that_its_caller_waits_for(client: Client) -> None:
    call = Call(client, {**SLOW, "steps": 30}, FIRST)
    first = await running(client)
    again = Call(client, {**SLOW, "steps": 30}, SECOND)
    assert await again.task_id() != first
    assert await call.task_id() == first


async def test_a_task_that_nobody_comes_back_for_is_cancelled(own: Client) -> None:
    retries = own.app.state.retries
    retries._grace_s = 0
    call = Call(own, SLOW, FIRST)
    task_id = await running(own)
    await call.hang_up()
    assert (await own.until(task_id))["status"] == "cancelled"
    assert repr(retries) == "<Retries [0]>"


async def test_a_task_with_an_idempotency_key_outlives_its_caller(client: Client) -> None:
    call = Call(client, {**SLOW, "steps": 30}, [("idempotency-key", "kept")])
    task_id = await running(client)
    await call.hang_up()
    assert (await client.until(task_id))["status"] == "completed"


async def test_an_idempotency_key_makes_one_task(client: Client) -> None:
    answers = [await generate(client, {"Idempotency-Key": "k"}, seed=None) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert error(await generate(client, {"Idempotency-Key": "k"}, n=2)) == (400, None, "idempotency_key_reused")
