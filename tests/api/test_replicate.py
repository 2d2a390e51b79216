"""The API of Replicate: what its clients send, and what they read."""

import asyncio
import base64
import io
import re
from typing import Any

from httpx import Response
from PIL import Image

from imagegen.core.keys import Scope
from tests.api.conftest import Client, Start
from tests.api.test_generation import picture
from tests.api.test_keys import key
from tests.api.test_waiting import SLOW
from tests.receiver import hooks, receiving

#: As replicate-python looks for the progress in the logs.
PROGRESS = re.compile(r"^\s*(?P<percentage>\d+)%\s*\|.+?\|\s*(?P<current>\d+)\/(?P<total>\d+)")

MODEL = "/v1/models/imagegen/fake/predictions"


async def predict(client: Client, path: str = MODEL, wait: str | None = "wait", **more: Any) -> Response:
    headers = more.pop("headers", {}) | ({"Prefer": wait} if wait else {})
    body = {"input": {"prompt": "a fox", "num_inference_steps": 2}} | more
    return await client.post(path, json=body, headers=headers)


async def until(client: Client, prediction: dict[str, Any], *statuses: str) -> dict[str, Any]:
    while (prediction := (await client.get(prediction["urls"]["get"])).json())["status"] not in statuses:
        await asyncio.sleep(0.01)
    return prediction


async def test_a_prediction_is_a_task_and_its_output_are_urls(client: Client) -> None:
    asked = {"prompt": "a fox", "width": 96, "height": 64, "num_outputs": 2, "seed": 5, "num_inference_steps": 3}
    answer = await predict(client, input=asked | {"guidance": 2.5, "output_format": "jpg", "output_quality": 80})
    assert answer.status_code == 201
    made = answer.json()
    assert (made["status"], made["model"], made["version"], made["error"]) == (
        "succeeded",
        "imagegen/fake",
        "fake",
        None,
    )
    assert made["input"] | {"guidance_scale": 2.5, "output_format": "jpeg", **asked} == made["input"]
    for url in made["output"]:
        with Image.open(io.BytesIO((await client.get(url)).content)) as image:
            assert (image.format, image.size) == ("JPEG", (96, 64))
    assert made["completed_at"].endswith("Z")
    assert made["urls"]["get"] == f"http://127.0.0.1/v1/predictions/{made['id']}"
    found = PROGRESS.match(made["logs"].splitlines()[-1])
    assert found is not None
    assert found.groups() == ("100", "6", "6")
    assert (await client.get(made["urls"]["get"])).json() == made
    listed = (await client.get("/v1/predictions")).json()
    assert [it["id"] for it in listed["results"]] == [made["id"]]
    assert listed["next"] is None


async def test_a_version_names_a_model(client: Client) -> None:
    for version in ("fake", "imagegen/fake", "imagegen/fake:fake", "imagegen/fake:0123456789abcdef"):
        answer = await predict(client, "/v1/predictions", version=version)
        assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")


async def test_without_a_wait_the_caller_polls(client: Client) -> None:
    answer = await predict(client, wait=None)
    assert answer.json()["status"] in ("starting", "processing")
    assert answer.json()["output"] is None
    assert (await until(client, answer.json(), "succeeded"))["output"]


async def test_a_prediction_can_be_cancelled(start: Start) -> None:
    async with start(SLOW, drain_timeout_s=0) as client:
        answer = (await predict(client, wait="wait=1", input={"prompt": "x"})).json()
        assert answer["status"] == "processing"
        assert (await client.post(answer["urls"]["cancel"])).status_code == 200
        ended = await until(client, answer, "canceled")
        again = await client.post(ended["urls"]["cancel"])
        assert (again.status_code, again.json()["status"]) == (200, "canceled")


async def test_a_failed_prediction_says_why(start: Start) -> None:
    async with start({"fake": {"fault": "error"}}) as client:
        answer = (await predict(client)).json()
        assert (answer["status"], answer["output"]) == ("failed", None)
        assert answer["error"]


async def test_an_input_picture_is_a_data_url_or_a_picture_of_this_service(client: Client) -> None:
    uploaded = await client.post(
        "/v1/files", files={"content": ("a.png", base64.b64decode(picture((32, 16))), "image/png")}
    )
    assert uploaded.status_code == 201
    url = uploaded.json()["urls"]["get"]
    assert url.startswith("data:image/png;base64,")
    edited = (await predict(client, input={"prompt": "x", "image": url, "prompt_strength": 0.5})).json()
    assert (edited["status"], edited["input"]["prompt_strength"]) == ("succeeded", 0.5)
    assert (edited["input"]["width"], edited["input"]["height"]) == (96, 48)
    again = await predict(client, input={"prompt": "x", "input_image": edited["output"][0]})
    assert again.json()["status"] == "succeeded"
    for wrong in ("http://example.com/a.png", "http://127.0.0.1/tasks", "http://127.0.0.1:1/images/a/b.png"):
        answer = await predict(client, input={"prompt": "x", "image": wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    missing = await predict(client, input={"prompt": "x", "image": "http://127.0.0.1/images/20260101/x.png"})
    assert missing.json()["code"] == "image_not_found"


#: Fields, and the size that they ask for.
SIZES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"aspect_ratio": "3:2"}, (80, 48)),
    ({"aspect_ratio": "custom", "width": 48, "height": 32}, (48, 32)),
    ({"image": picture((16, 32)), "aspect_ratio": "match_input_image"}, (48, 96)),
    ({"go_fast": True, "megapixels": "1", "disable_safety_checker": True}, (64, 64)),
]


async def test_sizes_by_the_names_of_replicates_models(client: Client) -> None:
    for asked, size in SIZES:
        made = (await predict(client, input={"prompt": "x", "num_inference_steps": 1} | asked)).json()
        assert (made["input"]["width"], made["input"]["height"]) == size


#: Bodies, and what the refusal of each says.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": {"prompt": "x", "scheduler": "K_EULER"}}, "scheduler"),
    ({"input": {"prompt": "x", "disable_safety_checker": False}}, "disable_safety_checker"),
    ({"input": {"prompt": "x", "aspect_ratio": "wide"}}, "aspect_ratio"),
    ({"input": {"prompt": "x", "width": 64}}, "width and height"),
    ({"input": {"prompt": "x", "mask": picture()}}, "mask needs image"),
    ({"webhook": "https://example.com/", "webhook_events_filter": ["end"]}, "webhook_events_filter"),
    ({"versoin": "fake"}, "did you mean 'version'"),
]


async def test_errors_are_problem_details_which_the_clients_read(client: Client) -> None:
    for wrong, said in REFUSED:
        answer = await predict(client, "/v1/predictions", **{"version": "fake"} | wrong)
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status_code, answer.json()["status"]) == (422, 422)
        assert said in str(answer.json())


async def test_unknown_models_and_predictions(client: Client) -> None:
    for path in ("/v1/predictions/none", "/v1/predictions/none/stream", "/v1/models/imagegen/none"):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert (await predict(client, "/v1/models/a/none/predictions")).json()["code"] == "model_not_found"


async def test_what_clients_ask_about_a_model(client: Client) -> None:
    model = (await client.get("/v1/models/imagegen/fake")).json()
    assert (model["owner"], model["name"]) == ("imagegen", "fake")
    version = (await client.get("/v1/models/imagegen/fake/versions/fake")).json()
    assert version == model["latest_version"]
    assert (await client.get("/v1/models/imagegen/fake/versions")).json()["results"] == [version]
    assert "prompt" in version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]


async def test_a_stream_has_logs_and_the_output(client: Client) -> None:
    made = (await predict(client, wait=None)).json()
    text = (await client.get(made["urls"]["stream"])).text
    events = re.findall(r"event: (\w+)\nid: \d+\ndata: (.*)\n", text)
    assert [name for name, _ in events] == ["logs", "logs", "output", "done"]
    assert PROGRESS.match(events[0][1])
    assert (await client.get(events[2][1])).status_code == 200


async def test_urls_need_no_key_where_the_service_has_keys(client: Client) -> None:
    alice, bob = await key(client, "alice"), await key(client, "bob")
    made = (await predict(client, headers=alice)).json()
    assert (await client.get(made["output"][0])).status_code == 200
    assert (await client.get(made["output"][0].partition("?")[0])).status_code == 401
    assert "event: done" in (await client.get(made["urls"]["stream"])).text
    for headers, status in ((alice, 200), (bob, 404), ({}, 401)):
        assert (await client.get(made["urls"]["get"], headers=headers)).status_code == status
    token = {"Authorization": alice["Authorization"].replace("Bearer", "Token")}
    assert (await client.get(made["urls"]["get"], headers=token)).status_code == 200
    reader = await key(client, "reader", Scope.READ)
    for path in (MODEL, "/v1/predictions", "/v1/files", f"/v1/predictions/{made['id']}/cancel"):
        assert (await client.post(path, content=b"{", headers=reader)).status_code == 403, path
        assert (await client.post(path, content=b"{")).status_code == 401, path


async def test_a_signed_stream_goes_on_until_its_task_has_ended(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.02, "steps": 30}}, housekeeping_s=0.02) as client:
        alice = await key(client, "alice")
        made = (await predict(client, wait=None, headers=alice)).json()
        assert made["status"] != "succeeded"
        assert "event: done" in (await client.get(made["urls"]["stream"])).text


async def test_a_webhook_has_the_prediction(start: Start) -> None:
    with receiving() as receiver:
        async with start(**hooks(receiver)) as client:
            made = await predict(client, webhook=receiver.url("/in"), webhook_events_filter=["start", "completed"])
            assert made.status_code == 201, made.text
            await asyncio.to_thread(receiver.until, "/in", 2)
    bodies = [attempt.verified() for attempt in receiver.at("/in")]
    assert [body["status"] for body in bodies] == ["processing", "succeeded"]
    assert bodies[1]["output"] == made.json()["output"]
