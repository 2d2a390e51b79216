"""Writes what is made from the classes of models.yaml: config/models.schema.json, and the tables of its fields in
docs/configuration.md, between `<!-- made by scripts/reference.py: PART -->` and `<!-- end -->`.
"""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic.fields import FieldInfo

from imagegen.catalog.catalog import GlobalSettings, ModelSpec, Section
from imagegen.catalog.fields import spellings
from imagegen.catalog.loading import Families
from imagegen.catalog.schema import description, json_schema
from imagegen.loaders import SPECS

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "config" / "models.schema.json"
PAGE = ROOT / "docs" / "configuration.md"

#: What the page says of a field beside its description, which editors and the OpenAPI document show without links.
MORE: Mapping[str, str] = MappingProxyType(
    {
        "max_resident": "[More](#several-resident-models).",
        "cpu_offload": "[What is where](models.md#offloading).",
        "host_cache_gb": "The least recently used model leaves first, and each model after its own idle time. The "
        "memory of offloaded models counts, and so does the copy that a model keeps after it returned to the device. "
        "[How it works](models.md#host-memory).",
        "auto_download": "[Getting weights](weights.md).",
        "patience_swaps": "[Which task is next](scheduling.md).",
        "quantum_swaps": "[Which task is next](scheduling.md).",
        "ageing_minutes": "[Which task is next](scheduling.md).",
        "max_queue": "Refused with 503 (`queue_full`).",
        "max_task_seconds": "Refused with 422 (`task_too_long`).",
        "retention_days": "[How long things are kept](api.md#how-long-things-are-kept).",
        "hf_path": "Used if `local_path` does not exist: [Getting weights](weights.md).",
        "supports_text2img": "[What each class can do](models.md#what-each-pipeline-class-can-do).",
        "max_batch": "[Sharing a call](scheduling.md#sharing-a-call).",
        "layerwise_casting": "LoRAs keep their dtype.",
        "attention_backend": "[What torch chooses](models.md#speed).",
        "quantize": "torchao comes with `pip install 'imagegen[quantize]'`. Such a model takes no LoRA and does not "
        "stay warm. [More](models.md#speed).",
        "compile": "That takes about a minute with a large model. [More](models.md#speed).",
        "step_cache": "For FLUX.1 and FLUX.2; not for `flux_nunchaku`. 0.05 to 0.2 are usual. It works with `compile`.",
        "max_sequence_length": "More than the pipeline takes is an error: 512 for FLUX.1, SD3, Chroma, Bria and "
        "Lumina 2; 256 for Kolors and Ovis; 1024 for Qwen.",
        "parts": "`parts: {vae: org/repo, text_encoder_3: null}`.",
        "loras": "Each has a `path`, a `scale` (1) and, if it is on the hub, `repo`. [Which files](models.md#loras).",
    }
)

HEAD = "| field | value | default | what it does |\n|---|---|---|---|"


def made() -> dict[Path, str]:
    """Each file, and what must be in it."""
    return {
        PAGE: with_tables(PAGE.read_text(encoding="utf-8"), SPECS),
        SCHEMA: json.dumps(json_schema(SPECS), indent=2) + "\n",
    }


def with_tables(page: str, families: Families) -> str:
    """The page with present tables between the marks."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{tables(families)[found[2]]}\n<!-- end -->"

    return re.sub(r"(<!-- made by scripts/reference\.py: (\w+) -->).*?<!-- end -->", table, page, flags=re.DOTALL)


def tables(families: Families) -> dict[str, str]:
    """The tables in Markdown: `global`, and those of the entries, under headings."""
    by_kind: dict[type[ModelSpec], list[str]] = {}
    for word, kind in families.items():
        by_kind.setdefault(kind, []).append(word)
    entries = {"Every entry": _rows(ModelSpec, families)}
    for kind in _bases(by_kind):
        words = [word for one, names in by_kind.items() if issubclass(one, kind) for word in names]
        # A class for all families of diffusers: a list of all types would say less.
        every = set(words) == {word for word, one in families.items() if issubclass(one, kind)} == set(families)
        title = "Memory, speed and parts" if every else f"Type {', '.join(f'`{it}`' for it in words)}"
        entries.setdefault(title, []).extend(_rows(kind, families))
    parts = [f"#### {title}\n\n{HEAD}\n" + "\n".join(rows) + "\n" for title, rows in entries.items()]
    return {"global": f"{HEAD}\n" + "\n".join(_rows(GlobalSettings, families)) + "\n", "models": "\n".join(parts)}


def _bases(by_kind: Iterable[type[ModelSpec]]) -> Iterator[type[ModelSpec]]:
    """Every class between ModelSpec and a family, base classes first."""
    seen: dict[type[ModelSpec], None] = {}
    for kind in by_kind:
        for base in reversed(kind.__mro__):
            if issubclass(base, ModelSpec) and base is not ModelSpec:
                seen.setdefault(base)
    yield from seen


def _rows(kind: type[Section], families: Families) -> list[str]:
    """One row for each field that this class itself declares."""
    schema = kind.model_json_schema(by_alias=False)
    own = inspect.get_annotations(kind)
    rows = []
    for name, info in kind.model_fields.items():
        if name not in own or (name == "type" and kind is not ModelSpec):
            continue
        value = ", ".join(f"`{it}`" for it in families) if name == "type" else _value(schema["properties"][name])
        about = description(kind, name)
        # A field that overrides one of `global` says so, and is explained there.
        says = about if about.startswith("Overrides") else f"{about} {MORE.get(name, '')}".strip()
        rows.append(f"| {_names(name, info)} | {value} | {_default(kind, name, families)} | {says} |")
    return rows


def _names(name: str, info: FieldInfo) -> str:
    first, *older = (f"`{spelling}`" for spelling in spellings(name, info))
    return f"{first} (also {', '.join(older)})" if older else first


def _default(kind: type[Section], name: str, families: Families) -> str:
    info = kind.model_fields[name]
    if info.is_required():
        # A family may have a default for a field that its base class requires.
        needed = [
            word for word, it in families.items() if not issubclass(it, kind) or it.model_fields[name].is_required()
        ]
        if kind is not ModelSpec or len(needed) == len(families):
            return "required"
        return (
            f"that of the type; required for {', '.join(f'`{it}`' for it in needed)}" if needed else "that of the type"
        )
    default = info.get_default(call_default_factory=True)
    return "" if default in (None, "", (), {}) else f"`{json.dumps(default)}`".replace('"', "")


def _value(schema: Mapping[str, Any]) -> str:
    """The type of a value, with its bounds."""
    if "anyOf" in schema:
        return " or ".join(_value(it) for it in schema["anyOf"] if it.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "object":
        (value,) = schema["patternProperties"].values()
        return f"names, each with {_value(value)}"
    kinds = {"integer": "a whole number", "number": "a number", "boolean": "`true` or `false`", "array": "a list"}
    return kinds.get(schema.get("type", ""), "text") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    if "maxLength" in schema:
        return f", at most {schema['maxLength']} characters"
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is None or high is None:
        return ""
    return f", {'above ' if 'exclusiveMinimum' in schema else ''}{float(low):g} to {float(high):.10g}"


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
