"""Reads a models.yaml into a Catalog, or lists every problem in it with line, column and fix."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from imagegen.catalog.catalog import (
    MAX_ALIASES,
    RESERVED_IDS,
    AliasName,
    Catalog,
    GlobalSettings,
    ModelId,
    ModelSpec,
    Section,
)
from imagegen.catalog.fields import section_at, unknown_key
from imagegen.catalog.yaml import MAX_BYTES, Document, Loc, Position, YamlProblem, read
from imagegen.core.wording import explained, nearest
from imagegen.storage.files import open_regular

#: The spec class of each family, by `type`.
Families = Mapping[str, type[ModelSpec]]

#: The sections, by their names here and in the original API.
SECTIONS = {"global": "global", "settings": "global", "models": "models", "aliases": "aliases"}

_MODEL_ID: TypeAdapter[str] = TypeAdapter(ModelId)
_ALIAS: TypeAdapter[str] = TypeAdapter(AliasName)


class Problem(NamedTuple):
    """One problem of the file."""

    loc: Loc
    message: str


class ConfigError(Exception):
    """The configuration file is invalid. Its message has one line for each problem."""

    def __init__(self, lines: list[str], problems: Sequence[Problem] = ()) -> None:
        """`problems` are for callers over HTTP: without file and line, and empty if the file cannot be parsed."""
        self.lines = lines
        self.problems = tuple(problems)
        super().__init__("\n".join(lines))


def load_catalog(path: Path, families: Families) -> Catalog:
    """Read and check a file. Raises ConfigError with lines of the form `file:line:column: what, and the fix`."""
    return parse_catalog(read_text(path, name=str(path)), families, name=str(path))


def read_text(path: Path, *, name: str) -> str:
    """The text of a file, with its line ends. Raises ConfigError, which calls the file `name`."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)  # one byte more than allowed: `read` refuses it
        return data.decode("utf-8", "replace" if len(data) > MAX_BYTES else "strict")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError([f"{name}: cannot be read: {reason}"]) from None


def parse_catalog(text: str, families: Families, *, name: str = "models.yaml") -> Catalog:
    """Like load_catalog, for a text."""
    return catalog_of(parse(text, name=name), families, name=name)


def parse(text: str, *, name: str = "models.yaml") -> Document:
    """Like `read`, but raises ConfigError."""
    try:
        return read(text)
    except YamlProblem as problem:
        raise ConfigError([_line(name, problem.position, problem.message)]) from None


def catalog_of(document: Document, families: Families, *, name: str = "models.yaml") -> Catalog:
    """Like load_catalog, for a text that was read."""
    result = _Reading(document, families)
    problems = sorted(result.problems(), key=lambda problem: (document.position(problem.loc), problem.message))
    if problems:
        lines = [_line(name, document.position(problem.loc), problem.message) for problem in problems]
        raise ConfigError(lines, problems)
    return Catalog(settings=result.settings, models=result.models, aliases=result.aliases)


def _line(name: str, position: Position, message: str) -> str:
    # A value of the file may hold line breaks; a problem is one line.
    return f"{name}:{position.line}:{position.column}: {' '.join(message.splitlines())}"


class _Reading:
    """One pass over a document that collects values and problems."""

    def __init__(self, document: Document, families: Families) -> None:
        self.data = document.data
        self.families = families
        self.settings = GlobalSettings()
        self.models: dict[str, ModelSpec] = {}
        self.aliases: dict[str, str] = {}

    def problems(self) -> Iterator[Problem]:
        if not isinstance(self.data, dict):
            yield Problem((), "the file holds no settings; it needs a section 'models'")
            return
        for key, value in self.data.items():
            match SECTIONS.get(str(key)):
                case "global":
                    yield from self._global(key, value)
                case "models":
                    yield from self._models(value)
                case "aliases":
                    yield from self._aliases(value)
                case _:
                    yield Problem((key,), f"unknown section '{key}'{nearest(key, SECTIONS)}")
        yield from self._whole()

    def _global(self, key: str, value: Any) -> Iterator[Problem]:
        if key == "settings" and "global" in self.data:
            yield Problem((key,), "'settings' is the older name of 'global'; keep one of them")
            return
        if not isinstance(value, dict | None):
            yield Problem((key,), f"'{key}' must map names to values")
            return
        try:
            self.settings = GlobalSettings.model_validate(value or {})
        except ValidationError as error:
            yield from _explain(error, (key,), GlobalSettings)

    def _models(self, value: Any) -> Iterator[Problem]:
        if not value:
            yield Problem(("models",), "there is no model; add one under 'models'")
            return
        if not isinstance(value, dict):
            yield Problem(("models",), "'models' must map model ids to their settings")
            return
        for model_id, entry in value.items():
            yield from self._model(model_id, entry)

    def _model(self, model_id: Any, entry: Any) -> Iterator[Problem]:
        loc: Loc = ("models", model_id)
        if (reason := _bad_id(model_id)) is not None:
            yield Problem(loc, reason)
            return
        if not isinstance(entry, dict):
            yield Problem(loc, f"model '{model_id}' has no settings")
            return
        word = entry.get("type")
        family = self.families.get(word) if isinstance(word, str) else None
        if family is None:
            known = ", ".join(sorted(self.families))
            where, what = ((*loc, "type"), f"unknown type '{word}'") if "type" in entry else (loc, "'type' is missing")
            yield Problem(where, f"{what}{nearest(word, self.families)}; known: {known}")
            yield from self._whatever_its_type(entry, loc)
            return
        try:
            self.models[model_id] = family.model_validate(entry)
        except ValidationError as error:
            yield from _explain(error, loc, family)

    def _whatever_its_type(self, entry: dict[Any, Any], loc: Loc) -> set[Problem]:
        """What else is wrong with an entry of an unknown type: the problems that it has in each family."""
        found: list[set[Problem]] = []
        for word, family in self.families.items():
            try:
                family.model_validate(entry | {"type": word})
                return set()
            except ValidationError as error:
                found.append(set(_explain(error, loc, family)))
        return set[Problem].intersection(*found) if found else set()

    def _aliases(self, value: Any) -> Iterator[Problem]:
        if not isinstance(value, dict | None):
            yield Problem(("aliases",), "'aliases' must map names to model ids")
            return
        if value and len(value) > MAX_ALIASES:
            yield Problem(("aliases",), f"more than {MAX_ALIASES} aliases")
            return
        ids = self.data.get("models")
        if not isinstance(ids, dict):
            return  # which is a problem of its own
        for name, model_id in (value or {}).items():
            if (reason := _bad_alias(name, model_id, ids)) is None:
                self.aliases[name] = model_id
            else:
                yield Problem(("aliases", name), reason)

    def _whole(self) -> Iterator[Problem]:
        """The problems that concern several sections."""
        if "models" not in self.data:
            yield Problem((), "there is no model; add one under 'models'")
            return
        default = self.settings.default_model
        if default is not None and isinstance(self.data["models"], dict) and default not in self.data["models"]:
            section = "global" if "global" in self.data else "settings"
            hint = nearest(default, self.data["models"])
            yield Problem((section, "default_model"), f"default_model '{default}' is not under 'models'{hint}")


def _bad_id(model_id: Any) -> str | None:
    try:
        _MODEL_ID.validate_python(model_id, strict=True)
    except ValidationError:
        return f"'{model_id}' is no model id: letters, digits, '.', '_' and '-', at most 64, in quotes if only digits"
    return f"'{model_id}' is a reserved word; choose another id" if model_id in RESERVED_IDS else None


def _bad_alias(name: Any, model_id: Any, ids: Mapping[Any, Any]) -> str | None:
    try:
        _ALIAS.validate_python(name, strict=True)
    except ValidationError as error:
        return f"'{name}' is no alias: {explained(error.errors()[0])}"
    if name in ids:
        return f"'{name}' is the id of a model, so it cannot be an alias"
    if isinstance(model_id, str) and model_id in ids:
        return None
    return f"alias '{name}': '{model_id}' is not under 'models'{nearest(model_id, ids)}"


def _explain(error: ValidationError, loc: Loc, section: type[Section]) -> Iterator[Problem]:
    for details in error.errors(include_url=False, include_context=True, include_input=True):
        yield Problem((*loc, *details["loc"]), _message(details, section))


def _message(details: ErrorDetails, section: type[Section]) -> str:
    key = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        return unknown_key(str(details["loc"][-1]), section_at(section, details["loc"]))
    if details["type"] == "missing":
        return f"'{key}' is missing"
    words = explained(details)
    what = words[0].lower() + words[1:]
    return f"'{key}': {what}" if key else what
