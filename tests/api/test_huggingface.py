"""The inference API of Hugging Face: what its clients send, and what they read."""

import io
from typing import Any

from httpx import Response
from PIL import Image

from imagegen.core.keys import Scope
from tests.api.conftest import Client, Start
from tests.api.test_generation import picture
from tests.api.test_keys import key
from tests.api.test_waiting import SLOW, post_and_go


def image_of(answer: Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


async def newest(client: Client) -> dict[str, Any]:
    return dict((await client.get("/tasks")).json()["tasks"][0])


async def test_text_to_image_answers_with_the_file(client: Client) -> None:
    parameters = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 2.5, "seed": 5}
    body = {"inputs": "a fox", "parameters": parameters}
    answer = await client.post("/hf/fake", json=body, headers={"Accept": "image/png"})
    with image_of(answer) as image:
        assert (image.format, image.size) == ("PNG", (96, 64))
    assert answer.headers["content-type"] == "image/png"
    task = await newest(client)
    assert (task["prompt"], task["steps"], task["guidance_scale"], task["seed"]) == ("a fox", 3, 2.5, 5)
    assert answer.headers["x-imagegen-task"] == task["task_id"]


async def test_the_format_is_the_one_that_is_accepted(client: Client) -> None:
    for accept, form in (("*/*", "PNG"), ("image/jpeg", "JPEG"), ("text/html, image/webp;q=0.9, image/png", "WEBP")):
        answer = await client.post("/hf/fake", json={"inputs": "a fox"}, headers={"Accept": accept})
        with image_of(answer) as image:
            assert image.format == form


async def test_image_to_image_takes_base64_with_parameters_or_the_bytes_alone(client: Client) -> None:
    parameters = {"prompt": "a fox", "num_inference_steps": 2, "target_size": {"width": 64, "height": 96}}
    answer = await client.post("/hf/fake", json={"inputs": picture((32, 16)), "parameters": parameters})
    with image_of(answer) as image:
        assert image.size == (64, 96)
    task = await newest(client)
    assert (task["task_type"], task["prompt"], task["strength"]) == ("image2image", "a fox", 0.8)

    large = io.BytesIO()  # so that it has many bytes that look like the commas of a JSON body
    Image.effect_noise((1024, 1024), 100).save(large, "PNG")
    for content_type in ({"Content-Type": "image/png"}, {}):
        answer = await client.post("/hf/fake", content=large.getvalue(), headers=content_type)
        with image_of(answer) as image:
            assert image.size == (64, 64)
        assert ((await newest(client))["task_type"], (await newest(client))["prompt"]) == ("image2image", "")


async def test_a_picture_without_a_prompt_is_recognised(client: Client) -> None:
    image_of(await client.post("/hf/fake", json={"inputs": picture(), "parameters": {"num_inference_steps": 2}}))
    assert (await newest(client))["task_type"] == "image2image"


async def test_a_model_may_be_named_by_its_repository(start: Start) -> None:
    async with start({"fake": {"hf_path": "org/model@main"}}) as client:
        for name in ("org/model", "fake", "anyone/fake"):
            image_of(await client.post(f"/hf/{name}", json={"inputs": "a fox"}))


#: Bodies, and what the refusal of each says.
REFUSED: list[tuple[Any, str]] = [
    ({"inputs": "x", "parameters": {"scheduler": "ddim"}}, "scheduler"),
    ({"inputs": "x", "parameters": {"negative_prompt": "y"}}, "negative_prompt"),
    ({"inputs": "x", "parameters": {"width": 64}}, "width and height"),
    ({"inputs": "x", "parameters": {"steps": 3}}, "unknown field 'steps'"),
    ({"inputs": ""}, "inputs"),
    ({"parameters": {}}, "inputs"),
    ([], "body"),
    ({"inputs": "bm8=", "parameters": {"prompt": "x"}}, "picture"),
    ({"inputs": "x " * 5000}, "8192"),
]


async def test_errors_have_the_form_that_the_clients_read(client: Client) -> None:
    for body, said in REFUSED:
        answer = await client.post("/hf/fake", json=body)
        assert (answer.status_code, list(answer.json())) == (422, ["error", "error_type"]), answer.text
        assert said in answer.json()["error"]


async def test_no_error_is_503_because_clients_repeat_it_at_once(start: Start) -> None:
    async with start(SLOW, max_queue=1, drain_timeout_s=0) as client:
        for _ in range(2):
            await client.submit()
        while not (await client.get("/tasks", params={"status": "processing"})).json()["filtered"]:
            await client.get("/livez")
        answer = await client.post("/hf/fake", json={"inputs": "x"})
        if answer.json()["error_type"] != "queue_full":  # the first has begun meanwhile
            answer = await client.post("/hf/fake", json={"inputs": "x"})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
        client.app.state.lifecycle.begin_drain()
        answer = await client.post("/hf/fake", json={"inputs": "x"})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "draining")


async def test_other_errors(client: Client) -> None:
    unknown = await client.post("/hf/org/none", json={"inputs": "x"})
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "model_not_found")
    broken = await client.post("/hf/fake", content=b"{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["error_type"]) == (400, "malformed_body")
    no_picture = await client.post("/hf/fake", content=b"no picture")
    assert (no_picture.status_code, no_picture.json()["error_type"]) == (422, "invalid_image")
    reader = await key(client, "reader", Scope.READ)
    for headers, status in (({}, 401), (reader, 403)):
        assert (await client.post("/hf/fake", content=b"{", headers=headers)).status_code == status


async def test_a_failed_task_is_an_error(start: Start) -> None:
    async with start({"fake": {"fault": "error"}}) as client:
        answer = await client.post("/hf/fake", json={"inputs": "x"})
        assert (answer.status_code, answer.json()["error_type"]) == (500, "generation_failed")


async def test_a_caller_that_leaves_cancels_its_task(start: Start) -> None:
    async with start(SLOW, drain_timeout_s=0) as client:
        await post_and_go(client, {"inputs": "x"}, "/hf/fake")
        assert (await client.until((await newest(client))["task_id"]))["status"] == "cancelled"
