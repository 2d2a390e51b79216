"""The OpenAPI document: completes what FastAPI generates, for people and for generators of clients.

It has our own API only. Other APIs are described by those who made them; their routes have `include_in_schema=False`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from imagegen.api.headers import headers, headers_described
from imagegen.api.problems import PROBLEM, describe, problem_schemas
from imagegen.api.request_ids import HEADER as REQUEST_ID
from imagegen.api.security import SCHEMES

Json = dict[str, Any]

#: The keys of the document, in reading order.
_ORDER = ("openapi", "info", "servers", "tags", "paths", "webhooks", "components")

_REFERENCE = re.compile(r'"#/components/schemas/([^"]+)"')


#: Until the document is complete: the name of the class that a value is shown as.
_SHOWN_AS = "x-shown-as"


@dataclass(frozen=True)
class DocumentedAs:
    """Annotation of a value: the document shows another class for it, one that it has anyway."""

    kind: type[BaseModel]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {_SHOWN_AS: self.kind.__name__}


def complete_document(app: FastAPI, schemas: Callable[[], Mapping[str, Json]]) -> None:
    """Complete the OpenAPI document of an application when it is asked for.

    `schemas` replace those of the same names, of bodies whose fields depend on the families of models.
    """
    generate = app.openapi
    app.state.document = None

    def openapi() -> Json:
        document = generate()
        if document is not app.state.document:
            document = app.openapi_schema = app.state.document = _completed(document, schemas())
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Each operation with its path."""
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def referred(document: Json, start: object) -> set[str]:
    """The names of the schemas that a part of the document refers to, directly or through other schemas."""
    found: set[str] = set()
    waiting = set(_REFERENCE.findall(json.dumps(start)))
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(_REFERENCE.findall(json.dumps(document["components"]["schemas"][name]))) - found
    return found


def _completed(document: Json, schemas: Mapping[str, Json]) -> Json:
    for _, operation in operations(document):
        _declare_answers(operation)
        _without_titles(operation)
    for item in document.get("webhooks", {}).values():
        for hook in item.values():
            hook["security"] = []
            hook["responses"].pop("422", None)
            _without_titles(hook)
    components = document["components"]
    components["headers"] = headers_described()
    components["securitySchemes"] = dict(SCHEMES)
    components["schemas"] |= problem_schemas() | dict(schemas)
    for schema in components["schemas"].values():
        _without_titles(schema.get("properties", {}))
        _refer(schema)
    used = referred(document, [document["paths"], document.get("webhooks")])
    components["schemas"] = {name: components["schemas"][name] for name in sorted(used)}
    _settle_defaults(document)
    document["paths"] = _in_order_of_tags(document)
    return {key: document[key] for key in _ORDER if key in document}


def _declare_answers(operation: Json) -> None:
    """Declare what all operations have in common."""
    answers = operation["responses"]
    if "HTTPValidationError" in json.dumps(answers.get("422")):
        answers["422"] = describe("invalid_request")[422]
    common: Json = {"default": {"description": "Any other error.", "content": dict(PROBLEM)}}
    refusals = ("unauthorized", "forbidden", "limit_reached") if "security" in operation else ("unknown_host",)
    common |= {str(status): answer for status, answer in describe(*refusals).items()}
    for status, answer in common.items():
        answers.setdefault(status, answer)
    for answer in answers.values():
        answer["headers"] = answer.get("headers", {}) | headers(REQUEST_ID)
        _declare_events(answer.get("content", {}))
    operation["responses"] = dict(sorted(answers.items()))
    operation["security"] = [{name: []} for name in SCHEMES] if "security" in operation else []


def _declare_events(content: Json) -> None:
    """Of a stream, the schema is that of the data of one event; FastAPI adds that it is text."""
    schema = content.get("text/event-stream", {}).get("schema", {})
    if "$ref" in schema:
        schema.pop("type", None)


def _without_titles(part: object) -> None:
    """Remove the titles that pydantic makes of the names of fields and parameters."""
    if isinstance(part, list):
        for inner in part:
            _without_titles(inner)
    elif isinstance(part, dict):
        if isinstance(part.get("title"), str):
            del part["title"]
        for name, inner in part.items():
            if name not in ("example", "examples"):
                _without_titles(inner)


def _refer(part: object) -> None:
    """Refer to the classes that DocumentedAs names."""
    if isinstance(part, dict) and _SHOWN_AS in part:
        part["$ref"] = f"#/components/schemas/{part.pop(_SHOWN_AS)}"
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _refer(inner)


def _settle_defaults(document: Json) -> None:
    """Say for each field with a default whether a client must send it, or can rely on it.

    The default of a field that clients send goes into its description: openapi-typescript takes a field with a
    `default` for a required one. A field of an answer is always there.
    """
    schemas = document["components"]["schemas"]
    asked = referred(document, [operation.get("requestBody") for _, operation in operations(document)])
    for name, schema in schemas.items():
        fields = schema.get("properties", {})
        present = set(schema.get("required", ()))
        for field, it in fields.items():
            if "default" not in it:
                continue
            default = it.pop("default")
            if name not in asked:
                present.add(field)
            elif not isinstance(default, list | dict):
                text = default if isinstance(default, str) else json.dumps(default)
                it["description"] = f"{it.get('description', '')} Default: `{text}`.".strip()
        if present:
            schema["required"] = [field for field in fields if field in present]


def _in_order_of_tags(document: Json) -> Json:
    tags = [tag["name"] for tag in document["tags"]]
    place = {path: tags.index(next(iter(item.values()))["tags"][0]) for path, item in document["paths"].items()}
    return {path: document["paths"][path] for path in sorted(document["paths"], key=place.__getitem__)}
