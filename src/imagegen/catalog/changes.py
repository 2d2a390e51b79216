"""Applies a caller's changes to a document of models.yaml, or refuses them. Pure, except that it resolves links."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from imagegen.builtin import BUILTIN, builtin_models
from imagegen.catalog.catalog import GlobalSettings, Section
from imagegen.catalog.editing import Change, Put, Remove, edited
from imagegen.catalog.fields import HubSource, Mark, WeightsFile, is_relative_folder, spellings, texts
from imagegen.catalog.loading import SECTIONS, Families
from imagegen.catalog.yaml import Document
from imagegen.core.errors import ConfigInvalid, ModelExists, ModelNotFound, PathNotAllowed

#: URLs, drives, home folders, and characters that disguise a path.
_SUSPICIOUS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:|^~|[\\%\x00-\x1f\x7f]")

HUB_SOURCE: TypeAdapter[str] = TypeAdapter(HubSource)
WEIGHTS_FILE: TypeAdapter[str] = TypeAdapter(WeightsFile)

#: The most characters of a key, fields of one change, and levels of nesting; far above those of real entries.
_MAX_KEY = 100
_MAX_FIELDS = 100
_MAX_DEPTH = 8

Fields = Mapping[str, Any]


class Roots(NamedTuple):
    """The folders below which a caller may name weights. The operator's own file may name any path."""

    models: Path
    roots: tuple[Path, ...]

    def check(self, kind: type[Section] | None, fields: Fields) -> None:
        """Raises PathNotAllowed for a path outside the roots. `kind` says which fields are paths; None: unknown."""
        for key, mark, value in texts(kind, fields) if kind else ():
            if not self._may_name(mark, value):
                raise PathNotAllowed(f"{key}: {PathNotAllowed().detail}")

    def _may_name(self, mark: Mark, value: str) -> bool:
        match mark:
            case Mark.PATH:
                return self._allows(value, self.roots)
            case Mark.FILE:
                return _is_valid(WEIGHTS_FILE, value)
            case Mark.SOURCE_OR_PATH if _is_valid(HUB_SOURCE, value):
                # `org/name` is looked for below the models directory, and then on the hub.
                return self._allows(value, (*self.roots, self.models))
            case Mark.SOURCE if is_relative_folder(value):
                return self._allows(value, self.roots)  # an older spelling of `local_path`
            case Mark.SOURCE_OR_PATH:
                return "@" not in value and self._allows(value, self.roots)
        return True

    def _allows(self, value: str, roots: tuple[Path, ...]) -> bool:
        if value.startswith(BUILTIN):
            return value.removeprefix(BUILTIN) in builtin_models()
        if _SUSPICIOUS.search(value):
            return False
        try:
            path = (self.models / value).resolve()
            return any(path.is_relative_to(root.resolve()) for root in roots)
        except (OSError, RuntimeError):  # a cycle of links
            return False


def _is_valid(kind: TypeAdapter[str], value: str) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


def with_model(document: Document, model_id: str, fields: Fields, families: Families, roots: Roots) -> Document:
    """The document with a new entry at the end. Raises ModelExists, PathNotAllowed."""
    _check({model_id: None, **fields})
    roots.check(_family(fields.get("type"), families), fields)
    if model_id in document.data["models"]:
        raise ModelExists
    entry = {name: it for name, it in fields.items() if it is not None}
    return edited(document, [Put(("models", model_id), entry)])


def with_changed_model(document: Document, model_id: str, fields: Fields, families: Families, roots: Roots) -> Document:
    """The document with some fields of an entry replaced; None removes one. Raises ModelNotFound, PathNotAllowed."""
    _check(fields)
    if model_id not in document.data["models"]:
        raise ModelNotFound
    entry = document.data["models"][model_id]
    family = _family(fields.get("type", entry["type"]), families)
    roots.check(family, fields)
    return edited(document, list(_merged(("models", model_id), entry, fields, family)))


def _family(word: object, families: Families) -> type[Section] | None:
    return families.get(word) if isinstance(word, str) else None


def without_model(document: Document, model_id: str) -> Document:
    """The document without an entry. Raises ModelNotFound."""
    if model_id not in document.data["models"]:
        raise ModelNotFound
    return edited(document, [Remove(("models", model_id))])


def with_settings(document: Document, fields: Fields) -> Document:
    """The document with some fields of `global` replaced; None removes one."""
    _check(fields)
    data = document.data
    name = next((key for key in data if SECTIONS.get(key) == "global"), "global")
    return edited(document, list(_merged((name,), data.get(name) or {}, fields, GlobalSettings)))


def with_aliases(document: Document, fields: Fields) -> Document:
    """The document with some aliases replaced; None removes one."""
    _check(fields)
    if all(model_id is None for model_id in {**(document.data.get("aliases") or {}), **fields}.values()):
        return edited(document, [Remove(("aliases",))])
    changes = [
        Remove(("aliases", name)) if model_id is None else Put(("aliases", name), model_id)
        for name, model_id in fields.items()
    ]
    return edited(document, changes)


def _merged(path: tuple[str, ...], section: Fields, fields: Fields, kind: type[Section] | None) -> Iterator[Change]:
    for name, value in fields.items():
        key = _spelling(name, section, kind)
        yield Remove((*path, key)) if value is None else Put((*path, key), value)


def _spelling(name: str, section: Fields, kind: type[Section] | None) -> str:
    """The spelling that the section already uses for a field, because two spellings of one field are an error."""
    for field, info in kind.model_fields.items() if kind else ():
        if name in (known := spellings(field, info)):
            return next((key for key in section if key in known), name)
    return name


def _check(fields: Fields) -> None:
    """Check the bounds before the edit: each field may need a pass over the whole file. Raises ConfigInvalid."""
    if len(fields) > _MAX_FIELDS:
        raise ConfigInvalid(f"More than {_MAX_FIELDS} fields.")
    for name, value in fields.items():
        if len(name) > _MAX_KEY or not name.isprintable():
            raise ConfigInvalid(f"A key is longer than {_MAX_KEY} characters, or not printable.")
        _check_value(name, value, _MAX_DEPTH)


def _check_value(name: str, value: Any, depth_left: int) -> None:
    if not depth_left:
        raise ConfigInvalid(f"A value is nested deeper than {_MAX_DEPTH} levels.")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can name half of a pair of surrogates
            raise ConfigInvalid(f"{name}: a text has characters that no file can hold.") from None
    for inner in (*value, *value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_value(name, inner, depth_left - 1)
