"""openai (Python): generate, edit, vary, stream, errors, retries, cancel."""

import asyncio
import base64
import io
import json
import os
import struct
import time
import urllib.request
from pathlib import Path

import openai
from openai import AsyncOpenAI, OpenAI

URL, KEY, OUT = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])
HALVES = ((0, 0, 64, 128), (64, 0, 128, 128))
CIRCLE = "a red circle on a blue background"

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY or "none")


def fetch(url: str, *, keyed: bool = False) -> bytes:
    headers = {"Authorization": f"Bearer {KEY}"} if keyed and KEY else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read()


def task(task_id: str) -> dict:
    return json.loads(fetch(f"{URL}/task/{task_id}", keyed=True))


def tasks(prompt: str) -> list[dict]:
    return json.loads(fetch(f"{URL}/tasks?q={prompt.replace(' ', '%20')}", keyed=True))["tasks"]


def keep(name: str, data: bytes, size: tuple[int, int] | None = None) -> bytes:
    """Write a picture, and check the size of a PNG."""
    (OUT / name).write_bytes(data)
    if size is not None:
        assert data[:8] == b"\x89PNG\r\n\x1a\n", name
        assert struct.unpack(">II", data[16:24]) == size, (name, struct.unpack(">II", data[16:24]))
    return data


def pictures(answer: openai.types.ImagesResponse) -> list[bytes]:
    return [base64.b64decode(it.b64_json) for it in answer.data]


def refused(kind: type[openai.APIStatusError], param: str | None, call, **fields) -> None:
    try:
        call(**fields)
    except kind as error:
        assert error.param == param, (error.param, error)
        assert error.request_id, error
        return
    raise AssertionError(f"not refused: {fields}")


# -- models --
listed = {it.id for it in client.models.list()}
assert "tiny" in listed, listed
assert client.models.retrieve("gpt-image-1").id == "gpt-image-1"

# -- generate --
raw = client.images.with_raw_response.generate(model="dall-e-3", prompt=CIRCLE, size="128x128", extra_body={"seed": 7})
assert raw.headers["x-imagegen-model"] == "tiny"
both = raw.parse()
(circle,) = pictures(both)
keep("circle.png", circle, (128, 128))
assert fetch(both.data[0].url) == circle
assert both.usage.input_tokens > 0
assert both.usage.total_tokens == both.usage.input_tokens
assert (both.size, both.quality, both.output_format, both.background) == ("128x128", "medium", "png", "opaque")
(plain,) = client.images.generate(prompt=CIRCLE, model="gpt-image-2", size="128x128").data
assert plain.url is None
again = client.images.generate(prompt=CIRCLE, size="128x128", response_format="b64_json", extra_body={"seed": 7})
assert again.data[0].url is None
(linked,) = client.images.generate(prompt=CIRCLE, model="dall-e-3", quality="hd", response_format="url").data
assert linked.b64_json is None
keep("linked.png", fetch(linked.url))
two = client.images.generate(prompt="a yellow star", n=2, output_format="webp", output_compression=80, user="u-17")
for number, data in enumerate(pictures(two)):
    assert data[8:12] == b"WEBP"
    keep(f"star-{number}.webp", data)
wide = client.images.generate(
    prompt="a green tree", size="192x64", quality="low", background="opaque", moderation="low"
)
keep("wide.png", pictures(wide)[0], (192, 64))

# -- edit, with a mask, and vary --
edited = client.images.edit(image=io.BytesIO(circle), prompt="a yellow star on a blue background", n=1)
keep("edited.png", pictures(edited)[0], (128, 128))
more = client.images.edit(
    image=[("circle.png", circle, "image/png")],
    prompt="a green square on a blue background",
    size="128x128",
    input_fidelity="high",
    extra_body={"seed": 3, "steps": 12},
)
keep("edited-more.png", pictures(more)[0], (128, 128))
refused(openai.BadRequestError, "image", client.images.edit, image=[io.BytesIO(circle), io.BytesIO(circle)], prompt="x")
keep("variation.png", pictures(client.images.create_variation(image=io.BytesIO(circle), size="128x128"))[0], (128, 128))

# -- streams --
kinds = []
for event in client.images.generate(prompt=CIRCLE, stream=True, partial_images=2, extra_body={"seed": 7}):
    kinds.append(event.type)
    keep(f"stream-{len(kinds)}.png", base64.b64decode(event.b64_json))
assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"], kinds
assert event.usage.total_tokens == event.usage.input_tokens
assert base64.b64decode(event.b64_json) == circle, "the same seed, and the same pixels and receipt"
kinds = []
for event in client.images.edit(
    image=io.BytesIO(circle), prompt="a yellow star", stream=True, partial_images=1, extra_body={"steps": 16}
):
    kinds.append(event.type)
    keep(f"edit-stream-{len(kinds)}.png", base64.b64decode(event.b64_json))
assert kinds == ["image_edit.partial_image", "image_edit.completed"], kinds

# -- errors --
refused(openai.BadRequestError, "background", client.images.generate, prompt="x", background="transparent")
refused(openai.BadRequestError, "size", client.images.generate, prompt="x", size="huge")
refused(openai.BadRequestError, "size", client.images.generate, prompt="x", size="8192x8192")
refused(openai.BadRequestError, "style", client.images.generate, prompt="x", style="vivid")
refused(openai.BadRequestError, "colour", client.images.generate, prompt="x", extra_body={"colour": "red"})
refused(openai.BadRequestError, "image", client.images.edit, image=io.BytesIO(b"no picture"), prompt="x")
if KEY:
    refused(openai.AuthenticationError, None, client.with_options(api_key="ig_wrong").images.generate, prompt="x")

# -- a time-out, after which the SDK tries again: one task --
SLOW = {"size": "256x256", "extra_body": {"steps": 60}}
prompt = "a house that takes a while"
patient = client.with_options(timeout=1.0, max_retries=100).images.generate(prompt=prompt, **SLOW)
keep("retried.png", pictures(patient)[0], (256, 256))
assert len(tasks(prompt)) == 1, tasks(prompt)

# -- cancel: close the stream, or the connection --
FOR_EVER = {"size": "512x512", "extra_body": {"steps": 200}}
stream = client.images.generate(prompt="cancelled stream", stream=True, partial_images=1, **FOR_EVER)
task_id = stream.response.headers["x-imagegen-task"]
stream.close()


async def cancel_request() -> None:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY or "none") as impatient:
        asking = asyncio.create_task(impatient.images.generate(prompt="cancelled request", **FOR_EVER))
        while not tasks("cancelled request"):
            await asyncio.sleep(0.1)
        asking.cancel()


asyncio.run(cancel_request())
for found in (task(task_id), *tasks("cancelled request")):
    while (now := task(found["task_id"]))["status"] not in ("cancelled", "completed", "failed"):
        time.sleep(0.2)
    assert now["status"] == "cancelled", now
print("openai", openai.__version__, "works")
