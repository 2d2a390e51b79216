"""Generates from the classes: the JSON schema of models.yaml for editors, and schemas for HTTP."""

from collections.abc import Collection
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from imagegen.catalog.catalog import (
    MAX_ALIASES,
    RESERVED_IDS,
    AliasName,
    GlobalSettings,
    ModelId,
    ModelSpec,
    Section,
)
from imagegen.catalog.fields import spellings
from imagegen.catalog.loading import Families

ALIASES = (
    "Other names of models, each with the id of a model: clients of other APIs send names such as `gpt-image-1`. `*` "
    "is every name that is neither an id nor an alias. Without it, such a name is refused."
)


def description(kind: type[Section], name: str) -> str:
    """The description of a field. A family that narrows `pipeline_class` inherits the one of its base class."""
    for base in kind.__mro__:
        if issubclass(base, Section) and name in base.model_fields and (text := base.model_fields[name].description):
            return text
    return ""


# -- for editors -------------------------------------------------------------------------------------------------------


def json_schema(families: Families) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a models.yaml."""
    definitions: dict[str, Any] = {}
    for kind in {GlobalSettings: None} | dict.fromkeys(families.values()):
        definitions |= _definitions(kind)
    entry = {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": sorted(families), "description": "The model's family."}},
        "allOf": [
            {
                "if": {"properties": {"type": {"const": word}}, "required": ["type"]},
                "then": {"$ref": f"#/$defs/{kind.__name__}"},
            }
            for word, kind in families.items()
        ],
    }
    settings = {"anyOf": [{"$ref": "#/$defs/GlobalSettings"}, {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "models.yaml of imagegen",
        "type": "object",
        "required": ["models"],
        "additionalProperties": False,
        "properties": {
            "global": settings,
            "settings": settings | {"deprecated": True, "description": "The older name of `global`."},
            "aliases": {
                "type": ["object", "null"],
                "description": ALIASES,
                "maxProperties": MAX_ALIASES,
                "propertyNames": TypeAdapter(AliasName).json_schema(),
                "additionalProperties": TypeAdapter(ModelId).json_schema(),
            },
            "models": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {
                    "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
                    "not": {"enum": sorted(RESERVED_IDS)},
                },
                "additionalProperties": entry,
            },
        },
        "$defs": definitions,
    }


def _definitions(kind: type[Section]) -> dict[str, Any]:
    """The schema of a section and of those inside it, each under its class's name."""
    schema = kind.model_json_schema(by_alias=False, ref_template="#/$defs/{model}")
    inner = schema.pop("$defs", {})
    properties = schema["properties"]
    for name, info in kind.model_fields.items():
        shown = properties[name]
        shown.pop("title", None)
        if text := description(kind, name):
            shown["description"] = text
        for older in spellings(name, info)[1:]:
            # An older spelling `enable_...` takes a boolean as well.
            value = {"anyOf": [shown, {"type": "boolean"}]} if older.startswith("enable_") else shown
            properties[older] = {**value, "deprecated": True, "description": f"Another name of `{name}`."}
    # A required field may also be given in an older spelling.
    older_names = {name for name, info in kind.model_fields.items() if len(spellings(name, info)) > 1}
    schema["required"] = [name for name in schema.get("required", ()) if name not in older_names]
    return {kind.__name__: schema, **inner}


# -- for HTTP ----------------------------------------------------------------------------------------------------------


class Fields(NamedTuple):
    """The fields of a section as JSON schemas, by name; `inner` has the schemas that they refer to."""

    properties: dict[str, Any]
    inner: dict[str, Any]

    def as_shown(self, always: Collection[str]) -> dict[str, Any]:
        """The schema of the whole section, with defaults: the fields in `always` are there."""
        required = [name for name in self.properties if name in always]
        return {"type": "object", "properties": self.properties, "required": required}

    def as_changed(self, needed: Collection[str] = (), **others: dict[str, Any]) -> dict[str, Any]:
        """The schema of a change: all fields are optional but those in `needed`, and null resets one to its default.

        `others`: fields before these.
        """
        own = {name: it if name in needed else _nullable(it) for name, it in self.properties.items()}
        required = [*others, *needed]
        schema = {"type": "object", "properties": others | own, "additionalProperties": False}
        return schema | ({"required": required} if required else {})


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("anyOf", [{name: it for name, it in schema.items() if name != "description"}])
    about = {"description": schema["description"]} if "description" in schema else {}
    return {"anyOf": kinds if {"type": "null"} in kinds else [*kinds, {"type": "null"}]} | about


def settings_fields(template: str) -> Fields:
    """The fields of `global`. `template`: of references, with `{model}`."""
    return _fields(GlobalSettings, template)


def entry_fields(families: Families, template: str) -> Fields:
    """The fields of an entry of any family. Those of single families say so. `template`: of references.

    One schema instead of one for each family, so that a new family adds fields and nothing else.
    """
    common = _fields(ModelSpec, template)
    properties, inner = dict(common.properties), dict(common.inner)
    properties["type"] = {"type": "string", "enum": sorted(families), "description": description(ModelSpec, "type")}
    of_family: dict[str, dict[str, dict[str, Any]]] = {}
    for word, kind in families.items():
        fields = _fields(kind, template)
        inner |= fields.inner
        for name in fields.properties.keys() - common.properties.keys():
            of_family.setdefault(name, {})[word] = fields.properties[name]
    for name, by_word in sorted(of_family.items()):
        words = ", ".join(f"`{word}`" for word in by_word)
        first, *others = by_word.values()
        about = {"description": f"{first['description']} Only for {words}."}
        # Families may give one name to different fields.
        different = [it for place, it in enumerate(others) if it not in (first, *others[:place])]
        properties[name] = ({"anyOf": [first, *different]} if different else first) | about
    return Fields(properties, inner)


def _fields(kind: type[Section], template: str) -> Fields:
    schema = kind.model_json_schema(by_alias=False, ref_template=template)
    inner = schema.pop("$defs", {})
    for name, field in schema["properties"].items():
        field.pop("title", None)
        field.pop("default", None)  # those of entries depend on the family
        field["description"] = description(kind, name)
    return Fields(schema["properties"], inner)
