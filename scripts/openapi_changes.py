"""The changes of the OpenAPI document that break clients, as sentences. Pure."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

#: Bounds of a request's values: keyword -> whether a larger number allows more.
_BOUNDS = {
    "maximum": True,
    "exclusiveMaximum": True,
    "maxLength": True,
    "maxItems": True,
    "minimum": False,
    "exclusiveMinimum": False,
    "minLength": False,
    "minItems": False,
}


def breaking_changes(old: Json, new: Json) -> list[str]:
    """What a client of the old document may rely on and the new one does not promise.

    New operations, fields of answers, optional fields of requests, codes and events break nothing.
    """
    return list(dict.fromkeys(_Comparison(old, new).changes()))


def version_allows_breaks(old: str, new: str) -> bool:
    """Whether the version moved far enough for changes that break clients: 1.4.0 -> 2.0.0, 0.4.1 -> 0.5.0."""
    before, after = ([int(part) for part in version.split(".")[:2]] for version in (old, new))
    parts = 1 if before[0] else 2
    return after[:parts] > before[:parts]


class _Comparison:
    def __init__(self, old: Json, new: Json) -> None:
        self._old = old
        self._new = new
        #: The pairs of references that are compared, so that recursive schemas end.
        self._seen: set[tuple[str, str, bool]] = set()

    def changes(self) -> Iterator[str]:
        for kind in ("paths", "webhooks"):
            for path, methods in self._old.get(kind, {}).items():
                for method, operation in methods.items():
                    where = f"{method.upper()} {path}" if kind == "paths" else f"webhook {path}"
                    now = self._new.get(kind, {}).get(path, {}).get(method)
                    if now is None:
                        yield f"{where} is gone"
                    else:
                        yield from self._operation(where, operation, now, sent=kind == "webhooks")

    def _operation(self, where: str, old: Json, new: Json, *, sent: bool) -> Iterator[str]:
        """`sent`: a webhook, whose body clients read."""
        if old["operationId"] != new["operationId"]:
            yield f"{where}: its operationId was {old['operationId']}"
        yield from self._parameters(where, old.get("parameters", []), new.get("parameters", []), sent=sent)
        bodies = [it.get("requestBody", {}).get("content", {}) for it in (old, new)]
        yield from self._content(f"{where}: body", *bodies, asked=not sent)
        if bodies[1] and not bodies[0]:
            yield f"{where}: needs a body"
        for status, answer in old["responses"].items():
            if status not in new["responses"]:
                yield f"{where}: the answer {status} is gone"
                continue
            now = new["responses"][status]
            yield from (
                f"{where}: the header {it} of the answer {status} is gone"
                for it in answer.get("headers", {}).keys() - now.get("headers", {}).keys()
            )
            yield from self._content(
                f"{where}: {status}", answer.get("content", {}), now.get("content", {}), asked=False
            )

    def _parameters(self, where: str, old: list[Json], new: list[Json], *, sent: bool) -> Iterator[str]:
        before, after = ({(it["in"], it["name"]): it for it in them} for them in (old, new))
        for key, it in after.items():
            if not sent and it.get("required") and not before.get(key, {}).get("required"):
                yield f"{where}: needs the parameter {key[1]}"
        for key, it in before.items():
            if key not in after:
                yield f"{where}: the parameter {key[1]} is gone"
            else:
                yield from self._schema(f"{where}: {key[1]}", it["schema"], after[key]["schema"], asked=not sent)

    def _content(self, where: str, old: Json, new: Json, *, asked: bool) -> Iterator[str]:
        for media, it in old.items():
            if media not in new:
                yield f"{where}: {media} is gone"
            else:
                yield from self._schema(where, it.get("schema", {}), new[media].get("schema", {}), asked=asked)

    def _schema(self, where: str, old: Json, new: Json, *, asked: bool) -> Iterator[str]:
        """`asked`: clients send the value; else they read it."""
        references = (old.get("$ref", ""), new.get("$ref", ""), asked)
        if references in self._seen:
            return
        if any(references[:2]):
            self._seen.add(references)
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        before, after = _alternatives(self._old, old), _alternatives(self._new, new)
        if "discriminator" in old:  # a reader of events skips those that it does not know
            yield from (f"{where}: {name} is gone" for name in sorted(before.keys() - after.keys()))
        elif asked:
            yield from (f"{where}: takes no {name} any more" for name in _lost(before, after))
        else:
            yield from (f"{where}: may be {name}" for name in _lost(after, before))
        for name in before.keys() & after.keys():
            yield from self._same_kind(where, before[name], after[name], asked=asked)

    def _same_kind(self, where: str, old: Json, new: Json, *, asked: bool) -> Iterator[str]:
        yield from self._values(where, old, new, asked=asked)
        if asked and old.get("additionalProperties", True) is not False and new.get("additionalProperties") is False:
            yield f"{where}: takes no other fields any more"
        fields, now = old.get("properties", {}), new.get("properties", {})
        needed, present = set(new.get("required", ())), set(old.get("required", ()))
        if asked:
            yield from (f"{where}: needs the field {it}" for it in sorted(needed - present))
        else:
            yield from (f"{where}: the field {it} may be missing" for it in sorted((present & now.keys()) - needed))
        for name, it in fields.items():
            if name in now:
                yield from self._schema(f"{where}.{name}", it, now[name], asked=asked)
            else:
                yield f"{where}: the field {name} is gone"
        for inner in ("items", "additionalProperties"):
            if isinstance(old.get(inner), dict) and isinstance(new.get(inner), dict):
                yield from self._schema(f"{where}[]", old[inner], new[inner], asked=asked)

    def _values(self, where: str, old: Json, new: Json, *, asked: bool) -> Iterator[str]:
        before, after = (it.get("enum", [it["const"]] if "const" in it else None) for it in (old, new))
        if before is not None and after is not None:
            yield from (f"{where}: the value {it} is gone" for it in before if it not in after)
        elif asked and after is not None:
            yield f"{where}: takes only {', '.join(map(str, after))}"
        elif not asked and before is not None:
            yield f"{where}: may be any text"
        if asked:
            yield from (f"{where}: {what}" for what in _narrowed(old, new))


def _lost(before: Json, after: Json) -> list[str]:
    """The kinds of value that are not among those of `after`. An integer is a number."""
    return sorted(it for it in before.keys() - after.keys() if not (it == "integer" and "number" in after))


def _narrowed(old: Json, new: Json) -> Iterator[str]:
    """The bounds that allow less than before."""
    for bound, larger_allows_more in _BOUNDS.items():
        if bound in new:
            was, now = old.get(bound), new[bound]
            if was is None or (now < was if larger_allows_more else now > was):
                yield f"{bound} is {now}, was {was}"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield "the pattern is another one"


def _resolved(document: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _alternatives(document: Json, schema: Json) -> dict[str, Json]:
    """The kinds of value that a schema allows, by a name that stays the same: a type, or what `type` in it is."""
    found: dict[str, Json] = {}
    for one in schema.get("anyOf") or schema.get("oneOf") or [schema]:
        it = _resolved(document, one)
        if "anyOf" in it or "oneOf" in it:
            found |= _alternatives(document, it)
            continue
        word = it.get("properties", {}).get("type", {}).get("const")
        found[word or it.get("type", "anything")] = it
    return found
