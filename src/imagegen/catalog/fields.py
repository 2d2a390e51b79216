"""The types of the fields of models.yaml. The annotation of a field says how it is used.

    vae_file: WeightsFile | None = None             a file in the entry's folder or repository; a change reloads
    steps: Annotated[int, Request] = 28             read when a request is admitted; a change reloads nothing

The allowed roots, the JSON schema, the difference of two catalogs, receipts and the reference page read these marks.
A field of an entry without `Request` counts as loaded. A bare `str` is refused: it could be a path.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from imagegen.core.wording import Form, nearest


class Mark(Enum):
    """The properties of a field that its annotation gives besides its type and bounds."""

    #: Of `global`: a load reads it, unless the entry has a field of the same name; a change reloads models.
    LOADS = auto()
    #: Of an entry: not read at load; a change reloads nothing.
    REQUEST = auto()
    #: Of `global`: it decides which models stay in memory; a change waits for the running task.
    RESIDENCY = auto()
    #: It changes pixels, so receipts name it.
    RECEIPT = auto()
    #: Text that names no file.
    TEXT = auto()
    #: A file or folder, absolute or below the models directory.
    PATH = auto()
    #: A file in a folder or repository; it cannot lead out of it.
    FILE = auto()
    #: A repository on the hub.
    SOURCE = auto()
    #: A repository on the hub, or a folder as in PATH.
    SOURCE_OR_PATH = auto()


Loads: Final = Mark.LOADS
Request: Final = Mark.REQUEST
Residency: Final = Mark.RESIDENCY
Receipt: Final = Mark.RECEIPT

#: The marks for texts; every text field of an entry has one of them.
_TEXTS = frozenset({Mark.TEXT, Mark.PATH, Mark.FILE, Mark.SOURCE, Mark.SOURCE_OR_PATH})


def inside(file: str) -> str:
    """Return the text if it is a path that stays below any folder that it is joined to. Raises ValueError."""
    parts = file.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in file or file.startswith("~") or not file.isprintable():
        raise ValueError("must be a file below its folder or repository: no '..', no leading '/'")
    return file


def _allowed_on_hub(source: str) -> str:
    repo = source.partition("@")[0]
    if len(repo) > 96 or "--" in repo or ".." in source or repo.endswith(("-", ".", ".git")):
        raise ValueError("the hub does not allow this name")
    return source


def is_relative_folder(source: object) -> bool:
    """Whether a source is a relative folder and cannot be a repository: `a` or `a/b/c`, not `org/name`."""
    if not isinstance(source, str) or source.startswith(("/", "~", ".")) or "://" in source or "@" in source:
        return False
    return source.count("/") != 1


def _no_url(source: str) -> str:
    if "://" in source:
        raise ValueError("must be org/name[@revision] or a folder, not a URL")
    return source


#: A text that names no file: for people, or one of a family's own values.
Text = Annotated[str, Mark.TEXT, StringConstraints(max_length=2000)]

#: A file or folder: absolute, or below the models directory. Over HTTP it must lie below the allowed roots.
WeightsPath = Annotated[str, Mark.PATH, StringConstraints(min_length=1, max_length=1000)]

#: A file, relative to the folder or repository that holds it. No value of this type leads out of it.
WeightsFile = Annotated[str, Mark.FILE, StringConstraints(min_length=1, max_length=500), AfterValidator(inside)]

#: A WeightsFile of the only format that is loaded.
SafetensorsFile = Annotated[WeightsFile, Form(r".+\.safetensors", "must end with .safetensors")]

#: `org/name`, optionally `@` a branch, tag or commit. Never a URL, never a path.
HubSource = Annotated[
    str,
    Mark.SOURCE,
    StringConstraints(max_length=320),
    Form(
        r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?",
        "must be a repository on the hub: org/name, or org/name@revision",
    ),
    AfterValidator(_allowed_on_hub),
]

#: `org/name[@revision]`, or a folder as in WeightsPath; the folder is used if it exists.
HubSourceOrPath = Annotated[
    str, Mark.SOURCE_OR_PATH, StringConstraints(min_length=1, max_length=1000), AfterValidator(_no_url)
]


#: The name of a part of a pipeline, as in its model_index.json.
PartName = Annotated[
    str, Form(r"[a-z][a-z0-9_]{0,63}", "must be the name of a part: small letters, digits and '_', a letter first")
]


def marks(info: FieldInfo) -> frozenset[Mark]:
    """All marks of a field, including those inside a union or a list."""
    return frozenset(mark for it in (*info.metadata, info.annotation) for mark in _marks(it))


def _marks(annotation: Any) -> Iterator[Mark]:
    if isinstance(annotation, Mark):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _marks(part)


def marked(kind: type[BaseModel], mark: Mark) -> frozenset[str]:
    """The names of a section's fields that have a mark."""
    return frozenset(name for name, info in kind.model_fields.items() if mark in marks(info))


def spellings(name: str, info: FieldInfo) -> list[str]:
    """Every key that a field is read from: its name first, then older ones."""
    return [name, *(str(it) for it in getattr(info.validation_alias, "choices", ()) if it != name)]


def sections(info: FieldInfo) -> Iterator[type[BaseModel]]:
    """The sections inside a field's value, such as the LoRA in a list of LoRAs."""
    yield from _sections(info.annotation)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def field_names(section: type[BaseModel]) -> list[str]:
    """Every spelling that a section reads."""
    return [key for name, info in section.model_fields.items() for key in spellings(name, info)]


def section_at(section: type[BaseModel], loc: Sequence[Any]) -> type[BaseModel]:
    """The section that holds the last key of `loc`: `section`, or one inside it."""
    for part in loc[:-1]:
        field = section.model_fields.get(str(part))
        inner = sections(field) if field is not None else iter(())
        section = next(inner, section)
    return section


def unknown_key(key: str, section: type[BaseModel], what: str = "key") -> str:
    """The message about a key that a section refused."""
    for name, info in section.model_fields.items():
        if key in spellings(name, info):
            return f"'{key}' is another spelling of '{name}', which is here, too; keep one of them"
    return f"unknown {what} '{key}'{nearest(key, field_names(section))}"


def texts(kind: type[BaseModel], fields: Mapping[str, Any]) -> Iterator[tuple[str, Mark, str]]:
    """Key, mark and value of each text among unchecked `fields` of a section, including inner sections."""
    for name, info in kind.model_fields.items():
        mark = next(iter(marks(info) & _TEXTS), None)
        for key in spellings(name, info):
            value = fields.get(key)
            if mark is not None and isinstance(value, str):
                yield key, mark, value
            elif mark is not None and isinstance(value, Mapping):  # part -> source
                yield from ((f"{key}.{name}", mark, it) for name, it in value.items() if isinstance(it, str))
            for inner in sections(info):
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, Mapping):
                        yield from ((f"{key}.{below}", *rest) for below, *rest in texts(inner, item))  # type: ignore[misc]


def is_number(info: FieldInfo) -> bool:
    """Whether a field's value may be a number and not true or false."""
    kinds = set(_kinds(info.annotation))
    return bool(kinds & {int, float}) and bool not in kinds


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _kinds(part)


def refuse_word_for_number(value: object) -> None:
    """Raises ValueError for true, false and a number in quotes, which pydantic would accept as numbers."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return  # a word, which the field may accept
        raise ValueError("must be a number without quotes")


def refuse_bare_text(kind: type[BaseModel]) -> None:
    """Raises TypeError for a field that is a text without a mark."""
    for name, info in kind.model_fields.items():
        if _is_bare(info.annotation) and not marks(info) & _TEXTS:
            raise TypeError(
                f"{kind.__name__}.{name} is a bare str: annotate it as Text, WeightsPath, WeightsFile, HubSource "
                "or HubSourceOrPath of imagegen.catalog.fields"
            )


def _is_bare(annotation: Any) -> bool:
    if annotation is str:
        return True
    parts = () if get_origin(annotation) is Literal else get_args(annotation)
    return any(_is_bare(part) for part in parts if part is not NoneType and not isinstance(part, Mark))
