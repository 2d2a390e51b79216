"""The OpenAPI document and the service agree: examples are accepted, and answers have the documented form."""

from typing import Any

from pydantic import TypeAdapter

from imagegen.api.document import operations
from imagegen.api.native.events import StreamedEvent, event_view
from imagegen.api.native.webhooks import WebhookPayload
from imagegen.core.errors import FailureCode
from imagegen.core.events import (
    ConfigChanged,
    ModelLoaded,
    ModelPulling,
    ModelUnloaded,
    StreamClosed,
    TaskFailed,
    TaskSaved,
    TaskStep,
)
from imagegen.core.task import Failure, StoredImage
from imagegen.core.webhooks import WebhookEvent
from tests.api.conftest import Client

#: What the paths of operations with a body are filled with.
NAMES = {"model_id": "fake"}

FAILURE = Failure(code=FailureCode.OUT_OF_MEMORY, message="No memory is left.")


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(document["components"]["schemas"][name])


def body_of(operation: dict[str, Any]) -> str:
    """The name of the schema of an operation's body."""
    return str(operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])


async def test_every_example_of_a_request_is_accepted(client: Client) -> None:
    document, sent = client.app.openapi(), 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "requestBody" not in operation or path == "/keys":
                continue
            for example in schema(document, body_of(operation))["examples"]:
                # The only model here.
                body = example | {"model": "fake"} if "prompt" in example else example
                body = dict.fromkeys(example, "fake") if path == "/config/aliases" else body
                answer = await client.request(method, path.format(**NAMES), json=body)
                assert answer.is_success, (path, answer.text)
                assert str(answer.status_code) in operation["responses"]
                sent += 1
    assert sent > 8
    # Last, because from then on every request needs a key.
    (example,) = schema(document, "KeyBody")["examples"]
    assert (await client.post("/keys", json=example)).status_code == 201


async def test_the_example_of_a_problem_is_what_a_wrong_request_gets(client: Client) -> None:
    (example,) = schema(client.app.openapi(), "Problem")["examples"]
    assert (await client.post("/text2image", json={"prompt": "x", "steps": 1000})).json() == example


async def test_every_declared_header_that_a_status_must_have_is_there(client: Client) -> None:
    answers = {
        (it["operationId"], status): answer
        for _, it in operations(client.app.openapi())
        for status, answer in it["responses"].items()
    }
    body = {"prompt": "a picture"}
    headers = {"Idempotency-Key": "a", "Prefer": "wait=60"}
    made = await client.post("/text2image", json=body, headers=headers)
    again = await client.post("/text2image", json=body, headers={"Idempotency-Key": "a"})
    assert (made.status_code, again.status_code) == (200, 202)
    picture = await client.get(made.json()["images"][0]["url"])
    for name, answer, optional in (
        ("text2image", made, {"Idempotency-Replayed"}),
        ("text2image", again, {"Preference-Applied"}),
        ("get_image", picture, set()),
        ("get_model", await client.get("/models/fake"), set()),
        ("get_settings", await client.get("/config/global"), set()),
        ("get_image", await client.get(picture.url, headers={"Range": "bytes=0-9"}), set()),
        ("get_image", await client.get(picture.url, headers={"Range": "bytes=99999999-"}), set()),
    ):
        declared = answers[name, str(answer.status_code)]["headers"].keys() - optional
        assert {it.lower() for it in declared} <= answer.headers.keys(), name


async def test_the_entry_of_a_model_is_as_documented(client: Client) -> None:
    config = schema(client.app.openapi(), "ModelConfig")
    shown = (await client.get("/models/fake")).json()["config"]
    assert set(config["required"]) <= shown.keys() <= config["properties"].keys()
    assert config["properties"]["type"]["enum"] == sorted(client.app.state.services.writer.families)


async def test_a_new_model_needs_what_is_documented_and_no_pipeline_class(client: Client) -> None:
    assert schema(client.app.openapi(), "NewModelBody")["required"] == ["model_id", "name", "type"]
    answer = await client.post("/models", json={"model_id": "c", "name": "C", "type": "flux", "local_path": "c"})
    assert answer.status_code == 201, answer.text
    assert (await client.get("/models/c")).json()["pipeline_class"] == "FluxPipeline"


async def test_a_replay_answers_200_to_callers_that_wait(client: Client) -> None:
    task_id = await client.submit()
    await client.until(task_id)
    answer = await client.post(f"/task/{task_id}/replay", headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["replay"]["of"]) == (200, task_id)


async def test_the_payload_of_a_webhook_is_as_documented(client: Client) -> None:
    task_id = await client.submit()
    await client.until(task_id)
    task = await client.app.state.services.tasks.records.get(task_id)
    render = client.app.state.lifecycle._journal.outbox.render
    for event in WebhookEvent:
        payload = WebhookPayload.model_validate_json(render(task, event, task.created_at))
        assert (payload.type, payload.data.task_id) == (f"task.{event}", task_id)


async def test_every_kind_of_event_has_the_documented_form() -> None:
    documented: TypeAdapter[Any] = TypeAdapter(StreamedEvent)
    for event in (
        TaskStep(task_id="a", step=1, total=4),
        TaskFailed(task_id="a", failure=FAILURE),
        TaskSaved(task_id="a", images=(StoredImage(path="f/a-0.png", width=1, height=1, seed=1),)),
        ModelLoaded(model="a", seconds=1.5, device_bytes=1),
        ModelUnloaded(model="a", reason="idle"),
        ModelPulling(model="a", state="failed", bytes_done=1, bytes_total=None, failure=FAILURE),
        ConfigChanged(source="rest", etag="a", added=(), changed=("a",), removed=(), settings=()),
        StreamClosed(reason="too_slow"),
    ):
        data = event_view(event)
        assert data["type"] == event.name
        assert documented.validate_python(data).model_dump(mode="json") == data
