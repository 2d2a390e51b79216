"""The OpenAPI document: what generators of clients need, and that no change of it breaks clients unnoticed."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from scripts import openapi
from scripts.openapi_changes import breaking_changes, version_allows_breaks

from imagegen.api.document import operations, referred
from imagegen.api.native.events import StreamedEvent, TaskStreamEvent, kinds_of_event
from imagegen.api.problems import CODES, Problem
from imagegen.app import create_app
from imagegen.catalog.catalog import Catalog, ModelSpec
from imagegen.core.errors import FailureCode
from imagegen.core.events import StreamEvent, TaskEvent
from imagegen.loaders import SPECS
from imagegen.settings import Settings

DOCUMENT: dict[str, Any] = openapi.document()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {operation["operationId"]: operation for _, operation in operations(DOCUMENT)}


def values(part: Any, name: str) -> Iterator[Any]:
    """All values of a key anywhere in a part of the document."""
    if isinstance(part, dict):
        yield from (part[name],) if name in part else ()
        for inner in part.values():
            yield from values(inner, name)
    elif isinstance(part, list):
        for inner in part:
            yield from values(inner, name)


# -- the stored copy ---------------------------------------------------------------------------------------------------


def test_the_stored_document_is_the_one_that_the_service_has() -> None:
    stored = json.loads(openapi.STORED.read_text())
    assert openapi.refused(stored, DOCUMENT) == []
    assert openapi.STORED.read_text() == openapi.written(DOCUMENT), "run `make openapi`"


def changed(*path: str, to: Any = None) -> dict[str, Any]:
    """A copy of the document with a part replaced, or removed."""
    document = copy.deepcopy(DOCUMENT)
    *way, last = path
    part = document
    for name in way:
        part = part[name]
    if to is None:
        del part[last]
    else:
        part[last] = to
    return document


def schema(name: str, *path: str) -> tuple[str, ...]:
    return ("components", "schemas", name, *path)


TEXT2IMAGE = ("paths", "/text2image", "post")
FIELDS = SCHEMAS["Text2ImageBody"]["properties"]

BREAKS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a path": (("paths", "/plan"), None, "POST /plan is gone"),
    "an operation": (("paths", "/task/{task_id}", "delete"), None, "DELETE /task/{task_id} is gone"),
    "a method's name": ((*TEXT2IMAGE, "operationId"), "draw", "its operationId was text2image"),
    "a parameter": ((*TEXT2IMAGE, "parameters"), [], "the parameter prefer is gone"),
    "an answer": ((*TEXT2IMAGE, "responses", "202"), None, "the answer 202 is gone"),
    "a header": ((*TEXT2IMAGE, "responses", "202", "headers"), {}, "the header Location of the answer 202 is gone"),
    "a field of a request": (schema("Text2ImageBody", "properties", "seed"), None, "the field seed is gone"),
    "a field of an answer": (schema("TaskView", "properties", "seed"), None, "the field seed is gone"),
    "a code": (schema("ErrorCode", "enum"), ["queue_full"], "the value draining is gone"),
    "a new field that is needed": (schema("Text2ImageBody", "required"), ["prompt", "model"], "needs the field model"),
    "a field that may be missing": (schema("TaskView", "required"), ["task_id"], "the field status may be missing"),
    "a bound": (schema("Text2ImageBody", "properties", "previews", "maximum"), 4, "previews: maximum is 4, was 8"),
    "a type": (schema("Text2ImageBody", "properties", "prompt", "type"), "integer", "takes no string any more"),
    "a type that is read": (schema("TaskView", "properties", "seed", "type"), "string", "seed: may be string"),
    "an event": (
        schema("TaskStreamEvent", "oneOf"),
        [it for it in SCHEMAS["TaskStreamEvent"]["oneOf"] if not it["$ref"].endswith("/TaskStep")],
        "step is gone",
    ),
    "a webhook": (("webhooks", "task.started"), None, "webhook task.started is gone"),
}


@pytest.mark.parametrize(("path", "to", "says"), BREAKS.values(), ids=BREAKS)
def test_a_change_that_breaks_clients_is_refused_until_the_version_moves(
    path: tuple[str, ...], to: Any, says: str
) -> None:
    document = changed(*path, to=to)
    assert says in "\n".join(openapi.refused(DOCUMENT, document))
    document["info"] = document["info"] | {"version": "99.0.0"}
    assert openapi.refused(DOCUMENT, document) == []


ADDS = {
    "a path": (("paths", "/new"), DOCUMENT["paths"]["/plan"]),
    "an optional field": (schema("Text2ImageBody", "properties", "hint"), {"type": "string"}),
    "a field of an answer": (schema("TaskView", "properties", "hint"), {"type": "string"}),
    "a wider bound": (schema("Text2ImageBody", "properties", "previews", "maximum"), 16),
    "a code": (schema("ErrorCode", "enum"), [*CODES, "new"]),
    "a description": (schema("TaskView", "description"), "Another one."),
    "an optional parameter": (
        (*TEXT2IMAGE, "parameters"),
        [
            *DOCUMENT["paths"]["/text2image"]["post"]["parameters"],
            {"name": "x", "in": "query", "required": False, "schema": {"type": "string"}},
        ],
    ),
}


@pytest.mark.parametrize(("path", "to"), ADDS.values(), ids=ADDS)
def test_what_is_added_breaks_nothing(path: tuple[str, ...], to: Any) -> None:
    assert breaking_changes(DOCUMENT, changed(*path, to=to)) == []


@pytest.mark.parametrize(
    ("old", "new", "allows"),
    [("0.1.0", "0.1.1", False), ("0.1.0", "0.2.0", True), ("1.1.0", "1.2.0", False), ("1.9.9", "2.0.0", True)],
)
def test_how_far_the_version_must_move(old: str, new: str, allows: bool) -> None:
    assert version_allows_breaks(old, new) is allows


# -- for generators ----------------------------------------------------------------------------------------------------


def test_a_document_of_version_3_1_has_no_keyword_of_3_2() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert [*values(DOCUMENT, "itemSchema")] == []


def test_all_references_lead_somewhere() -> None:
    for reference in values(DOCUMENT, "$ref"):
        _, _, kind, name = reference.split("/")
        assert name in DOCUMENT["components"][kind]
    used = referred(DOCUMENT, [DOCUMENT["paths"], DOCUMENT["webhooks"]])
    assert used == SCHEMAS.keys()


def test_files_are_binary_under_a_type_that_every_generator_reads_as_bytes() -> None:
    for name in ("get_image", "get_bundle"):
        content = OPERATIONS[name]["responses"]["200"]["content"]
        assert {json.dumps(it["schema"]) for it in content.values()} == {'{"type": "string", "format": "binary"}'}
        assert "application/octet-stream" in content


def test_fields_with_a_default_are_optional_in_requests_and_there_in_answers() -> None:
    # openapi-typescript takes a field with `default` for a required one.
    assert [*values(SCHEMAS, "default")] == []
    assert SCHEMAS["Text2ImageBody"]["required"] == ["prompt"]
    assert FIELDS["batch_size"]["description"].endswith(" Default: `1`.")
    assert "fits" in SCHEMAS["PlanView"]["required"]


def test_the_events_of_each_stream_are_a_union_that_type_tells_apart() -> None:
    kinds = {it.name: it for it in kinds_of_event()}
    of_task = {name for name, it in kinds.items() if issubclass(it, TaskEvent | StreamEvent)}
    of_all = {name for name, it in kinds.items() if it.lasting or not issubclass(it, TaskEvent)}
    for operation, name, expected in (
        ("follow_task", "TaskStreamEvent", of_task),
        ("follow_events", "StreamedEvent", of_all),
    ):
        content = OPERATIONS[operation]["responses"]["200"]["content"]
        assert content == {"text/event-stream": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        mapping = SCHEMAS[name]["discriminator"]["mapping"]
        assert mapping.keys() == expected
        for word, reference in mapping.items():
            event = SCHEMAS[reference.rpartition("/")[2]]
            assert event["properties"]["type"]["const"] == word
            assert "type" in event["required"]
    pull = OPERATIONS["follow_pull"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    assert "type" in SCHEMAS[pull["$ref"].rpartition("/")[2]]["required"]


def test_codes_are_enumerations() -> None:
    assert SCHEMAS["Problem"]["properties"]["code"] == {"$ref": "#/components/schemas/ErrorCode"}
    assert SCHEMAS["ErrorCode"]["enum"] == list(CODES)
    for name in ("TaskView", "PullView", "ModelView"):
        assert "#/components/schemas/FailureCode" in values(SCHEMAS[name]["properties"]["error_code"], "$ref")
    assert SCHEMAS["FailureCode"]["enum"] == [*FailureCode]


def test_there_is_one_class_of_loras() -> None:
    named = [name for name in SCHEMAS if "Lora" in name]
    assert named == ["EntryLora", "Lora"]  # that of models.yaml, that of requests and tasks
    for name in ("Text2ImageBody", "TaskView", "GenerationRequest"):
        assert "#/components/schemas/Lora" in values(SCHEMAS[name]["properties"]["loras"], "$ref")
    assert SCHEMAS["Lora"]["required"] == ["path"]


def test_bodies_of_models_and_of_the_configuration_are_typed() -> None:
    fields = {name for kind in SPECS.values() for name in kind.model_fields}
    assert SCHEMAS["ModelConfig"]["properties"].keys() == fields
    assert set(SCHEMAS["ModelConfig"]["required"]) == set(ModelSpec.model_fields)
    assert SCHEMAS["ModelPatchBody"]["properties"].keys() == fields
    assert "required" not in SCHEMAS["ModelPatchBody"]
    assert SCHEMAS["NewModelBody"]["required"] == ["model_id", "name", "type"]
    assert SCHEMAS["SettingsPatchBody"]["properties"].keys() == SCHEMAS["GlobalSettings"]["properties"].keys()
    for name in ("ModelPatchBody", "SettingsPatchBody"):
        for field in SCHEMAS[name]["properties"].values():
            assert {"type": "null"} in field["anyOf"]
    assert SCHEMAS["ModelDetails"]["properties"]["config"]["$ref"] == "#/components/schemas/ModelConfig"


def test_what_answers_have_in_their_headers_is_declared() -> None:
    headers = {
        (name, status): answer.get("headers", {}).keys()
        for name, operation in OPERATIONS.items()
        for status, answer in operation["responses"].items()
    }
    assert all("X-Request-ID" in them for them in headers.values())
    for name in ("text2image", "image2image", "replay_task"):
        assert {"Location", "Retry-After", "Preference-Applied", "Idempotency-Replayed"} <= headers[name, "202"]
        assert {"Content-Location", "Preference-Applied"} <= headers[name, "200"]
        assert "Retry-After" in headers[name, "503"]
    for name in ("get_image", "get_model", "list_models", "get_settings", "update_model", "delete_model"):
        assert "ETag" in headers[name, "200"]
    for name in ("list_tasks", "list_deliveries"):
        assert "Link" in headers[name, "200"]
    assert {"Location", "ETag"} <= headers["create_model", "201"]
    assert "WWW-Authenticate" in headers["get_task", "401"]
    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= headers["get_task", "429"]


def test_webhooks_are_described_with_their_headers() -> None:
    assert [*DOCUMENT["webhooks"]] == ["task.started", "task.completed", "task.failed", "task.cancelled"]
    for hook in (it["post"] for it in DOCUMENT["webhooks"].values()):
        sent = hook["requestBody"]["content"]["application/json"]["schema"]
        assert sent == {"$ref": "#/components/schemas/WebhookPayload"}
        assert [it["name"] for it in hook["parameters"]] == ["webhook-id", "webhook-timestamp", "webhook-signature"]
    assert SCHEMAS["WebhookPayload"]["properties"]["type"]["enum"] == [*DOCUMENT["webhooks"]]
    assert SCHEMAS["DeliveryDetails"]["properties"]["payload"]["$ref"] == "#/components/schemas/WebhookPayload"


def test_paths_are_in_the_order_of_their_tags() -> None:
    tags = [tag["name"] for tag in DOCUMENT["tags"]]
    assert tags == ["tasks", "images", "models", "configuration", "keys", "webhooks", "service"]
    shown = [operation["tags"] for _, operation in operations(DOCUMENT)]
    assert all(len(it) == 1 for it in shown)
    order = [tags.index(it[0]) for it in shown]
    assert order == sorted(order)
    assert [*DOCUMENT["paths"]][:3] == ["/text2image", "/image2image", "/plan"]


def test_the_document_has_our_own_api_only(shipped: Catalog, tmp_path: Path) -> None:
    prefixes = create_app(Settings(data_dir=tmp_path), shipped).state.error_renderers
    assert not [path for path in DOCUMENT["paths"] for prefix in prefixes if f"{path}/".startswith(f"{prefix}/")]


def test_the_server_is_the_public_url_and_the_document_stays_as_it_is(shipped: Catalog, tmp_path: Path) -> None:
    url = "https://example.com/imagegen"
    app = create_app(Settings(data_dir=tmp_path, public_url=url), shipped)
    assert DOCUMENT["servers"] == [{"url": "/"}]
    assert app.openapi() == DOCUMENT | {"servers": [{"url": url}]}
    assert app.openapi() == app.openapi()


# -- examples ----------------------------------------------------------------------------------------------------------


def classes(annotation: Any, seen: set[type[BaseModel]]) -> None:
    """Collect the classes that a type contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
        seen.add(annotation)
        for field in annotation.model_fields.values():
            classes(field.annotation, seen)
    for part in get_args(annotation):
        classes(part, seen)


def documented() -> set[type[BaseModel]]:
    """The classes of all bodies and answers."""
    found: set[type[BaseModel]] = {Problem}
    waiting = [BaseModel]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("imagegen.") and kind.__name__ in SCHEMAS:
                classes(kind, found)
    return found


def test_every_example_is_a_value_of_its_field() -> None:
    checked = 0
    for kind in documented():
        for field in kind.model_fields.values():
            assert isinstance(field, FieldInfo)
            for example in field.examples or ():
                annotation: Any = field.annotation
                TypeAdapter(annotation).validate_python(example)
                checked += 1
    assert checked > 40


def test_every_event_is_of_the_documented_form() -> None:
    adapters = [TypeAdapter(kind) for kind in (TaskStreamEvent, StreamedEvent)]
    step = {"type": "step", "task_id": "a", "step": 1, "total": 4}
    for adapter in adapters:
        assert adapter.dump_python(adapter.validate_python(step)) == step


def test_every_body_of_a_request_has_an_example() -> None:
    for name, operation in OPERATIONS.items():
        for media in operation.get("requestBody", {}).get("content", {}).values():
            reference = media["schema"]["$ref"].rpartition("/")[2]
            assert SCHEMAS[reference]["examples"], name


def test_summaries_and_descriptions_are_there() -> None:
    for name, operation in OPERATIONS.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert re.fullmatch(r"[a-z0-9_]{3,32}", name)
